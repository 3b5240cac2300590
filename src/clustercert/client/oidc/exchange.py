"""Sends requests to an issuer, bounded in size and time. Does not follow redirects."""

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from clustercert import __version__
from clustercert.client.connection import Connection, json_object, one_line, tls_context
from clustercert.client.oidc.errors import IssuerError, IssuerUnreachable
from clustercert.client.transport import HttpTransport, Request
from clustercert.model import JsonObject

# Discovery documents have a few KiB, tokens at most 16.
MAX_RESPONSE_BYTES = 256 * 1024
RESPONSE_SECONDS = 10.0
_REDIRECTS = range(300, 400)


class IssuerResponse(NamedTuple):
    """A response with a JSON object; `{}` if there is none."""

    status: int
    body: JsonObject


class IssuerConnections:
    """Connections to the hosts of one issuer. Raises IssuerError, IssuerUnreachable or ClientError.

    Args:
        ca_pem: replaces the CAs that this machine trusts.
    """

    def __init__(self, ca_pem: str | None) -> None:
        self._tls = tls_context(ca_pem)
        self._open: dict[str, HttpTransport] = {}

    def close(self) -> None:
        for transport in self._open.values():
            transport.close()

    def get(self, url: str) -> IssuerResponse:
        return self._send("GET", url, {}, b"")

    def post(self, url: str, form: Mapping[str, str]) -> IssuerResponse:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._send("POST", url, headers, urlencode(form).encode())

    def _send(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> IssuerResponse:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._open:
            self._open[origin] = HttpTransport(origin, self._tls, RESPONSE_SECONDS)
        target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        common = {
            "Host": parts.netloc,
            "User-Agent": f"clustercert/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        started = time.monotonic()
        with _translate_failures(origin):
            reply = self._open[origin].send(Request(method, target, {**common, **headers}, content))
            received = reply.body(MAX_RESPONSE_BYTES)
        if received is None:
            raise IssuerError(f"The answer of {origin} is larger than {MAX_RESPONSE_BYTES // 1024} KiB.")
        if Connection.trace is not None:
            milliseconds = (time.monotonic() - started) * 1000
            Connection.trace(f"{method} {origin}{parts.path}: {reply.status}, {milliseconds:.0f} ms")
        if reply.status in _REDIRECTS:
            raise IssuerError(
                f"{origin}{parts.path} redirects to another address, which is not followed. Ask an operator of the "
                "service to check the issuer's address."
            )
        return IssuerResponse(reply.status, _parsed(received))


def _parsed(content: bytes) -> JsonObject:
    try:
        return json_object(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return {}


@contextmanager
def _translate_failures(origin: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise IssuerUnreachable(
            f"The issuer {origin} did not answer in time. Check the network, and try again later."
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise IssuerError(
            f"The certificate of the issuer {origin} is not trusted ({one_line(error.verify_message)}). Name its CA "
            "with `clustercert login --issuer-ca-file FILE`."
        ) from error
    except (http.client.HTTPException, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise IssuerUnreachable(
            f"The issuer {origin} can't be reached ({one_line(reason or str(error)) or type(error).__name__}). Check "
            "the network, and whether this machine can reach it."
        ) from error
