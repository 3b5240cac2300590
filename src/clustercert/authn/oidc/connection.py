"""Requests to OIDC issuers, and their discovery documents."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping

from clustercert.authn.oidc.claims import shown
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.http_client import ConnectionFailed, HttpClient, Response, UnreadableResponse
from clustercert.model import JsonObject

REQUEST_SECONDS = 10.0
# One connection for the discovery document, and one for other addresses, which may be on another host.
_CONNECTIONS = 2


class FetchFailed(Exception):
    """A response did not arrive, or can't be used. The message says why."""


@contextlib.asynccontextmanager
async def connected(issuer: OidcIssuer, seconds: float = REQUEST_SECONDS) -> AsyncIterator[HttpClient]:
    """Open a client for requests to an issuer. The `with` block ends after `seconds` at the latest.

    Raises FetchFailed, also for errors of the client in the `with` block.
    """
    try:
        async with asyncio.timeout(seconds):
            # Read the CAs each time, so that a renewed CA file needs no restart. This takes 20 ms, so use a thread.
            tls = await asyncio.to_thread(_tls, issuer)
            async with HttpClient(tls, _CONNECTIONS, proxy=issuer.proxy) as client:
                yield client
    except TimeoutError:
        raise FetchFailed(f"no complete response within {seconds:g} seconds") from None
    except ConnectionFailed as error:
        raise FetchFailed(str(error)[:200]) from None
    except OSError as error:
        raise FetchFailed(f"{issuer.ca_file}: {error.strerror or error}") from None


async def send(
    client: HttpClient,
    method: str,
    url: str,
    seconds: float = REQUEST_SECONDS,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Response:
    """Send a request. Raises FetchFailed for a redirect or an unreadable response."""
    try:
        response = await client.send(method, url, seconds, headers=headers, body=body)
    except UnreadableResponse as error:
        raise FetchFailed(f"{url} sent {error}") from None
    if 300 <= response.status < 400:  # noqa: PLR2004 - RFC 9110: redirection
        where = shown(response.headers.get("location"))
        raise FetchFailed(f"{url} redirects to {where or 'nowhere'}; redirects are not followed")
    return response


async def get(client: HttpClient, url: str, seconds: float = REQUEST_SECONDS) -> bytes:
    """Return the body of a successful response. Raises FetchFailed for all other responses."""
    response = await send(client, "GET", url, seconds)
    if response.status != 200:  # noqa: PLR2004 - RFC 9110: success with a body
        raise FetchFailed(f"{url} answered with status {response.status}")
    return response.content


async def discovery_document(
    client: HttpClient, issuer: OidcIssuer, seconds: float = REQUEST_SECONDS
) -> JsonObject:
    """Return the issuer's discovery document. Raises FetchFailed. See OpenID Connect Discovery 1.0, section 4.3."""
    content = await get(client, issuer.discovery_address, seconds)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise FetchFailed("the discovery document is not JSON") from None
    if not isinstance(document, dict) or document.get("issuer") != issuer.url:
        raise FetchFailed("the discovery document names a different issuer")
    return document


def _tls(issuer: OidcIssuer) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(issuer.ca_file) if issuer.ca_file is not None else None)
