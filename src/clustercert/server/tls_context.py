"""TLS as it is spoken: one context of the standard library, which takes up renewed files."""

import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from clustercert.server.tls_files import Tls

if TYPE_CHECKING:
    from collections.abc import Callable

    import uvicorn

logger = structlog.get_logger()

_Stamp = tuple[tuple[int, int, int], ...]


class TlsContext:
    """uvicorn's `ssl_context_factory`; `reload` is its `callback_notify`.

    A copy of it is pickled to each worker, before a context is made.
    """

    def __init__(self, files: Tls) -> None:
        self._certificate, self._key = files.certificate, files.key
        self._context: ssl.SSLContext | None = None
        self._loaded: _Stamp = ()

    def __call__(self, _config: "uvicorn.Config", _default: "Callable[[], ssl.SSLContext]") -> ssl.SSLContext:
        """TLS 1.2 or later, no renegotiation, HTTP/1.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.sslobject_class = _Session
        self._loaded = self._stamp()
        context.load_cert_chain(self._certificate, self._key)
        self._context = context
        return context

    async def reload(self) -> None:
        """Load the files again where they have changed; handshakes from now on show the new certificate."""
        stamp = self._stamp()
        if self._context is None or stamp == self._loaded:
            return
        self._loaded = stamp
        try:
            # A failure in the middle would leave the served context without a key.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
            self._context.load_cert_chain(self._certificate, self._key)
        except OSError as error:
            logger.error("renewed TLS files not usable", file=str(self._certificate), cause=str(error))  # noqa: TRY400 - the cause says it all
        else:
            logger.info("TLS files reloaded", file=str(self._certificate))

    def _stamp(self) -> _Stamp:
        return tuple(_identity(path) for path in (self._certificate, self._key))


class _Session(ssl.SSLObject):
    """One TLS connection, whose end needs no answer from the peer.

    RFC 8446 6.1 and RFC 5246 7.2.1 allow that. Event loops wait 30 s for the answer, and a client that keeps an idle
    connection need not give one: each such client would hold up the service's end.
    """

    def unwrap(self) -> None:
        """Send close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            super().unwrap()


def _identity(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced; zeros where there is none."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino
    return 0, 0, 0
