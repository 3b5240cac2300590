"""A client of the double that presents bytes of its own choice in the place of its TLS certificate."""

import base64
import os
import ssl
from types import TracebackType
from typing import Self

import httpx

from apiserver import ApiServer
from apiserver.server import PRESENTED


class Presenter:
    """Whoever has a certificate and its key, PEM in one; connected from `with` to the end of the block."""

    def __init__(self, double: ApiServer, identity_pem: bytes) -> None:
        context = ssl.create_default_context(cafile=str(double.server_ca))
        with os.fdopen(os.memfd_create("identity"), "wb") as file:
            file.write(identity_pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        self._client = httpx.Client(base_url=double.url, verify=context, trust_env=False)

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
