"""A real Keystone on loopback, over HTTPS, with a database and keys of its own. `make keystone` prepares it."""

import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from support.certificate_authority import Authority

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venvs" / "keystone" / "bin" / "python"
PREPARED = ROOT / ".venvs" / "keystone" / "prepared"
SECONDS = 90

# The cheapest hash that Keystone allows; and its answers name the address at which it listens.
CONFIGURATION = """\
[DEFAULT]
log_file = {folder}/keystone.log
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
[identity]
password_hash_algorithm = bcrypt
password_hash_rounds = 4
[token]
expiration = {token_seconds}
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A line of the access log. `subject` is the SHA-256 of the token that the request is about."""

    method: str
    path: str
    status: int
    subject: str | None


class RealKeystone:
    """A Keystone that can be stopped and started again with its data, at its address.

    Attributes:
        ca: of its certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(PREPARED, folder, dirs_exist_ok=True)
        authority = Authority("keystone")
        name = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
        self._identity = folder / "tls.pem"
        self._identity.write_bytes(authority.server_identity_pem("keystone", [name]))
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(authority.certificate_pem)
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}/v3"

    @property
    def requests(self) -> list[Request]:
        """What it was asked so far."""
        return [Request(**json.loads(line)) for line in self._access_log.read_text().splitlines()]

    @property
    def _access_log(self) -> Path:
        return self._folder / "access.log"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process, self._port = self._started(self._port, token_seconds=3600)

    def stop(self) -> None:
        """End it, in the midst of its requests."""
        assert self._process is not None
        _end(self._process)

    @contextmanager
    def with_short_tokens(self, seconds: int) -> Iterator[str]:
        """The URL of a second server on the same data, whose tokens expire soon."""
        process, port = self._started(0, seconds)
        try:
            yield f"https://127.0.0.1:{port}/v3"
        finally:
            _end(process)

    def _started(self, port: int, token_seconds: int) -> tuple[subprocess.Popen[str], int]:
        configuration = self._folder / f"keystone-{token_seconds}.conf"
        configuration.write_text(CONFIGURATION.format(folder=self._folder, token_seconds=token_seconds))
        server = Path(__file__).with_name("server.py")
        process = subprocess.Popen(
            [PYTHON, "-I", server, configuration, str(port), self._identity, self._access_log],
            stdout=subprocess.PIPE,
            stderr=(self._folder / "stderr").open("a"),
            text=True,
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, (self._folder / "stderr").read_text()
        return process, int(said)


@contextmanager
def running(folder: Path) -> Iterator[RealKeystone]:
    """A Keystone in an empty folder, for the length of the block."""
    keystone = RealKeystone(folder)
    keystone.start()
    try:
        yield keystone
    finally:
        keystone.stop()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(SECONDS)
    assert process.stdout is not None
    process.stdout.close()
