"""HTTP client for Kubernetes API servers, OIDC issuers, Keystone, and servers that store audit checkpoints.

A response may come from a tenant or an attacker. The client therefore limits the size of a response and the time for
receiving it, and rejects compressed responses. Redirects are not followed, cookies are not kept, and proxy settings in
the environment are ignored.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    async with asyncio.timeout(seconds):
        response = await client.send(request, stream=True)
        try:
            content = await _read_body(response, max_bytes)
        finally:
            await response.aclose()
    return Response(response.status_code, dict(response.headers), content)


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
