"""A real Keystone on loopback, over HTTPS, with a database and keys of its own. `make keystone` prepares it."""

import base64
import ipaddress
import json
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from support import ports
from support.certificate_authority import Authority
from support.wait import suspend

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venvs" / "keystone" / "bin" / "python"
PREPARED = ROOT / ".venvs" / "keystone" / "prepared"
SECONDS = 90

# It caches, like most that serve real users, and takes the cheapest hash of passwords.
CONFIGURATION = """\
[DEFAULT]
log_file = {folder}/keystone.log
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
[cache]
backend = dogpile.cache.memory
[identity]
password_hash_algorithm = bcrypt
password_hash_rounds = 4
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
        self._reserved = ports.reserve()  # also while it is down
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}/v3"

    @property
    def _port(self) -> int:
        return ports.port_of(self._reserved)

    @property
    def requests(self) -> list[Request]:
        """What it was asked so far."""
        return [Request(**json.loads(line)) for line in self._access_log.read_text().splitlines()]

    @property
    def _access_log(self) -> Path:
        return self._folder / "access.log"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        configuration = self._folder / "keystone.conf"
        configuration.write_text(CONFIGURATION.format(folder=self._folder))
        server = Path(__file__).with_name("server.py")
        with (self._folder / "stderr").open("a") as stderr:
            self._process = subprocess.Popen(
                [PYTHON, "-I", server, configuration, str(self._port), self._identity, self._access_log],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", (self._folder / "keystone.log").read_text()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it be away during the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def stop(self) -> None:
        """End it, in the midst of its requests."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait(SECONDS)
        self._process.stdout.close()

    def forget_tokens(self) -> None:
        """Replace the keys of tokens while it is stopped. All tokens are void then."""
        for key in (self._folder / "fernet").iterdir():
            key.write_bytes(base64.urlsafe_b64encode(secrets.token_bytes(32)))

    def close(self) -> None:
        """Give the port back."""
        self._reserved.close()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it answer nothing during the block, though its kernel accepts connections."""
        assert self._process is not None
        suspend(self._process.pid)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def running(folder: Path) -> Iterator[RealKeystone]:
    """A Keystone in an empty folder, for the length of the block."""
    keystone = RealKeystone(folder)
    keystone.start()
    try:
        yield keystone
    finally:
        keystone.stop()
        keystone.close()
