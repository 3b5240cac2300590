"""A small client for a cluster's API server, which authenticates with a client certificate or a token.

The private key stays in memory.
"""

import asyncio
import contextlib
import json
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

from clustercert.background import LoopThread
from clustercert.http_client import (
    CannotConnect,
    ConnectionFailed,
    HttpClient,
    Response,
    UnreadableResponse,
    UntrustedServer,
)
from clustercert.model import JsonObject
from clustercert.model.errors import ClustercertError, RemoteFailed, Unavailable

T = TypeVar("T")

CONNECT_SECONDS = 3.0
RESPONSE_SECONDS = 8.0
# The largest responses are an object of 1.5 MiB (etcd's limit), and a page of bindings, which has a quarter of this
# size. Parsing 2 MiB of JSON from a hostile server can take 100 MB of memory and 0.2 s.
MAX_OBJECT_BYTES = 2 * 1024 * 1024
# A busy API server has tens of thousands of metrics, which only an operator's command reads.
MAX_METRICS_BYTES = 64 * 1024 * 1024
# A client connects to one cluster, and few tasks use the client at once.
MAX_CONNECTIONS = 20
PAGE = 250
"""The maximum number of objects in a page of a list."""
# The maximum number of characters of the server's error message in the log.
MAX_MESSAGE = 500

_HAS_MEMORY_FILES = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
_BUSY = frozenset({429, 503, 504})

_LATE = "The cluster's API server did not respond in time. Try again in a moment."
UNEXPECTED_RESPONSE = "The cluster's API server sent an unexpected response. Tell the operator."


class ApiServerRefused(RemoteFailed):
    """The API server returned an error.

    Attributes:
        http_status: the HTTP status of the response, from 400 to 599.
        server_message: the server's error message, only for the log.
    """

    def __init__(self, http_status: int, server_message: str) -> None:
        super().__init__(
            f"The cluster's API server rejected a request of this service with status {http_status}. Tell the operator."
        )
        self.http_status = http_status
        self.server_message = server_message


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A client certificate and its key, in PEM."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)


class KubeApi:
    """A client of one API server. Its methods raise only ApiServerRefused, RemoteFailed or Unavailable.

    Paths are absolute and have no query. Quote names in a path with `segment`.

    Args:
        identity: the client certificate; `None` for a client that authenticates with a token, see `use_token`.
        seconds: time limit for one request.
    """

    def __init__(
        self,
        url: str,
        server_ca_pem: bytes,
        identity: ClientIdentity | None,
        *,
        seconds: float = RESPONSE_SECONDS,
    ) -> None:
        self._seconds = seconds
        # An API server decides how long its certificates take to verify (70 CAs with costly keys: 0.3 s), and how long
        # its answers take to parse. In a thread of its own, this work delays neither the service nor other clusters.
        self._thread = LoopThread("cluster connection")
        self._http = HttpClient(
            tls_context(server_ca_pem, identity),
            MAX_CONNECTIONS,
            base_url=url,
            connect_seconds=min(seconds, CONNECT_SECONDS),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._thread.close(self._http.close())

    def use_token(self, token: str) -> None:
        """Authenticate the next requests with a bearer token."""
        self._http.use_token(token)

    async def get(
        self, path: str, parameters: Mapping[str, str] | None = None, *, max_bytes: int = MAX_OBJECT_BYTES
    ) -> JsonObject:
        """Fetch the object, or list of objects, at a path."""
        return await self._exchange("GET", path, parameters=parameters, max_bytes=max_bytes)

    async def metrics(self) -> str:
        """Fetch the API server's metrics in Prometheus's text format."""

        async def text() -> str:
            response = await self._send("GET", "/metrics", max_bytes=MAX_METRICS_BYTES)
            if response.status != HTTPStatus.OK:
                _parse_response(response.status, response.content)
            return response.content.decode("utf-8", "replace")

        return await self._in_thread(text())

    async def create(
        self,
        path: str,
        document: JsonObject,
        parameters: Mapping[str, str] | None = None,
        *,
        max_bytes: int = MAX_OBJECT_BYTES,
    ) -> JsonObject:
        """Create an object.

        Raises ApiServerRefused with status 409 if the object exists. After a lost connection, the request is sent
        again, so the first attempt may have created the object.
        """
        return await self._exchange("POST", path, document, parameters, max_bytes)

    async def replace(self, path: str, document: JsonObject) -> JsonObject:
        """Replace an object.

        Raises ApiServerRefused with status 409 if the object in the cluster has a different `resourceVersion`.
        """
        return await self._exchange("PUT", path, document)

    async def delete(self, path: str) -> None:
        """Delete an object if it exists."""
        try:
            await self._exchange("DELETE", path)
        except ApiServerRefused as refused:
            if refused.http_status != HTTPStatus.NOT_FOUND:
                raise

    async def _exchange(
        self,
        method: str,
        path: str,
        document: JsonObject | None = None,
        parameters: Mapping[str, str] | None = None,
        max_bytes: int = MAX_OBJECT_BYTES,
    ) -> JsonObject:
        async def parsed() -> JsonObject:
            response = await self._send(method, path, document, parameters, max_bytes)
            return _parse_response(response.status, response.content)

        return await self._in_thread(parsed())

    async def _in_thread(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            # The request itself has this time limit, but a TLS handshake may delay the end of the request.
            async with asyncio.timeout(self._seconds):
                return await self._thread.run(work)
        except TimeoutError as error:
            raise Unavailable(_LATE) from error

    async def _send(
        self,
        method: str,
        path: str,
        document: JsonObject | None = None,
        parameters: Mapping[str, str] | None = None,
        max_bytes: int = MAX_OBJECT_BYTES,
    ) -> Response:
        try:
            return await self._http.send(
                method, path, self._seconds, params=parameters, body=document, max_bytes=max_bytes, retry=True
            )
        except UnreadableResponse as error:
            raise RemoteFailed(
                f"The cluster's API server sent {error}, which this service does not read. Tell the operator."
            ) from error
        except TimeoutError as error:
            raise Unavailable(_LATE) from error
        except UntrustedServer as error:
            raise RemoteFailed(
                "The certificate of the cluster's API server is not trusted. Tell the operator."
            ) from error
        except CannotConnect as error:
            raise Unavailable("The cluster's API server can't be reached. Try again in a moment.") from error
        except ConnectionFailed as error:
            raise Unavailable(
                "The connection to the cluster's API server was lost. Try again in a moment."
            ) from error


def printable(unverified: str, longest: int) -> str:
    """Return the beginning of a server's text for a message, with `?` for characters that are not printable."""
    return "".join(each if each.isprintable() else "?" for each in unverified[:longest])


def segment(name: str) -> str:
    """Percent-encode a name as one path segment. Colons stay as they are, because Kubernetes allows them in names."""
    return quote(name, safe=":")


def _parse_response(status: int, content: bytes) -> JsonObject:
    """Parse the JSON object in a response.

    Raises ApiServerRefused or Unavailable for an error status, and RemoteFailed if the response is not a JSON object.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not 200 <= status < 300:  # noqa: PLR2004 - RFC 9110: success
        server_message = (
            " ".join(str(body.get("message", "")).split())[:MAX_MESSAGE] if isinstance(body, dict) else ""
        )
        refused = ApiServerRefused(status, server_message)
        if status in _BUSY:
            raise Unavailable("The cluster's API server is busy. Try again in a moment.") from refused
        raise refused
    if not isinstance(body, dict):
        raise RemoteFailed("The server at the cluster's address is not an API server. Tell the operator.")
    return body


class TooManyPages(Exception):
    """A list has more pages than the caller reads."""


async def pages(
    api: KubeApi,
    path: str,
    parameters: Mapping[str, str],
    most: int,
    *,
    size: int = PAGE,
    max_bytes: int = MAX_OBJECT_BYTES,
) -> AsyncIterator[JsonObject]:
    """Fetch the pages of a list. Fetches fewer objects at once where objects are long: a binding may have 1.5 MiB.

    Raises TooManyPages after `most` pages, because a hostile API server may send pages forever. Also raises
    ApiServerRefused, RemoteFailed or Unavailable.

    Args:
        parameters: the query, for example a `labelSelector`.
        size: the maximum number of objects in a page.
        max_bytes: the maximum size of a page.
    """
    limit, following, count = size, dict[str, str](), 0
    while True:
        try:
            page = await api.get(path, {**parameters, "limit": str(limit), **following}, max_bytes=max_bytes)
        except RemoteFailed as error:
            if limit == 1 or not is_too_long(error):
                raise
            limit = max(limit // 16, 1)
            continue
        yield page
        count += 1
        if not (after := _next_page(page)):
            return
        if count == most:
            raise TooManyPages
        limit, following = min(limit * 2, size), {"continue": after}


def _next_page(page: JsonObject) -> str:
    """Return the `continue` of a page, or "" for the last page."""
    metadata = page.get("metadata")
    return str(metadata.get("continue") or "") if isinstance(metadata, dict) else ""


def is_too_long(error: ClustercertError) -> bool:
    """Return whether the cause of an error is a response that is too long to read."""
    return isinstance(error.__cause__, UnreadableResponse)


def tls_context(server_ca_pem: bytes, identity: ClientIdentity | None) -> ssl.SSLContext:
    """Create a TLS context that trusts only the given CAs, and presents the certificate. Raises RemoteFailed."""
    try:
        context = ssl.create_default_context(cadata=server_ca_pem.decode("ascii"))
        if identity is None:
            return context
        with _as_file(identity.chain_pem + identity.key_pem) as path:
            context.load_cert_chain(path)
    except (ValueError, OSError) as error:
        raise RemoteFailed("The certificates of this cluster can't be used. Tell the operator.") from error
    return context


@contextlib.contextmanager
def _as_file(content: bytes, *, in_memory: bool = _HAS_MEMORY_FILES) -> Iterator[str]:
    """Write the content to a file, in memory if possible, because OpenSSL loads certificates only from files."""
    if in_memory:
        with os.fdopen(os.memfd_create("identity"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(prefix=".clustercert-") as file:
            file.write(content)
            file.flush()
            yield file.name
