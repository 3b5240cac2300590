"""Sends HTTP requests to one service over one kept connection, with the standard library alone.

Uses the proxies that the environment names: `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy`.
"""

import base64
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

CONNECT_SECONDS = 10
RESPONSE_SECONDS = 60
# Services close idle connections after a few seconds, so a connection that waited longer is opened again.
IDLE_SECONDS = 2
_PORTS = {"http": 80, "https": 443}
_CHUNK = 64 * 1024


class Request(NamedTuple):
    """An HTTP request.

    Attributes:
        target: path and query, percent-encoded.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    content: bytes


class Reply(NamedTuple):
    """The head of an HTTP response. `read` returns at most the given number of bytes, none at the end."""

    status: int
    headers: http.client.HTTPMessage
    read: Callable[[int], bytes]

    def body(self, limit: int) -> bytes | None:
        """Read the whole body. Returns `None`, and stops reading, if it is larger than the limit, in bytes."""
        content = bytearray()
        while chunk := self.read(_CHUNK):
            content += chunk
            if len(content) > limit:
                return None
        return bytes(content)


class Transport(Protocol):
    """Sends requests. Raises OSError, http.client.HTTPException, or ValueError for a header that is not valid."""

    def open(self) -> None: ...
    def send(self, request: Request) -> Reply: ...
    def close(self) -> None: ...


class HttpTransport:
    """The transport for real services.

    Args:
        tls: used only for https.
        response_seconds: for a whole response; by default RESPONSE_SECONDS.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None, response_seconds: float | None = None) -> None:
        self._response_seconds = RESPONSE_SECONDS if response_seconds is None else response_seconds
        self._url = urlsplit(url)
        self._tls = tls
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    @property
    def tls_socket(self) -> ssl.SSLSocket:
        """The open connection. Raises OSError if it is not open or has no TLS."""
        if self._connection is None or not isinstance(self._connection.sock, ssl.SSLSocket):
            raise OSError("the connection is not open")
        return self._connection.sock

    def open(self) -> None:
        """Connect. Raises OSError."""
        if self._connection is None:
            self._connect()

    def send(self, request: Request) -> Reply:
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
    """Shuts a socket down when a response has taken too long.

    The socket's own time-out is not enough: it starts again with each byte that arrives.
    """

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self._socket = connected
        self.expired = False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Turn errors in the `with` block into TimeoutError if the time is over.

        The block must check `expired` after reading, because the end of the stream may come from the shutdown.
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
            # SSLSocket.shutdown would drop the TLS state, which another thread needs for its read.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _proxy(url: SplitResult) -> SplitResult | None:
    """Return the proxy that the environment names for an address, or `None`. Raises OSError if it can't be used."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - costs 10 ms

    proxies = getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if address is None or proxy_bypass(url.netloc):
        return None
    proxy = urlsplit(address if "://" in address else f"http://{address}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise OSError(f"the proxy in {url.scheme}_proxy is not an http:// address")
    return proxy
