"""Connections of the client: HTTP with only the standard library, time limits, TLS and trust."""

import _ssl
import base64
import hashlib
import http.client
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import ClassVar, NamedTuple, Protocol, Self
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from clustercert import __version__
from clustercert.client import clock_difference
from clustercert.model import JsonObject
from clustercert.model.errors import ClustercertError
from clustercert.model.requests import is_loopback
from clustercert.model.times import rfc3339

CONNECT_SECONDS = 10
RESPONSE_SECONDS = 60
# Services close idle connections after a few seconds. A connection that was idle for longer than IDLE_SECONDS is
# replaced.
IDLE_SECONDS = 2
_PORTS = {"http": 80, "https": 443}
_CHUNK = 64 * 1024
# The maximum size of a response, enough for a list of about ten thousand clusters. A kubeconfig is much smaller.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
# The maximum length of a service's message. A refusal by the policy names rules, groups and a command, each of them
# possibly long.
MAX_MESSAGE = 3000
# The path of this service's own API, which CCE does not have.
OWN = "/clustercert/v1"
# How many resources `list_all` requests at once.
_PAGE = 500
# The maximum number of pages in a list, enough for 5 million resources.
MAX_PAGES = 10_000
# The maximum length of a cursor. A longer cursor is not sent.
_MAX_CURSOR = 4096
# Services reject a signature if the clocks differ by more than this.
SKEW = timedelta(minutes=15)
_ITS_CLOCK = "the service's"
# OpenSSL's messages for X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_REASONS_OF_TIME = ("certificate is not yet valid", "certificate has expired")
# Python's messages for X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_REASONS_OF_ADDRESS = ("Hostname mismatch", "IP address mismatch")


class HttpRequest(NamedTuple):
    """An HTTP request.

    Attributes:
        target: path and query, percent-encoded.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    content: bytes


class Reply(NamedTuple):
    """Status and headers of an HTTP response.

    `read(n)` returns at most n bytes of the body, and no bytes at the end of the body.
    """

    status: int
    headers: http.client.HTTPMessage
    read: Callable[[int], bytes]

    def body(self, limit: int) -> bytes | None:
        """Read the whole body. Stops and returns `None` if the body is larger than `limit` bytes."""
        content = bytearray()
        while chunk := self.read(_CHUNK):
            content += chunk
            if len(content) > limit:
                return None
        return bytes(content)


class Transport(Protocol):
    """Sends requests. Raises OSError or http.client.HTTPException, and ValueError if a header is not valid."""

    def open(self) -> None: ...
    def send(self, request: HttpRequest) -> Reply: ...
    def close(self) -> None: ...


class HttpTransport:
    """Sends requests over HTTP or HTTPS.

    Args:
        tls: the TLS context, used only for https.
        response_seconds: time limit for a whole response; by default RESPONSE_SECONDS.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None, response_seconds: float | None = None) -> None:
        self._response_seconds = RESPONSE_SECONDS if response_seconds is None else response_seconds
        self._url = urlsplit(url)
        self._tls = tls
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    @property
    def tls_socket(self) -> ssl.SSLSocket:
        """The socket of the open TLS connection. Raises OSError if no TLS connection is open."""
        if self._connection is None or not isinstance(self._connection.sock, ssl.SSLSocket):
            raise OSError("the connection is not open")
        return self._connection.sock

    def open(self) -> None:
        """Connect. Raises OSError."""
        if self._connection is None:
            self._connect()

    def send(self, request: HttpRequest) -> Reply:
        if self._connection is not None and time.monotonic() - self._used > IDLE_SECONDS:
            self.close()
        connection = self._connection or self._connect()
        try:
            connection.request(
                request.method,
                request.target,
                request.content or None,
                dict(request.headers),
            )
            limit = _TimeLimit(connection.sock, self._response_seconds)
            with limit.enforced():
                response = connection.getresponse()
                if limit.expired:
                    response.close()
                    raise TimeoutError
        except BaseException:
            self.close()
            raise
        self._used = time.monotonic()
        return Reply(response.status, response.headers, lambda size: self._read(response, size, limit))

    def _read(self, response: http.client.HTTPResponse, size: int, limit: "_TimeLimit") -> bytes:
        try:
            with limit.enforced():
                content = response.read(size)
                if limit.expired:
                    raise TimeoutError
        except BaseException:
            response.close()
            self.close()
            raise
        if not content:
            limit.cancel()
        return content

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        proxy = _proxy(self._url)
        connection = self._through(proxy) if proxy is not None else self._open(self._url)
        connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(self._response_seconds)
        self._connection = connection
        return connection

    def _through(self, proxy: SplitResult) -> http.client.HTTPConnection:
        headers = {}
        if proxy.username is not None:
            credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            headers["Proxy-Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        connection = self._open(proxy)
        connection.set_tunnel(self._url.hostname or "", self._url.port or _PORTS[self._url.scheme], headers)
        return connection

    def _open(self, address: SplitResult) -> http.client.HTTPConnection:
        """Create a connection to the service or to a proxy. TLS to the service goes through the proxy."""
        port = address.port or _PORTS[address.scheme]
        if self._url.scheme == "https":
            return http.client.HTTPSConnection(
                address.hostname or "", port, timeout=CONNECT_SECONDS, context=self._tls
            )
        return http.client.HTTPConnection(address.hostname or "", port, timeout=CONNECT_SECONDS)


class _TimeLimit:
    """Shuts a socket down when a response takes too long.

    The socket's own time-out is not enough, because each received byte restarts that time-out.
    """

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self._socket = connected
        self.expired = False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Turn errors in the `with` block into TimeoutError if the time limit has expired.

        The code in the block must check `expired` after reading, because a shut-down socket looks like the end of the
        response.
        """
        try:
            yield
        except Exception as error:
            self.cancel()
            if self.expired:
                raise TimeoutError from error
            raise

    def cancel(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        with suppress(OSError):
            # Call the base class: SSLSocket.shutdown would drop the TLS state, which the reading thread still needs.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _proxy(url: SplitResult) -> SplitResult | None:
    """Return the proxy that environment variables name for an address, or `None`.

    Raises UnusableProxy.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - costs 10 ms

    proxies = getproxies()
    name = url.scheme if proxies.get(url.scheme) else "all"
    address = proxies.get(name)
    if address is None or proxy_bypass(url.netloc):
        return None
    # The message does not repeat the address, which may contain a password.
    unusable = UnusableProxy(f"the proxy in {name}_proxy is not an http:// address")
    try:
        proxy = urlsplit(address if "://" in address else f"http://{address}")
        port = proxy.port
    except ValueError:
        raise unusable from None
    if proxy.scheme != "http" or not proxy.hostname or port == 0:
        raise unusable
    return proxy


class UnusableProxy(OSError):
    """The environment variable for the proxy does not contain the address of an HTTP proxy."""


class ClientError(ClustercertError):
    """A request failed, or its options are invalid."""


class InvalidArgument(ClientError, status=400, code="CCE.01400001"):
    """An address or a name is not valid, so nothing was sent."""


class Unreachable(ClientError, status=503, code="CCE.01503001"):
    """The service could not be reached, or did not answer."""


def certificate_advice(reason: str) -> str | None:
    """Return what to do if OpenSSL rejects a certificate because of its period of validity or its addresses."""
    if reason in _REASONS_OF_TIME:
        return (
            f"The clock of this machine says {rfc3339(datetime.now(UTC))}. If this is wrong, correct the "
            "clock. Otherwise, ask the operator of the service for a valid certificate."
        )
    if reason.startswith(_REASONS_OF_ADDRESS):
        return "Use an address that the certificate names."
    return None


class UntrustedCertificate(ClientError, status=503, code="CCE.01503001"):
    """The service's certificate is not from a trusted CA, or does not name the service's address.

    Attributes:
        rejection: OpenSSL's reason, as one line without a full stop. The error message contains this reason.
    """

    def __init__(self, url: str, reason: str) -> None:
        advice = certificate_advice(reason) or (
            "If the service has a new certificate, run `clustercert login`, and compare the shown "
            "fingerprint with the operator's. If you log in with environment variables, name the CA in "
            "CLUSTERCERT_CA_FILE or OS_CACERT."
        )
        super().__init__(f"The certificate of {url} is not trusted ({reason}). {advice}")
        self.rejection = reason


class ApiError(ClientError):
    """The service returned an error.

    Attributes:
        http_status: the HTTP status of the response, such as 404.
    """

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class ApiResponse(NamedTuple):
    """A successful response. `body` is `{}` if the response has no body."""

    status: int
    headers: http.client.HTTPMessage
    body: JsonObject


class Auth(Protocol):
    """Authenticates requests."""

    def headers(self, request: HttpRequest) -> Mapping[str, str]:
        """Return the headers to add to a request."""


class ServiceClient:
    """Sends requests to one service, and connects on the first request. The methods raise only ClientError.

    Attributes:
        trace: if set, called for each request with a log line, which contains no secrets.
        recommend: called with the version of the command line that the service recommends, if a response names one.
        max_response: the largest response that is read, in bytes.
    """

    trace: ClassVar[Callable[[str], None] | None] = None
    max_response = MAX_RESPONSE_BYTES
    recommend: Callable[[str], None] = staticmethod(lambda _version: None)

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
    ) -> ApiResponse:
        """Send a request and return the response. Raises ClientError."""
        reply, content = self._send(method, path, body, headers or {})
        if not content:
            return ApiResponse(reply.status, reply.headers, {})
        with self.check_format():
            response = ApiResponse(reply.status, reply.headers, json_object(json.loads(content)))
        if isinstance(version := response.body.get("recommended_client"), str):
            self.recommend(version)
        return response

    def list_all(self, path: str, name: str, /, **query: str) -> Iterator[JsonObject]:
        """Yield all resources of a paged list of the service's own API.

        Args:
            path: the path below `OWN`.
            name: the field of each page that contains the resources.
            query: further query parameters.
        """
        start = f"{OWN}{path}?{urlencode({'limit': _PAGE, **query}, quote_via=quote, safe='')}"

        def read(cursor: str | None) -> JsonObject:
            more = f"&cursor={quote(cursor, safe='')}" if cursor is not None else ""
            return self.exchange("GET", start + more).body

        for page in self.follow(read):
            with self.check_format():
                found = _objects(page[name])
            yield from found

    def follow(
        self, page: Callable[[str | None], JsonObject], most_pages: int = MAX_PAGES
    ) -> Iterator[JsonObject]:
        """Yield the pages of a list. Raises ClientError if the pages have no end.

        Args:
            page: returns the page after a cursor, or the first page for `None`.
        """
        seen: set[int] = set()
        cursor = None
        while True:
            found = page(cursor)
            yield found
            if found.get("next") is None:
                return
            cursor = str(found["next"])
            if hash(cursor) in seen or len(cursor) > _MAX_CURSOR or len(seen) + 1 >= most_pages:
                raise ClientError(
                    f"A list of {self.url} has no end: stopped after page {len(seen) + 1}. Check the address, and tell "
                    "the operator of the service."
                )
            seen.add(hash(cursor))

    def download(self, path: str, headers: Mapping[str, str]) -> bytes:
        """Return the body of a GET response, which need not be JSON. Raises ClientError."""
        return self._send("GET", path, None, headers)[1]

    def clock_problem(self) -> str | None:
        """Return sentences about this machine's clock, if it differs from the service's by more than a minute.

        Raises ClientError.
        """
        asked = datetime.now(UTC)
        there = _date(self._send("GET", "/healthz", None, {})[0])
        if there is None:
            return None
        # The service answered at some time between the request and now.
        here = min(max(there, asked), datetime.now(UTC))
        if abs(here - there) <= clock_difference.NOTICED:
            return None
        return clock_difference.described(here, there, _ITS_CLOCK)

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
        if ServiceClient.trace is not None:
            milliseconds = (time.monotonic() - started) * 1000
            request_id = reply.headers.get("X-Request-Id", "none")
            ServiceClient.trace(
                f"{method} {self.url}{path}: {reply.status}, {milliseconds:.0f} ms, request {request_id}"
            )
        if not HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES:
            raise _api_error(request, reply, content, self.url)
        return reply, content

    def _request(
        self, method: str, path: str, body: JsonObject | None, headers: Mapping[str, str]
    ) -> HttpRequest:
        content = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        all_headers = {
            "Host": urlsplit(self.url).netloc,
            "User-Agent": f"clustercert/{__version__}",
            "Accept": "application/json",
            **({"Content-Type": "application/json"} if body is not None else {}),
            **headers,
        }
        request = HttpRequest(method, path, all_headers, content)
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


def _objects(value: object) -> list[JsonObject]:
    if not isinstance(value, list):
        raise TypeError("The value is not a list.")
    return [json_object(each) for each in value]


def service_url(text: str, *, plain_http: bool = False) -> str:
    """Parse a service's base URL from a user's input, which may end in `/v3` or a slash. The default scheme is https.

    Raises InvalidArgument if the URL is not valid, or if it is `http://` to another machine and `plain_http` is false.
    """
    try:
        # A word without a dot or a port is not an address, but perhaps the name of a profile.
        is_host = "://" not in text and not {".", ":"}.isdisjoint(text)
        parts = urlsplit(f"https://{text}" if is_host else text)
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
    """Create a TLS context that trusts the CAs in `ca_pem`, or by default this machine's CAs. Raises ClientError.

    Like curl and kubectl, the context accepts CAs without the extensions that RFC 5280 requires. A chain may end at any
    certificate in `ca_pem`.
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
        raise Unreachable(
            f"{url} did not answer in time{through_proxy(url)}. Check the network and {_cause_to_check(url)}."
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise UntrustedCertificate(url, one_line(error.verify_message).rstrip(".")) from error
    except (http.client.HTTPException, ssl.SSLError) as error:
        raise Unreachable(
            f"{url} does not answer with valid HTTP{through_proxy(url)} ({_reason(error)}). Check whether "
            "the address must begin with https or http."
        ) from error
    except UnusableProxy as error:
        raise Unreachable(
            f"Can't connect to {url} ({error}). Correct the variable, or name the service in no_proxy."
        ) from error
    except OSError as error:
        raise Unreachable(
            f"Can't connect to {url}{through_proxy(url)} ({_reason(error)}). Check {_cause_to_check(url)}, and that "
            "the service is running."
        ) from error
    except ValueError as error:
        # The exception's message is not shown, because it may contain the header with the token.
        raise ClientError(
            f"The login at {url} contains characters that can't be sent. Log in again."
        ) from error


def through_proxy(url: str) -> str:
    """Return a phrase that names the proxy for an address, or an empty text if no proxy is used."""
    with suppress(OSError):
        if (proxy := _proxy(urlsplit(url))) is not None:
            return f" through the proxy http://{proxy.hostname}{f':{proxy.port}' if proxy.port else ''}"
    return ""


def _cause_to_check(url: str) -> str:
    if not through_proxy(url):
        return "the address"
    return f"the address, and the variables {urlsplit(url).scheme}_proxy, all_proxy and no_proxy"


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return one_line(text or str(error)) or type(error).__name__


def _api_error(request: HttpRequest, reply: Reply, content: bytes, url: str) -> ClientError:
    """Create the exception for an error response, with the service's message."""
    try:
        body = json_object(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return ApiError(
            f"{url} answered with status {reply.status} and no message. Check the address, and "
            "ask the operator of the service.",
            reply.status,
        )
    inner = body.get("error")
    fields = inner if isinstance(inner, dict) else body
    message = fields.get("error_msg") or fields.get("errorMessage") or fields.get("message") or "No message."
    code = fields.get("error_code") or fields.get("errorCode") or fields.get("code") or reply.status
    request_id = body.get("request_id") or reply.headers.get("X-Request-Id") or "unknown"
    text = f"{one_line(str(message))} ({one_line(str(code))}, request {one_line(str(request_id))})"
    return ApiError(text + _clock_hint(request, reply), reply.status)


def _clock_hint(request: HttpRequest, reply: Reply) -> str:
    """Return advice if the service may have rejected a signature because of a wrong clock."""
    if reply.status != HTTPStatus.UNAUTHORIZED or "X-Sdk-Date" not in request.headers:
        return ""
    from clustercert.pki.request_signature import TIMESTAMP_FORMAT  # noqa: PLC0415 - only signed requests need it

    there = _date(reply)
    try:
        here = datetime.strptime(request.headers["X-Sdk-Date"], TIMESTAMP_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return ""
    if there is None or abs(there - here) < SKEW:
        return ""
    return f" {clock_difference.described(here, there, _ITS_CLOCK)}"


def _date(reply: Reply) -> datetime | None:
    """Return the time of the response by the service's clock, or `None` if the response does not contain this time."""
    try:
        return datetime.strptime(reply.headers.get("Date", ""), "%a, %d %b %Y %H:%M:%S GMT").replace(
            tzinfo=UTC
        )
    except ValueError:
        return None


def one_line(text: str) -> str:
    """Return the beginning of a text on one line, for messages."""
    return " ".join(text.split())[:MAX_MESSAGE]


@dataclass(frozen=True, slots=True)
class PresentedCertificate:
    """A certificate that a service sent. The certificate is not verified.

    Attributes:
        fingerprint: SHA-256 of the DER, lower-case hex.
    """

    pem: str
    fingerprint: str


def rejection(url: str, ca_pem: str | None) -> str | None:
    """Return why OpenSSL rejects the service's certificate, or None if OpenSSL trusts it.

    Raises ClientError if the service can't be reached.
    """
    try:
        with ServiceClient(url, ca_pem=ca_pem) as connection:
            connection.open()
    except UntrustedCertificate as error:
        return error.rejection
    return None


def presented_chain(url: str) -> tuple[PresentedCertificate, ...]:
    """Return the certificates that the service sends, leaf first.

    Sends nothing over the unverified connection. Raises ClientError.
    """
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    with ServiceClient(url, transport=(transport := HttpTransport(url, unverified))) as connection:
        connection.open()
        return tuple(
            PresentedCertificate(ssl.DER_cert_to_PEM_cert(der), hashlib.sha256(der).hexdigest())
            for der in _chain(transport.tls_socket)
        )


def _chain(connection: ssl.SSLSocket) -> list[bytes]:
    if sys.version_info >= (3, 13):
        return connection.get_unverified_chain()
    else:  # noqa: RET505 - mypy checks only the branch for its own Python version
        return _private_chain(connection)


def _private_chain(connection: ssl.SSLSocket) -> list[bytes]:
    """Return the chain in Python 3.11 and 3.12, as `get_unverified_chain` does in Python 3.13.

    The public API of these versions returns only the leaf, but users must be able to compare the fingerprint of the CA.
    """
    chain = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined] # noqa: SLF001 - see above
    return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in chain or ()]
