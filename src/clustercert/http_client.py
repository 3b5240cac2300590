"""HTTP client for Kubernetes API servers, OIDC issuers, Keystone, OpenBao, and receivers of checkpoints and messages.

A response may come from a tenant or an attacker. The client therefore limits the size of a response and the time for
receiving it, and rejects compressed responses. Redirects are not followed, cookies are not kept, and proxy settings in
the environment are ignored.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustercert import __version__

if TYPE_CHECKING:
    import httpx

# OIDC documents and tokens have a few kilobytes. A list of 500 groups from Keystone has 200 kilobytes.
MAX_RESPONSE_BYTES = 512 * 1024
# How many chunks of a response body to read before other tasks can run. A body that arrives in chunks of one byte takes
# a thousand times as long to read as a body in large chunks.
_CHUNKS_WITHOUT_YIELD = 50


class UnreadableResponse(Exception):
    """A response that is compressed or too long to read. The message says what the server sent."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response. The header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


def new_client(
    tls: ssl.SSLContext,
    connections: int,
    *,
    base_url: str = "",
    proxy: str | None = None,
    connect_seconds: float | None = None,
) -> "httpx.AsyncClient":
    """Create an HTTP client. Send requests with `exchange`, which limits the time of a request.

    Args:
        connections: maximum number of open connections.
        base_url: prefix of requests with an absolute path.
        connect_seconds: time limit for opening a connection; `None`: only the time limit of `exchange` applies.
    """
    from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415 - httpx imports this module too

    import httpx  # noqa: PLC0415 - the import takes 45 ms, and most services send no requests

    return httpx.AsyncClient(
        base_url=base_url,
        verify=tls,
        timeout=httpx.Timeout(None, connect=connect_seconds),
        limits=httpx.Limits(max_connections=connections),
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


async def exchange(
    client: "httpx.AsyncClient",
    request: "httpx.Request",
    seconds: float,
    max_bytes: int = MAX_RESPONSE_BYTES,
) -> Response:
    """Send a request and read the whole response.

    Args:
        seconds: time limit for the whole exchange, including the wait for a free connection.

    Raises UnreadableResponse if the response is compressed or too long, TimeoutError, httpx.HTTPError, httpx.InvalidURL
    or ssl.SSLError.
    """
    request.extensions["trace"] = _closing_unfinished_handshakes()
    async with asyncio.timeout(seconds):
        response = await client.send(request, stream=True)
        try:
            content = await _read_body(response, max_bytes)
        finally:
            await response.aclose()
    return Response(response.status_code, dict(response.headers), content)


def _closing_unfinished_handshakes() -> Callable[[str, Mapping[str, Any]], Awaitable[None]]:
    """Return a callback for httpx that closes the connection of a request that ends during its TLS handshake.

    If the request is cancelled or takes too long, httpcore leaves the connection open.
    """
    opened: list[Any] = []

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            opened.append(info["return_value"])
        elif event.endswith("start_tls.failed"):
            while opened:
                await opened.pop().aclose()

    return trace


async def _read_body(response: "httpx.Response", max_bytes: int) -> bytes:
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


class ConnectionFailed(Exception):
    """No complete response arrived. The message says why."""


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
        self._http: httpx.AsyncClient | None = None
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
        import httpx  # noqa: PLC0415 - the import takes 45 ms, and most services send no requests

        url = f"{self._url}{path}"
        try:
            async with asyncio.timeout(self._seconds):
                http = await self._client()
                content: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
                request = http.build_request(method, url, headers=headers, params=params, **content)
                try:
                    return await exchange(http, request, self._seconds)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    return await exchange(http, request, self._seconds)
        except TimeoutError:
            raise ConnectionFailed(f"no complete response within {self._seconds:g} seconds") from None
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                self._is_ca_stale = True
            raise ConnectionFailed(f"{type(error).__name__}: {error}") from None
        except OSError as error:
            raise ConnectionFailed(f"{self._ca_file}: {error.strerror or error}") from None

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _client(self) -> "httpx.AsyncClient":
        async with self._opening:
            if self._tls is None:
                # Loading the CAs takes 20 ms, so use a thread.
                self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._ca_file)
            elif self._is_ca_stale and self._ca_file is not None:
                # Load the CA file again after a verification failure, so that a renewed CA file needs no restart.
                await asyncio.to_thread(self._tls.load_verify_locations, self._ca_file)
            self._is_ca_stale = False
            if self._http is None:
                self._http = new_client(self._tls, self._connections)
            return self._http
