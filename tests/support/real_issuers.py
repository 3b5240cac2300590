"""Real OIDC issuers on loopback: npm's oidc-provider, and PyPI's oidc-provider-mock. `make issuers` installs both."""

import contextlib
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pytest
from cryptography import x509

from support.certificate_authority import Authority
from support.wait import SECONDS

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venvs"
PROGRAMS = ROOT / "tests" / "issuers"
CLIENT_ID = "clustercert"
# Another client of the same issuer, whose tokens are for another audience.
OTHER_CLIENT_ID = "other"
GROUPS: Mapping[str, Sequence[str]] = {"alice": ["team-blue", "platform"], "bob": ["team-red"], "carol": []}


@dataclass(frozen=True)
class RealIssuer:
    """A running issuer. Everybody can log in there with any password.

    Attributes:
        url: as in the claim `iss`.
        ca_file: the CA of its server, in PEM.
    """

    url: str
    ca_file: Path
    process: "subprocess.Popen[str]"

    def settings(self, **changed: object) -> dict[str, Any]:
        """The settings of this issuer."""
        return {
            "name": "sso",
            "issuer": self.url,
            "audiences": [CLIENT_ID],
            "client_id": CLIENT_ID,
            "ca_file": str(self.ca_file),
            "username": "preferred_username",
            "groups": "groups",
        } | changed


@dataclass(frozen=True)
class OidcProvider(RealIssuer):
    """npm's oidc-provider. Its keys can be rotated, and clients registered, while it runs."""

    def rotate(self) -> None:
        """Publish a new key, and sign with it at once. The old key stays public."""
        self.command("publish")
        self.command("sign")

    def command(self, name: Literal["publish", "sign", "withdraw"]) -> None:
        """Make a new key public, sign with the newest one, or remove all others."""
        self._send(name)

    def register(self, metadata: Mapping[str, object]) -> None:
        """Add a client, with metadata as in OpenID Connect Dynamic Client Registration 1.0."""
        self._send("register", json.dumps(metadata))

    def _send(self, name: str, *arguments: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join((name, *arguments)) + "\n")
        self.process.stdin.flush()
        assert _said(self.process) == {"done": name}


@contextlib.contextmanager
def oidc_provider(
    folder: Path,
    groups: Mapping[str, Sequence[str]] = GROUPS,
    trusted_ca: Path | None = None,
    **seconds: int,
) -> Iterator[OidcProvider]:
    """Run npm's oidc-provider. Skips the test if it is not installed.

    Args:
        groups: of each account.
        trusted_ca: PEM file with a CA that the issuer trusts in its own requests.
        seconds: the lifetimes of tokens by kind, such as `IdToken`, `AccessToken`, `RefreshToken`.
    """
    installed = ENVIRONMENTS / "oidc-provider"
    _skip_without(installed / ".complete")
    ca_file, pem = _tls(folder)
    trust = {"NODE_EXTRA_CA_CERTS": str(trusted_ca)} if trusted_ca is not None else {}
    with _running(["node", str(PROGRAMS / "oidc_provider.js")], installed, trust) as process:
        clients = [CLIENT_ID, OTHER_CLIENT_ID]
        configuration = {"tls": str(pem), "clients": clients, "groups": groups, "seconds": seconds}
        assert process.stdin is not None
        process.stdin.write(json.dumps(configuration) + "\n")
        process.stdin.flush()
        yield OidcProvider(str(_said(process)["url"]), ca_file, process)


@contextlib.contextmanager
def mock_provider(folder: Path) -> Iterator[RealIssuer]:
    """Run PyPI's oidc-provider-mock. It accepts every client id. Skips the test if it is not installed."""
    installed = ENVIRONMENTS / "issuers" / "bin"
    # On Python 3.11 the environment is empty.
    _skip_without(installed / "oidc-provider-mock")
    ca_file, pem = _tls(folder)
    claims = {name: {"preferred_username": name, "groups": groups} for name, groups in GROUPS.items()}
    command = [
        str(installed / "python"),
        "-I",
        str(PROGRAMS / "mock_provider.py"),
        str(pem),
        json.dumps(claims),
    ]
    with _running(command, folder) as process:
        yield RealIssuer(str(_said(process)["url"]), ca_file, process)


def _skip_without(file: Path) -> None:
    if not file.exists():
        pytest.skip(f"needs {file.relative_to(ROOT)}, which `make issuers` makes")


def _tls(folder: Path) -> tuple[Path, Path]:
    """The CA certificate, and key and certificate of a server on loopback."""
    authority = Authority("issuer-ca")
    ca_file, pem = folder / "issuer-ca.pem", folder / "issuer.pem"
    ca_file.write_bytes(authority.certificate_pem)
    loopback = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    pem.write_bytes(authority.server_identity_pem("issuer", loopback))
    return ca_file, pem


@contextlib.contextmanager
def _running(
    command: Sequence[str], folder: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator["subprocess.Popen[str]"]:
    # Its log goes where the log of the test goes.
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "NODE_ENV": "test", **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        try:
            process.communicate(timeout=SECONDS)
        finally:
            process.kill()


def _said(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the issuer ended with status {process.wait(SECONDS)}"
    said: dict[str, Any] = json.loads(line)
    return said
