"""The settings of a connection to OpenBao or HashiCorp Vault. Reading them needs no HTTP client."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from clustercert.model.requests import is_loopback, is_service_url


def _server_url(value: str) -> str:
    if not is_service_url(value):
        raise ValueError("expected a URL like https://openbao.example.com:8200, without a path")
    parts = urlsplit(value)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ValueError("tokens and keys must be encrypted on their way: use https, except on loopback")
    return value


_PATH = r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$"


class OpenBaoSettings(BaseModel):
    """How to reach the transit secrets engine of an OpenBao or Vault server.

    Attributes:
        url: address of OpenBao or Vault, such as `https://openbao.example.com:8200`.
        token_file: file whose first line is the token. The file is read again when it changes, and must not be readable
            by all users.
        mount: path of the transit secrets engine.
        namespace: namespace of the secrets engine. By default, the root namespace.
        ca_file: PEM file with the trusted CAs for the server's certificate. By default, the system's CAs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(max_length=512), AfterValidator(_server_url)]
    token_file: Path
    mount: str = Field(default="transit", max_length=64, pattern=_PATH)
    namespace: str | None = Field(default=None, max_length=256, pattern=_PATH)
    ca_file: Path | None = None
