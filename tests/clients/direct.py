"""Requests to an API server as they are, without kubectl between."""

import ssl
from pathlib import Path
from typing import Protocol

import httpx


class Served(Protocol):
    """Where an API server is, and the PEM file of the CA of its own certificate."""

    url: str
    server_ca: Path


def client_of(apiserver: Served, folder: Path, identity_pem: bytes | None) -> httpx.Client:
    """A client with this key and certificate, or without any; the PEM is left in the folder."""
    context = ssl.create_default_context(cafile=str(apiserver.server_ca))
    if identity_pem is not None:
        path = folder / "identity.pem"
        path.write_bytes(identity_pem)
        context.load_cert_chain(path)
    return httpx.Client(base_url=apiserver.url, verify=context, trust_env=False, timeout=20)
