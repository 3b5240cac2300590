"""An HTTP connection that sends and receives JSON objects and turns every failure into a ClientError."""

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import ClassVar, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

from clustercert import __version__
from clustercert.client.transport import HttpTransport, Reply, Request, Transport
from clustercert.model import JsonObject
from clustercert.model.addresses import is_loopback
from clustercert.model.errors import ClustercertError

# The maximum size of a response, enough for a list of about ten thousand clusters. A kubeconfig is much smaller.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
MAX_MESSAGE = 500
# Services reject a signature if the clocks differ by more than this.
SKEW = timedelta(minutes=15)
# OpenSSL's texts for X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_REASONS_OF_TIME = ("certificate is not yet valid", "certificate has expired")
# Python's texts for X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_REASONS_OF_ADDRESS = ("Hostname mismatch", "IP address mismatch")


class ClientError(ClustercertError):
    """A request failed, or its options are invalid."""


class InvalidArgument(ClientError, status=400, code="CCE.01400001"):
    """An address or a name is not valid, so nothing was sent."""


class Unreachable(ClientError, status=503, code="CCE.01503001"):
    """The service could not be reached, or did not answer."""


class UntrustedCertificate(ClientError):
    """The service's certificate is not from a trusted CA, or does not name the service's address.

    Attributes:
        rejection: what OpenSSL says, as one line without a full stop. The message has it, too.
    """

    def __init__(self, url: str, reason: str) -> None:
        advice = (
            "If the service has a new certificate, run `clustercert login`, and compare the fingerprint that it shows "
            "with the operator's. With OpenStack's variables, name the CA in OS_CACERT."
        )
        if reason in _REASONS_OF_TIME:
            advice = (
                "Check the clock of this machine, and ask the operator whether the certificate has expired."
            )
        elif reason.startswith(_REASONS_OF_ADDRESS):
            advice = "Use an address that the certificate names."
        super().__init__(f"The certificate of {url} is not trusted ({reason}). {advice}")
        self.rejection = reason


class ApiError(ClientError):
    """The service returned an error.

    Attributes:
        http_status: 400 to 599.
    """

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class Response(NamedTuple):
    """A successful response. `body` is `{}` if the response has no body."""

    headers: http.client.HTTPMessage
    body: JsonObject


class Auth(Protocol):
    """Authenticates requests."""

    def headers(self, request: Request) -> Mapping[str, str]:
        """Return the headers to add to a request."""


class Connection:
    """Connects to one service, on the first request. Raises ClientError, and no other exception.

    Attributes:
        trace: receives a line without secrets for each request, if set.
        max_response: the largest response that is read, in bytes.
    """

    trace: ClassVar[Callable[[str], None] | None] = None
    max_response = MAX_RESPONSE_BYTES

    def __init__(
        self,
        url: str,
        auth: Auth | None = None,
        *,
        ca_pem: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        """`url` is the result of `service_url`. `ca_pem` replaces the CAs that this machine trusts."""
        self.url = url
        self.auth = auth
        secure = url.startswith("https:") or ca_pem is not None
        self._transport = transport or HttpTransport(url, tls_context(ca_pem) if secure else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._transport.close()

    def open(self) -> None:
        """Connect before the first request, to check the service's certificate. Raises ClientError."""
        with _translate_failures(self.url):
            self._transport.open()

    def exchange(
        self,
        method: str,
        path: str,
        *,
        body: JsonObject | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request and return the response. Raises ClientError."""
        reply, content = self._send(method, path, body, headers or {})
        if not content:
            return Response(reply.headers, {})
        with self.check_format():
            return Response(reply.headers, json_object(json.loads(content)))

    def download(self, path: str, headers: Mapping[str, str]) -> bytes:
        """Return the body of a GET response, which need not be JSON. Raises ClientError."""
        return self._send("GET", path, None, headers)[1]

    def _send(
        self, method: str, path: str, body: JsonObject | None, headers: Mapping[str, str]
    ) -> tuple[Reply, bytes]:
        """Send a request and read the response. Raises ClientError."""
        request = self._request(method, path, body, headers)
        started = time.monotonic()
        with _translate_failures(self.url):
            reply = self._transport.send(request)
            content = reply.body(self.max_response)
        if content is None:
            raise ClientError(f"The response is larger than {self.max_response // (1024 * 1024)} MiB.")
        if Connection.trace is not None:
            milliseconds = (time.monotonic() - started) * 1000
            request_id = reply.headers.get("X-Request-Id", "none")
            Connection.trace(
                f"{method} {self.url}{path}: {reply.status}, {milliseconds:.0f} ms, request {request_id}"
            )
        if not HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES:
            raise _api_error(request, reply, content, self.url)
        return reply, content

    def _request(
        self, method: str, path: str, body: JsonObject | None, headers: Mapping[str, str]
    ) -> Request:
        content = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        all_headers = {
            "Host": urlsplit(self.url).netloc,
            "User-Agent": f"clustercert/{__version__}",
            "Accept": "application/json",
            **({"Content-Type": "application/json"} if body is not None else {}),
            **headers,
        }
        request = Request(method, path, all_headers, content)
        return (
            request._replace(headers=all_headers | dict(self.auth.headers(request))) if self.auth else request
        )

    @contextmanager
    def check_format(self) -> Iterator[None]:
        """Turn errors raised in the `with` block, which reads a response, into ClientError."""
        try:
            yield
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise ClientError(
                f"{self.url} sent a response that is not in this service's format. Check the address."
            ) from error


def service_url(text: str, *, plain_http: bool = False) -> str:
    """Parse a service's base URL from a user's input, which may end in `/v3` or a slash.

    Raises InvalidArgument if it is not valid, or if it uses `http://` for another machine without `plain_http`.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    path = parts.path.rstrip("/").removesuffix("/v3")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or path:
        # The message does not repeat the input, which may contain a password.
        raise InvalidArgument(
            "This is not the address of a service. Write it like https://clustercert.example.com, without a path."
        )
    if parts.scheme == "http" and not plain_http and not is_loopback(parts.hostname):
        raise InvalidArgument(
            f"http://{parts.hostname} would send passwords and keys unencrypted. Use https, or add --plain-http if the "
            "network is protected in another way."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"


def json_object(value: object) -> JsonObject:
    """Return the value if it is a JSON object, else raise TypeError."""
    if not isinstance(value, dict):
        raise TypeError("The value is not a JSON object.")
    return value


def tls_context(ca_pem: str | None) -> ssl.SSLContext:
    """Create a TLS context that trusts these CAs, by default this machine's. Raises ClientError.

    It accepts what curl and kubectl accept: CAs without the extensions that RFC 5280 requires, and any certificate in
    the list as the end of a chain.
    """
    try:
        context = ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise ClientError("The CA file is not a PEM file with certificates.") from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@contextmanager
def _translate_failures(url: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Unreachable(f"{url} did not answer in time. Check the address and the network.") from error
    except ssl.SSLCertVerificationError as error:
        raise UntrustedCertificate(url, one_line(error.verify_message).rstrip(".")) from error
    except (http.client.HTTPException, ssl.SSLError) as error:
        raise Unreachable(
            f"{url} does not answer with valid HTTP ({_reason(error)}). Check the address: https or http?"
        ) from error
    except OSError as error:
        raise Unreachable(
            f"Can't connect to {url} ({_reason(error)}). Check the address, and that the service is running."
        ) from error
    except ValueError as error:
        # The exception's message is not shown, because it may contain the header with the token.
        raise ClientError(
            f"The login at {url} contains characters that can't be sent. Log in again."
        ) from error


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return one_line(text or str(error)) or type(error).__name__


def _api_error(request: Request, reply: Reply, content: bytes, url: str) -> ClientError:
    """Create the exception for an error response, with the service's message."""
    try:
        body = json_object(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return ApiError(f"{url} answered with status {reply.status} and no message.", reply.status)
    inner = body.get("error")
    fields = inner if isinstance(inner, dict) else body
    message = fields.get("error_msg") or fields.get("errorMessage") or fields.get("message") or "No message."
    code = fields.get("error_code") or fields.get("errorCode") or fields.get("code") or reply.status
    request_id = body.get("request_id") or reply.headers.get("X-Request-Id") or "unknown"
    text = f"{one_line(str(message))} ({one_line(str(code))}, request {one_line(str(request_id))})"
    return ApiError(text + _clock_hint(request, reply), reply.status)


def _clock_hint(request: Request, reply: Reply) -> str:
    """Return advice if the service may have rejected a signature because of a wrong clock."""
    if reply.status != HTTPStatus.UNAUTHORIZED or "X-Sdk-Date" not in request.headers:
        return ""
    from clustercert.pki.request_signature import TIMESTAMP_FORMAT  # noqa: PLC0415 - only signed requests need it

    try:
        there = datetime.strptime(reply.headers.get("Date", ""), "%a, %d %b %Y %H:%M:%S GMT").replace(
            tzinfo=UTC
        )
        here = datetime.strptime(request.headers["X-Sdk-Date"], TIMESTAMP_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return ""
    if abs(there - here) < SKEW:
        return ""
    return f" The clocks of this machine and the service differ by {abs(there - here) // timedelta(minutes=1)} minutes."


def one_line(text: str) -> str:
    """Return the beginning of a text on one line, for messages."""
    return " ".join(text.split())[:MAX_MESSAGE]
