"""HTTP from this service to others: API servers, issuers, Keystone, and servers that keep checkpoints.

An answer may come from a tenant or an attacker. So it is bounded in size and time, and must not be compressed.
Redirects are not followed, cookies are not kept, and proxy settings in the environment are ignored.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clustercert import __version__

if TYPE_CHECKING:
    import httpx

# Documents and tokens have a few kilobytes, a list of 500 groups from Keystone has 200 kilobytes.
MAX_RESPONSE_BYTES = 512 * 1024
# A body in chunks of one byte costs a thousand times as much as in large ones, so other tasks run in between.
_CHUNKS_WITHOUT_YIELD = 50


class UnreadableResponse(Exception):
    """A response that is not read to its end. The message says what was sent."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response. The names of its headers are in lower case."""

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
    """Create a client. Send its requests with `exchange`, which limits their time.

    Args:
        connections: how many may be open at once.
        base_url: prefix of requests with an absolute path.
        connect_seconds: time limit for a new connection, if it is shorter than that of the exchange.
    """
    from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415 - httpx imports it

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
        seconds: time limit from waiting for a connection until the last byte.

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
