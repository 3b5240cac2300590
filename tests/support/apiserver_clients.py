"""HTTP clients of an API server, without kubectl."""

import base64
import os
import ssl
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import httpx

from support.apiserver import ApiServer
from support.apiserver.server import PRESENTED
from support.wait import SECONDS


class Served(Protocol):
    """The address of an API server, and the PEM file of its serving CA."""

    url: str
    server_ca: Path


def client_of(apiserver: Served, folder: Path, identity_pem: bytes | None) -> httpx.Client:
    """A client with this key and certificate, or with none. Writes the PEM into the folder."""
    context = ssl.create_default_context(cafile=str(apiserver.server_ca))
    if identity_pem is not None:
        path = folder / "identity.pem"
        path.write_bytes(identity_pem)
        context.load_cert_chain(path)
    return httpx.Client(base_url=apiserver.url, verify=context, trust_env=False, timeout=SECONDS)


class Presenter:
    """A client of the double that can present other bytes than its TLS certificate, in a header."""

    def __init__(self, double: ApiServer, identity_pem: bytes) -> None:
        context = ssl.create_default_context(cafile=str(double.server_ca))
        with os.fdopen(os.memfd_create("identity"), "wb") as file:
            file.write(identity_pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        self._client = httpx.Client(base_url=double.url, verify=context, trust_env=False, timeout=SECONDS)

    def get(self, path: str, presented_der: bytes | None = None) -> httpx.Response:
        return self._client.get(path, headers=_headers(presented_der))

    def post(self, path: str, body: object, presented_der: bytes | None = None) -> httpx.Response:
        return self._client.post(path, json=body, headers=_headers(presented_der))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


def _headers(presented_der: bytes | None) -> dict[str, str]:
    return {} if presented_der is None else {PRESENTED: base64.b64encode(presented_der).decode()}
