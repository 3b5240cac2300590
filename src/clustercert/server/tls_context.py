"""The TLS context of the server, which reloads renewed files."""

import contextlib
import ssl
from typing import TYPE_CHECKING

import structlog

from clustercert.model.times import rfc3339
from clustercert.observability import metrics
from clustercert.server.file_watch import Stamp, file_stamp
from clustercert.server.tls_files import Tls

if TYPE_CHECKING:
    from collections.abc import Callable

    import uvicorn

logger = structlog.get_logger()

_Stamps = tuple[Stamp, ...]


class TlsContext:
    """Creates the server's TLS context, and reloads the TLS files.

    Give uvicorn an instance as `ssl_context_factory`, and the method `reload` as `callback_notify`. An instance is
    pickled and sent to each worker, so it creates its context only when called.
    """

    def __init__(self, files: Tls) -> None:
        self._certificate, self._key, self._client_ca = files.certificate, files.key, files.client_ca
        self._context: ssl.SSLContext | None = None
        self._loaded: _Stamps = ()

    def __call__(self, _config: "uvicorn.Config", _default: "Callable[[], ssl.SSLContext]") -> ssl.SSLContext:
        """Create a context for TLS 1.2 or later and HTTP/1.1, without renegotiation."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.sslobject_class = _Session
        self._loaded = self._stamp()
        context.load_cert_chain(self._certificate, self._key)
        _measure(Tls.from_files(self._certificate, self._key))
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._client_ca)
        self._context = context
        return context

    async def reload(self, *, forced: bool = False) -> None:
        """Load the files again if they have changed or `forced` is set. New handshakes use the new certificate."""
        stamp = self._stamp()
        if self._context is None or (stamp == self._loaded and not forced):
            return
        self._loaded = stamp
        try:
            files = Tls.from_files(self._certificate, self._key)
            # Load the files into another context first: a failure would leave the served context without a key.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
            self._context.load_cert_chain(self._certificate, self._key)
            if self._client_ca is not None:
                # Loading the file adds new client CAs to the context. Only a restart of the service removes a CA.
                self._context.load_verify_locations(self._client_ca)
        except (OSError, ValueError) as error:
            metrics.RELOADS.labels("tls", "failed").inc()
            logger.error("renewed TLS files not usable", file=str(self._certificate), cause=str(error))  # noqa: TRY400 - a traceback would add nothing
        else:
            _measure(files)
            metrics.RELOADS.labels("tls", "done").inc()
            logger.info(
                "TLS files reloaded",
                file=str(self._certificate),
                fingerprint=files.fingerprint,
                certificate_fingerprint=files.certificate_fingerprint,
                not_after=rfc3339(files.not_after),
            )

    def _stamp(self) -> _Stamps:
        paths = (self._certificate, self._key, self._client_ca)
        return tuple(file_stamp(path) for path in paths if path is not None)


def _measure(files: Tls) -> None:
    metrics.TLS_NOT_AFTER.labels(str(files.certificate)).set(files.not_after.timestamp())
    metrics.TLS_LIFETIME.labels(str(files.certificate)).set(
        (files.not_after - files.not_before).total_seconds()
    )


class _Session(ssl.SSLObject):
    """A TLS connection that closes without waiting for the peer's close_notify.

    RFC 8446 section 6.1 and RFC 5246 section 7.2.1 allow closing without waiting. Event loops would wait 30 s for
    close_notify, which clients with idle connections need not send, and each such client would delay the shutdown.
    """

    def unwrap(self) -> None:
        """Send close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            super().unwrap()
