"""Fetches an issuer's public keys over HTTPS: bounded in size and time, and without following redirects."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from clustercert.authn.oidc.issuers import KeySource
from clustercert.authn.oidc.jwks import UnusableKeySet, VerificationKey, parse_key_set
from clustercert.authn.oidc.refusal import shown
from clustercert.http_client import UnreadableResponse, exchange, new_client
from clustercert.model.addresses import is_https_url

if TYPE_CHECKING:
    import httpx

FETCH_SECONDS = 10.0
# Connections for the discovery document and for the keys, which may be on different hosts.
_CONNECTIONS = 2

FetchKeys = Callable[[], Awaitable[tuple[VerificationKey, ...]]]


class FetchFailed(Exception):
    """The keys could not be fetched. The message says why."""


async def fetch_keys(
    issuer: str,
    source: KeySource,
    seconds: float = FETCH_SECONDS,
    from_cluster: Callable[[str], Awaitable[bytes]] | None = None,
) -> tuple[VerificationKey, ...]:
    """Fetch the keys of an issuer. Raises FetchFailed.

    Args:
        from_cluster: returns the key set of a registered cluster, by the cluster's id. Raises FetchFailed.
    """
    try:
        async with asyncio.timeout(seconds):
            if source.cluster is not None and from_cluster is not None:
                return parse_key_set(await from_cluster(source.cluster))
            if source.keys_file is not None:
                return parse_key_set(await asyncio.to_thread(source.keys_file.read_bytes))
            return await _over_https(issuer, source, seconds)
    except TimeoutError:
        raise FetchFailed(f"no complete response within {seconds:g} seconds") from None
    except UnusableKeySet as error:
        raise FetchFailed(str(error)) from None
    except OSError as error:
        raise FetchFailed(f"{source.keys_file or source.ca_file}: {error.strerror or error}") from None


async def _over_https(issuer: str, source: KeySource, seconds: float) -> tuple[VerificationKey, ...]:
    import httpx  # noqa: PLC0415 - the import takes 45 ms, and most services have no issuer

    # Read the CAs each time, so that a renewed file needs no restart. In a thread, because it takes 20 ms.
    tls = await asyncio.to_thread(_tls, source)
    try:
        async with new_client(tls, _CONNECTIONS, proxy=source.proxy) as client:
            address = source.jwks_uri or await _discover(client, issuer, source.discovery_url, seconds)
            return parse_key_set(await _get(client, address, seconds))
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
        raise FetchFailed(f"{type(error).__name__}: {error}"[:200]) from None


async def _discover(client: "httpx.AsyncClient", issuer: str, discovery_url: str, seconds: float) -> str:
    """Return the address of the keys. Source: OpenID Connect Discovery 1.0, 4.3."""
    content = await _get(client, discovery_url, seconds)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise FetchFailed("the discovery document is not JSON") from None
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise FetchFailed("the discovery document names another issuer")
    address = document.get("jwks_uri")
    if not isinstance(address, str) or not is_https_url(address):
        raise FetchFailed("the discovery document has no https address jwks_uri")
    return address


async def _get(client: "httpx.AsyncClient", url: str, seconds: float) -> bytes:
    try:
        response = await exchange(client, client.build_request("GET", url), seconds)
    except UnreadableResponse as error:
        raise FetchFailed(f"{url} sent {error}") from None
    if 300 <= response.status < 400:  # noqa: PLR2004 - RFC 9110: redirection
        where = shown(response.headers.get("location"))
        raise FetchFailed(f"{url} redirects to {where or 'nowhere'}; redirects are not followed")
    if response.status != 200:  # noqa: PLR2004 - RFC 9110: success with a body
        raise FetchFailed(f"{url} answered with status {response.status}")
    return response.content


def _tls(source: KeySource) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(source.ca_file) if source.ca_file is not None else None)
