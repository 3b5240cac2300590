"""A cluster's API server, spoken to with one client certificate: objects go, objects come, whatever else is an error.

The private key stays in memory. Which objects, and whose credential, is the caller's business.

httpx is loaded by the first client: a worker that has no cluster to talk to is spared its 45 ms and 4 MB.
"""

import asyncio
import contextlib
import json
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from clustercert import __version__
from clustercert.errors import RemoteFailed, Unavailable
from clustercert.model import JsonObject

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 8.0
# A list of 500 bindings is a twentieth of it.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
# Of what the server says of its refusal, for the log.
MAX_MESSAGE = 500

_HAS_MEMORY_FILES = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
_BUSY = frozenset({429, 503, 504})


class Refused(RemoteFailed):
    """The API server answered with an error.

    Attributes:
        http_status: 400 to 599.
        said: its own words, for the log alone.
    """

    def __init__(self, http_status: int, said: str) -> None:
        super().__init__(
            f"The cluster's API server refused a request of this service with status {http_status}. Tell the operator."
        )
        self.http_status = http_status
        self.said = said


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A client certificate with its key, PEM both."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)


class KubeApi:
    """One API server. Its methods raise Refused, RemoteFailed or Unavailable, and nothing else.

    Paths are absolute and without a query; `segment` makes a part of one from a name.
    """

    def __init__(
        self, url: str, server_ca_pem: bytes, identity: ClientIdentity, *, seconds: float = ANSWER_SECONDS
    ) -> None:
        import httpx  # noqa: PLC0415

        self._seconds = seconds
        self._http = httpx.AsyncClient(
            base_url=url,
            verify=_tls(server_ca_pem, identity),
            timeout=httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
            headers={"User-Agent": f"clustercert/{__version__}", "Accept": "application/json"},
            # What stands between is the cluster's business, not this process's environment's.
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> JsonObject:
        """The object, or list of objects, at a path."""
        return await self._exchange("GET", path, parameters=parameters)

    async def create(
        self, path: str, document: JsonObject, parameters: Mapping[str, str] | None = None
    ) -> JsonObject:
        """Add an object to a list. It may have been added by an earlier try: be ready for status 409."""
        return await self._exchange("POST", path, document, parameters)

    async def replace(self, path: str, document: JsonObject) -> JsonObject:
        """Put an object in the place of another; its `resourceVersion` says of which."""
        return await self._exchange("PUT", path, document)

    async def delete(self, path: str) -> None:
        """Remove an object, if it is there."""
        try:
            await self._exchange("DELETE", path)
        except Refused as refused:
            if refused.http_status != HTTPStatus.NOT_FOUND:
                raise

    async def _exchange(
        self,
        method: str,
        path: str,
        document: JsonObject | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> JsonObject:
        import httpx  # noqa: PLC0415

        with _failures_translated():
            async with asyncio.timeout(self._seconds):
                try:
                    status, content = await self._send(method, path, document, parameters)
                except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                    # A connection kept from before may be closed over there at the moment it is used again.
                    status, content = await self._send(method, path, document, parameters)
        return _understood(status, content)

    async def _send(
        self, method: str, path: str, document: JsonObject | None, parameters: Mapping[str, str] | None
    ) -> tuple[int, bytes]:
        async with self._http.stream(method, path, json=document, params=parameters) as answer:
            content = bytearray()
            async for chunk in answer.aiter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise RemoteFailed("The cluster's API server answered with more than can be taken.")
            return answer.status_code, bytes(content)


@contextlib.asynccontextmanager
async def opened(
    url: str, server_ca_pem: bytes, identity: ClientIdentity, *, seconds: float = ANSWER_SECONDS
) -> AsyncIterator[KubeApi]:
    """An API server for as long as the block runs. Raises RemoteFailed where the certificates can't be used."""
    api = KubeApi(url, server_ca_pem, identity, seconds=seconds)
    try:
        yield api
    finally:
        await api.close()


def segment(name: str) -> str:
    """A name as one segment of a path. Kubernetes allows colons in it as they are."""
    return quote(name, safe=":")


@contextlib.contextmanager
def _failures_translated() -> Iterator[None]:
    import httpx  # noqa: PLC0415

    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as error:
        raise Unavailable(
            "The cluster's API server does not answer in time. Try again in a moment."
        ) from error
    except httpx.ConnectError as error:
        if "certificate verify failed" in str(error).lower():
            raise RemoteFailed(
                "The certificate of the cluster's API server is not to be trusted. Tell the operator."
            ) from error
        raise Unavailable("The cluster's API server can't be reached. Try again in a moment.") from error
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
        raise Unavailable("The cluster's API server broke off. Try again in a moment.") from error


def _understood(status: int, content: bytes) -> JsonObject:
    """The object that was answered. Raises Refused, RemoteFailed or Unavailable."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not 200 <= status < 300:  # noqa: PLR2004 - RFC 9110: success
        said = " ".join(str(body.get("message", "")).split())[:MAX_MESSAGE] if isinstance(body, dict) else ""
        refused = Refused(status, said)
        if status in _BUSY:
            raise Unavailable("The cluster's API server is busy. Try again in a moment.") from refused
        raise refused
    if not isinstance(body, dict):
        raise RemoteFailed("What answers at the cluster's address is no API server. Tell the operator.")
    return body


def _tls(server_ca_pem: bytes, identity: ClientIdentity) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=server_ca_pem.decode("ascii"))
        with _as_file(identity.chain_pem + identity.key_pem) as path:
            context.load_cert_chain(path)
    except (ValueError, OSError) as error:
        raise RemoteFailed("The certificates of this cluster can't be used. Tell the operator.") from error
    return context


@contextlib.contextmanager
def _as_file(content: bytes, *, in_memory: bool = _HAS_MEMORY_FILES) -> Iterator[str]:
    """A path to read a secret from, for OpenSSL, which knows no other way: in memory where the system has that."""
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
