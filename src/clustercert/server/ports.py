"""The port: whether it is free, and one socket on it for each worker."""

import socket

from clustercert.settings import SettingsError


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0. Raises SettingsError where it can't be had."""
    with _bound(host, port, socket.SO_REUSEADDR) as probe:
        return int(probe.getsockname()[1])


def sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """As many sockets on one port, among which the kernel shares out connections once they listen.

    They don't yet: a worker lets its own listen when it can answer. Raises SettingsError.
    """
    return [_bound(host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT) for _ in range(count)]


def listens(bound: socket.socket) -> bool:
    """Whether some process has let it listen."""
    return bool(bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _bound(host: str, port: int, *options: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"Can't listen on {host}, port {port}: {reason}. Choose another with --port, or stop what has it."
        ) from error
    return bound
