"""The HTTP server: granian with one process a worker, TLS, a port that is really free, a clean end.

What is served is `app`'s business.
"""

import contextlib
import functools
import multiprocessing
import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from granian.constants import HTTPModes, Interfaces, Loops, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from clustercert.app import create_app
from clustercert.certificate import chain_pem, fingerprint, new_server_certificate
from clustercert.keypair import key_pem
from clustercert.private_file import write_private
from clustercert.settings import Settings, SettingsError

# A header block that takes longer than this is no client's.
HEADER_TIMEOUT_MS = 10_000
MAX_HEADER_BYTES = 64 * 1024
# How long requests in flight may take once the server is told to stop.
GRACE_SECONDS = 35

# Standard output is for the answer or the request log; what the server itself has to say is neither.
_TO_STDERR = {
    "handlers": {
        name: {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stderr"}
        for name in ("console", "access")
    }
}

SELF_SIGNED_LIFETIME = timedelta(days=825)


@dataclass(frozen=True, slots=True)
class Tls:
    """What the server shows.

    Attributes:
        certificate, key: PEM files, chain leaf first.
        ca: the file to give to clients, where the pair was made here; else None.
        fingerprint: SHA-256 of the leaf's DER, lower-case hex.
    """

    certificate: Path
    key: Path
    ca: Path | None
    fingerprint: str


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
    return _self_signed(settings.data_dir, server.host)


def _given(certificate: Path, key: Path) -> Tls:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"The TLS files {certificate} and {key} can't be used: {error}.") from error
    return Tls(certificate=certificate, key=key, ca=None, fingerprint=fingerprint(leaf).hex())


def _self_signed(folder: Path, host: str) -> Tls:
    """The pair in the data folder; made at the first start and again when it has expired.

    The CA's key is thrown away once it has signed the one certificate: nobody can sign another.
    """
    pair = Tls(folder / "tls-server.pem", folder / "tls-server.key", folder / "tls-ca.pem", "")
    now = datetime.now(UTC).replace(microsecond=0)
    leaf = _readable(pair.certificate) if pair.key.exists() else None
    if leaf is None or leaf.not_valid_after_utc < now + timedelta(days=1):
        key = ec.generate_private_key(ec.SECP256R1())
        names = {"localhost", socket.gethostname(), "127.0.0.1", "::1", host} - {"0.0.0.0", "::"}  # noqa: S104
        leaf, ca = new_server_certificate(key, sorted(names), now, SELF_SIGNED_LIFETIME)
        write_private(pair.key, key_pem(key))
        write_private(folder / "tls-ca.pem", chain_pem((ca,)))
        write_private(pair.certificate, chain_pem((leaf,)))
    return Tls(pair.certificate, pair.key, pair.ca, fingerprint(leaf).hex())


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
        http=HTTPModes.auto,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS, max_buffer_size=MAX_HEADER_BYTES),
        websockets=False,
        ssl_cert=files.certificate if files else None,
        ssl_key=files.key if files else None,
        ssl_protocol_min=SSLProtocols.tls12,
        log_level=LogLevels.warning,
        log_dictconfig=_TO_STDERR,
        respawn_failed_workers=True,
        respawn_interval=1,
        workers_kill_timeout=GRACE_SECONDS,
    )
    if on_start is not None:
        server.on_startup(on_start)
    # A fresh interpreter for each worker: it finds the folder for its counts when it is imported, and no lock or
    # thread of this process is copied into it.
    multiprocessing.set_start_method("spawn", force=True)
    with _counting_together():
        server.serve(target_loader=functools.partial(create_app, settings), wrap_loader=False)


@contextlib.contextmanager
def _counting_together() -> Iterator[None]:
    """A folder in which the workers' counts add up; gone with the server."""
    with tempfile.TemporaryDirectory(prefix="clustercert-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
