"""The HTTP server: granian with one process a worker, TLS, a port that is really free, a clean end.

What is served is `app`'s business.
"""

import asyncio
import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from granian.constants import HTTPModes, Interfaces, Loops, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server
from starlette.types import ASGIApp

from clustercert.certificate import chain_pem, fingerprint, new_server_certificate
from clustercert.keypair import key_pem, new_key
from clustercert.private_file import write_private
from clustercert.settings import Settings, SettingsError
from clustercert.web.edge import MAX_IN_FLIGHT

T = TypeVar("T")

# A header block that takes longer than this is no client's.
HEADER_TIMEOUT_MS = 10_000
MAX_HEADER_BYTES = 64 * 1024
# How long requests in flight may take once the server is told to stop. A worker that is told so while it still
# starts may miss it, and has no requests.
GRACE_SECONDS = 35
START_GRACE_SECONDS = 5
STARTING_SECONDS = 15

# Standard output is for the answer or the request log; what the server itself has to say is neither.
_TO_STDERR = {
    "handlers": {
        name: {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stderr"}
        for name in ("console", "access")
    }
}

# Connections that the kernel keeps for us until a worker takes them.
BACKLOG = 2048

# glibc hands blocks from this size on back to the system as soon as they are freed. Left to itself it raises the bound
# to the largest block that it has seen, and a worker keeps the 19 MiB of each check of a password for good.
# Source: mallopt(3), M_MMAP_THRESHOLD.
GIVEN_BACK_FROM_BYTES = 1024 * 1024

SELF_SIGNED_LIFETIME = timedelta(days=825)


@dataclass(frozen=True, slots=True)
class Tls:
    """What the server shows.

    Attributes:
        certificate, key: PEM files, chain leaf first.
        ca: the file to give to clients, where the pair was made here; else None.
        fingerprint: SHA-256 of the leaf's DER, lower-case hex.
        names: what the pair made here is good for.
    """

    certificate: Path
    key: Path
    ca: Path | None
    fingerprint: str
    names: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return False


def tls(settings: Settings) -> Tls | None:
    """The TLS files that the settings ask for, made where they ask for none off loopback; None for plain HTTP.

    Raises SettingsError.
    """
    server = settings.server
    if server.tls_certificate is not None and server.tls_key is not None:
        return _given(server.tls_certificate, server.tls_key)
    if server.plain_http or is_loopback(server.host):
        return None
    if settings.shared_database:
        raise SettingsError(
            f"Listening on {server.host} needs TLS: set server.tls_certificate and server.tls_key, or"
            " server.plain_http = true behind a proxy. A self-signed certificate is made only for a single server"
            " with its own SQLite database."
        )
    return _self_signed(settings.data_dir, _own_names(server.host, server.public_url))


def _given(certificate: Path, key: Path) -> Tls:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"The TLS files {certificate} and {key} can't be used: {error}.") from error
    return Tls(certificate=certificate, key=key, ca=None, fingerprint=fingerprint(leaf).hex())


def _own_names(host: str, public_url: str | None) -> set[str]:
    """Every name and address by which clients may know this machine."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn(), *_own_addresses()}
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - the two that are no address of any machine
        names.add(host)
    if public_url is not None and (hostname := urlsplit(public_url).hostname):
        names.add(hostname)
    return names


def _own_addresses() -> Iterator[str]:
    """The addresses from which this machine would reach the rest of the world. Nothing is sent."""
    # RFC 5737 and RFC 3849: addresses for documentation, which only the routing table is asked about.
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((somewhere, 9))
            yield str(probe.getsockname()[0])


def _self_signed(folder: Path, names: set[str]) -> Tls:
    """The pair in the data folder; made at the first start, and again when it has expired or lacks a name.

    The CA's key is thrown away once it has signed the one certificate: nobody can sign another.
    """
    certificate, key_file, ca_file = (
        folder / f"tls-{name}" for name in ("server.pem", "server.key", "ca.pem")
    )
    now = datetime.now(UTC).replace(microsecond=0)
    leaf = _readable(certificate) if key_file.exists() and ca_file.exists() else None
    if leaf is None or leaf.not_valid_after_utc < now + timedelta(days=1) or not names <= _names_in(leaf):
        key = new_key("ec-p256")
        leaf, ca = new_server_certificate(key, sorted(names), now, SELF_SIGNED_LIFETIME)
        # Where the database lies elsewhere, nobody has needed it before.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(key_file, key_pem(key))
        write_private(ca_file, chain_pem((ca,)))
        write_private(certificate, chain_pem((leaf,)))
    return Tls(certificate, key_file, ca_file, fingerprint(leaf).hex(), tuple(sorted(names)))


def _names_in(leaf: x509.Certificate) -> set[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *map(str, addresses)}


def _readable(path: Path) -> x509.Certificate | None:
    with contextlib.suppress(OSError, ValueError):
        return x509.load_pem_x509_certificate(path.read_bytes())
    return None


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0. Raises SettingsError where it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SettingsError(
                f"Can't listen on {host}, port {port}: {reason}. Choose another with --port, or stop what has it."
            ) from error
        return int(probe.getsockname()[1])


def run_interruptible(work: Coroutine[object, object, T]) -> T:
    """`asyncio.run`, but Ctrl-C ends in KeyboardInterrupt even where the work swallowed it.

    A cancellation that arrives inside a database call may come out as that call's failure, which is then tried again.
    """
    interrupted = False

    async def watched() -> T:
        nonlocal interrupted
        task = asyncio.ensure_future(work)

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
        result = await task
        # Before the handler is there, asyncio's own cancels this task, which hands that on to the work.
        this = asyncio.current_task()
        interrupted = interrupted or (this is not None and this.cancelling() > 0)
        return result

    try:
        result = asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    if interrupted:
        raise KeyboardInterrupt
    return result


def run(
    settings: Settings, port: int, files: Tls | None, *, on_start: Callable[[], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished.

    `on_start` is called in this process once the workers are told to start.
    """
    server = Server(
        "clustercert",
        address=settings.server.host,
        port=port,
        interface=Interfaces.ASGI,
        workers=settings.server.workers,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS, max_buffer_size=MAX_HEADER_BYTES),
        websockets=False,
        backlog=BACKLOG,
        # More than are answered: who is over `edge`'s bound is told so, instead of waiting in the dark.
        backpressure=2 * MAX_IN_FLIGHT,
        ssl_cert=files.certificate if files else None,
        ssl_key=files.key if files else None,
        ssl_protocol_min=SSLProtocols.tls12,
        log_level=LogLevels.warning,
        log_dictconfig=_TO_STDERR,
        respawn_failed_workers=True,
        respawn_interval=1,
        workers_kill_timeout=START_GRACE_SECONDS,
    )
    if on_start is not None:
        server.on_startup(on_start)
    started = threading.Timer(
        STARTING_SECONDS, lambda: setattr(server, "workers_kill_timeout", GRACE_SECONDS)
    )
    started.daemon = True
    server.on_startup(started.start)
    # A fresh interpreter for each worker: it finds the folder for its counts when it is imported, and no lock or
    # thread of this process is copied into it.
    multiprocessing.set_start_method("spawn", force=True)
    # It is read when a process starts; what the operator says wins.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(GIVEN_BACK_FROM_BYTES))
    with _counting_together():
        server.serve(target_loader=functools.partial(_application, settings), wrap_loader=False)


def _application(settings: Settings) -> ASGIApp:
    """A worker's application."""
    # Only the workers need it: the main process starts them half a second earlier without.
    from clustercert.app.asgi import create_app  # noqa: PLC0415

    return create_app(settings)


@contextlib.contextmanager
def _counting_together() -> Iterator[None]:
    """A folder in which the workers' counts add up; gone with the server."""
    with tempfile.TemporaryDirectory(prefix="clustercert-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
