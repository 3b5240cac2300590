"""The listening socket: inherited from a service manager, or bound here."""

import os
import socket
from dataclasses import dataclass

from clustercert.settings import SettingsError

# Source: sd_listen_fds(3).
FIRST_INHERITED = 3


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket.

    Attributes:
        inherited: whether a service manager keeps it open, even while no process serves it.
    """

    socket: socket.socket
    inherited: bool = False

    @property
    def address(self) -> tuple[str, int]:
        """The host and port."""
        host, port = self.socket.getsockname()[:2]
        return host, port


def listener(host: str, port: int) -> Listener:
    """Return the inherited socket, or a new one bound to the address. Port 0 takes any free port. Raises SettingsError.

    A new socket does not listen yet: the server starts listening once it can handle requests.
    """
    inherited = _inherited()
    return Listener(inherited, inherited=True) if inherited else Listener(_bound(host, port))


def _inherited() -> socket.socket | None:
    """The socket that a service manager such as systemd passed to this process, or `None`."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.pop("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if count != "1":
        raise SettingsError(f"LISTEN_FDS is {count or 'empty'}, not 1. Pass exactly one listening socket.")
    try:
        inherited = socket.socket(fileno=FIRST_INHERITED)
    except OSError as error:
        raise SettingsError(
            f"The inherited descriptor {FIRST_INHERITED} is not a socket: {error.strerror}."
        ) from error
    if inherited.family not in (socket.AF_INET, socket.AF_INET6) or inherited.type != socket.SOCK_STREAM:
        raise SettingsError(
            "The inherited socket is not a TCP socket. Pass a TCP socket (systemd: ListenStream=PORT)."
        )
    return inherited


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"Can't listen on {host}, port {port}: {reason}. Choose another port with --port, or stop the program that"
            " uses this one."
        ) from error
    return bound
