"""HTTP client for Kubernetes API servers, OIDC issuers, Keystone, OpenBao, and receivers of checkpoints and messages.

A response may come from a tenant or an attacker. The client therefore limits the size of a response and the time for
receiving it, and rejects compressed responses. Redirects are not followed, cookies are not kept, and proxy settings in
the environment are ignored.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from clustercert import __version__

if TYPE_CHECKING:
    import httpx2

# OIDC documents and tokens have a few kilobytes. A list of 500 groups from Keystone has 200 kilobytes.
MAX_RESPONSE_BYTES = 512 * 1024
# How many chunks of a response body to read before other tasks can run. A body that arrives in chunks of one byte takes
# a thousand times as long to read as a body in large chunks.
_CHUNKS_WITHOUT_YIELD = 50


class UnreadableResponse(Exception):
    """A response that is compressed or too long to read. The message says what the server sent."""


class ConnectionFailed(Exception):
    """No complete response arrived. The message says why."""


class CannotConnect(ConnectionFailed):
    """The connection, its TLS handshake or the tunnel through a proxy failed. The request was not sent."""


class UntrustedServer(CannotConnect):
    """The server's certificate is not valid for its name, or no trusted CA has issued the certificate."""


class ConnectionLost(ConnectionFailed):
    """The connection ended, or the response is not HTTP. The server may have processed the request."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response. The header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


class HttpClient:
    """A client with its own pool of connections."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        connections: int,
        *,
        base_url: str = "",
        proxy: str | None = None,
        connect_seconds: float | None = None,
    ) -> None:
        """Connect later, at the first request.

        Args:
            connections: maximum number of open connections.
            base_url: prefix of requests with an absolute path.
            connect_seconds: time limit for opening a connection; `None`: only the time limit of the request applies.
        """
        from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415 - httpx2 imports this module too

        import httpx2  # noqa: PLC0415 - the import takes 30 ms, and most services send no requests

        self._http = httpx2.AsyncClient(
            base_url=base_url,
            verify=tls,
            timeout=httpx2.Timeout(None, connect=connect_seconds),
            limits=httpx2.Limits(max_connections=connections),
            headers={
                "User-Agent": f"clustercert/{__version__}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            follow_redirects=False,
            trust_env=False,
            proxy=proxy,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def use_token(self, token: str) -> None:
        """Authenticate the next requests with a bearer token."""
        self._http.headers["Authorization"] = f"Bearer {token}"

    async def send(
        self,
        method: str,
        url: str,
        seconds: float,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, object] | bytes | None = None,
        max_bytes: int = MAX_RESPONSE_BYTES,
        retry: bool = False,
    ) -> Response:
        """Send a request and read the whole response.

        Args:
            seconds: time limit, including the wait for a free connection.
            body: a mapping is sent as JSON.
            retry: send the request again, once, if the connection is lost. The server may close an idle connection just
                when the client uses it again.

        Raises ConnectionFailed, TimeoutError, or UnreadableResponse if the response is compressed or too long.
        """
        content: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        with _translated_failures():
            request = self._http.build_request(method, url, headers=headers, params=params, **content)
        try:
            async with asyncio.timeout(seconds):
                try:
                    return await self._exchange(request, max_bytes)
                except ConnectionLost:
                    if not retry:
                        raise
                    return await self._exchange(request, max_bytes)
        except TimeoutError:
            raise TimeoutError(f"no complete response within {seconds:g} seconds") from None

    async def _exchange(self, request: "httpx2.Request", max_bytes: int) -> Response:
        request.extensions["trace"] = _closing_unfinished_handshakes()
        with _translated_failures():
            response = await self._http.send(request, stream=True)
            try:
                content = await _read_body(response, max_bytes)
            finally:
                await response.aclose()
        return Response(response.status_code, dict(response.headers), content)


@contextlib.contextmanager
def _translated_failures() -> Iterator[None]:
    """Raise ConnectionFailed or TimeoutError for the exceptions of the library."""
    import httpx2  # noqa: PLC0415 - see HttpClient

    try:
        yield
    except httpx2.TimeoutException as error:
        raise TimeoutError(f"{type(error).__name__}: {error}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError) as error:
        kind = ConnectionFailed
        if isinstance(error, httpx2.ConnectError | httpx2.ProxyError | ssl.SSLError):
            kind = UntrustedServer if "CERTIFICATE_VERIFY_FAILED" in str(error) else CannotConnect
        elif isinstance(error, httpx2.ReadError | httpx2.WriteError | httpx2.RemoteProtocolError):
            kind = ConnectionLost
        raise kind(f"{type(error).__name__}: {error}") from None


def _closing_unfinished_handshakes() -> Callable[[str, Mapping[str, Any]], Awaitable[None]]:
    """Return a callback for httpx2 that closes the connection of a request that ends during its TLS handshake.

    If the request is cancelled or takes too long, httpcore2 leaves the connection open.
    """
    opened: list[Any] = []

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            opened.append(info["return_value"])
        elif event.endswith("start_tls.failed"):
            while opened:
                await opened.pop().aclose()

    return trace


async def _read_body(response: "httpx2.Response", max_bytes: int) -> bytes:
    # A compressed body could be a million times larger than it seems.
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UnreadableResponse("a compressed response")
    content, chunks = bytearray(), 0
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > max_bytes:
            raise UnreadableResponse(f"more than {max_bytes} bytes")
        chunks += 1
        if chunks % _CHUNKS_WITHOUT_YIELD == 0:
            await asyncio.sleep(0)
    return bytes(content)


class ServerConnection:
    """Connections to one server, whose certificate is verified with the CAs of a file or of the system."""

    def __init__(self, url: str, ca_file: Path | None, connections: int, seconds: float) -> None:
        """Connect later, at the first request.

        Args:
            url: prefix of the paths of all requests.
            connections: maximum number of open connections.
            seconds: time limit for one request, including the time to connect.
        """
        self._url = url
        self._ca_file = ca_file
        self._connections = connections
        self._seconds = seconds
        self._opening = asyncio.Lock()
        self._http: HttpClient | None = None
        self._tls: ssl.SSLContext | None = None
        self._is_ca_stale = False

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Mapping[str, object] | bytes | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request. Retries once if a keep-alive connection turns out to be closed.

        Args:
            body: a mapping is sent as JSON.

        Raises ConnectionFailed, or UnreadableResponse if the response is compressed or too long.
        """
        url = f"{self._url}{path}"
        try:
            async with asyncio.timeout(self._seconds):
                http = await self._client()
                return await http.send(
                    method, url, self._seconds, headers=headers, params=params, body=body, retry=True
                )
        except TimeoutError:
            raise ConnectionFailed(f"no complete response within {self._seconds:g} seconds") from None
        except UntrustedServer:
            self._is_ca_stale = True
            raise
        except OSError as error:
            raise ConnectionFailed(f"{self._ca_file}: {error.strerror or error}") from None

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def _client(self) -> HttpClient:
        async with self._opening:
            if self._tls is None:
                # Loading the CAs takes 20 ms, so use a thread.
                self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._ca_file)
            elif self._is_ca_stale and self._ca_file is not None:
                # Load the CA file again after a verification failure, so that a renewed CA file needs no restart.
                await asyncio.to_thread(self._tls.load_verify_locations, self._ca_file)
            self._is_ca_stale = False
            if self._http is None:
                self._http = HttpClient(self._tls, self._connections)
            return self._http
