"""HTTP clients of an API server, without kubectl."""

import ssl
from pathlib import Path
from typing import Protocol

import httpx2

from support.wait import SECONDS


class Served(Protocol):
    """The address of an API server, and the PEM file of its serving CA."""

    url: str
    server_ca: Path


def client_of(apiserver: Served, folder: Path, identity_pem: bytes | None) -> httpx2.Client:
    """A client with this key and certificate, or with none. Writes the PEM into the folder."""
    context = ssl.create_default_context(cafile=str(apiserver.server_ca))
    if identity_pem is not None:
        path = folder / "identity.pem"
        path.write_bytes(identity_pem)
        context.load_cert_chain(path)
    return httpx2.Client(base_url=apiserver.url, verify=context, trust_env=False, timeout=SECONDS)
