"""HTTP to the identity systems that the operator trusts: responses are bounded, and redirects are not followed."""

import ssl
from typing import TYPE_CHECKING

from clustercert import __version__

if TYPE_CHECKING:
    import httpx

# Documents and tokens have a few kilobytes, a list of 500 groups from Keystone has 200 kilobytes.
MAX_RESPONSE_BYTES = 512 * 1024


class UnreadableResponse(Exception):
    """A response that is not read to its end. The message says what was sent."""


def new_client(
    tls: ssl.SSLContext, seconds: float, connections: int, proxy: str | None = None
) -> "httpx.AsyncClient":
    """Create a client.

    Args:
        seconds: time limit for each step of a request. Callers also limit the time of the whole request.
        connections: how many may be open at once.
    """
    import httpx  # noqa: PLC0415 - the import takes 45 ms, and most services ask no identity system

    return httpx.AsyncClient(
        verify=tls,
        timeout=seconds,
        limits=httpx.Limits(max_connections=connections),
        # Compressed responses could be larger than they seem.
        headers={
            "User-Agent": f"clustercert/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
        # Ignore proxy settings in this process's environment.
        trust_env=False,
        proxy=proxy,
    )


async def read_body(response: "httpx.Response") -> bytes:
    """Read the body of a streamed response. Raises UnreadableResponse if it is compressed or too long."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UnreadableResponse("a compressed response")
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_RESPONSE_BYTES:
            raise UnreadableResponse(f"more than {MAX_RESPONSE_BYTES} bytes")
    return bytes(content)
