"""PKCS#11 tokens of SoftHSM: in this process, or behind a daemon, as a network HSM."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from bench import relay
from support import ports
from support.wait import suspend

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
PROXY = Path("/usr/lib/libpkcs11-proxy.so.0")
LABEL, PIN = "clustercert", "824-secret-pin"

_HAS_SOFTHSM = SOFTHSM.exists() and shutil.which("softhsm2-util") is not None
needs_softhsm = pytest.mark.skipif(not _HAS_SOFTHSM, reason="softhsm2 is not installed")
needs_network_hsm = pytest.mark.skipif(
    not (_HAS_SOFTHSM and PROXY.exists() and shutil.which("pkcs11-daemon")),
    reason="softhsm2, pkcs11-daemon or libpkcs11-proxy0 is not installed",
)


def require_softhsm() -> None:
    if not _HAS_SOFTHSM:
        pytest.skip("softhsm2 is not installed")


@dataclass(frozen=True)
class SoftToken:
    """An initialised token. `environment` is what a process needs to use it, with the module `module`."""

    folder: Path
    environment: dict[str, str]
    module: Path = SOFTHSM

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    def settings(self) -> dict[str, object]:
        # A busy machine takes its time.
        return {"module": str(self.module), "token": LABEL, "pin_file": str(self.pin_file), "timeout": 60}


def new_token(folder: Path) -> SoftToken:
    """Create a token with the label LABEL and the PIN in a file."""
    objects, configuration = folder / "tokens", folder / "softhsm2.conf"
    objects.mkdir(mode=0o700)
    configuration.write_text(f"directories.tokendir = {objects}\nlog.level = ERROR\n")
    token = SoftToken(folder, {"SOFTHSM2_CONF": str(configuration)})
    add_token(token, LABEL)
    token.pin_file.touch(mode=0o600)
    token.pin_file.write_text(f"{PIN}\n")
    return token


def add_token(token: SoftToken, label: str) -> None:
    """Create one more token beside this one."""
    command = [
        "softhsm2-util",
        "--init-token",
        "--free",
        "--label",
        label,
        "--pin",
        PIN,
        "--so-pin",
        "87654321",
    ]
    subprocess.run(command, env=os.environ | token.environment, check=True, capture_output=True)


@contextmanager
def environment(token: SoftToken) -> Iterator[None]:
    """Use a token in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in token.environment.items():
            patch.setenv(name, value)
        yield


class NetworkHsm:
    """A token behind a daemon. The daemon can be killed, stopped and started again."""

    def __init__(self, token: SoftToken) -> None:
        self._token = token
        self._reserved = ports.reserve()
        self._relays = ExitStack()
        self._address = ""
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._address = f"tcp://127.0.0.1:{self._relays.enter_context(relay.running(self._port))}"
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._relays.close()
        self._reserved.close()

    @property
    def token(self) -> SoftToken:
        """The token as clients see it, through the proxy."""
        return SoftToken(self._token.folder, {"PKCS11_PROXY_SOCKET": self._address}, PROXY)

    def start(self) -> None:
        assert self._daemon is None
        self._daemon = subprocess.Popen(
            ["pkcs11-daemon", SOFTHSM, f"tcp://127.0.0.1:{self._port}"],
            env=os.environ | self._token.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not self._answers():
            assert self._daemon.poll() is None, "pkcs11-daemon did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill the daemon, stopped or not."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def stop(self) -> None:
        """Stop the daemon: calls hang until `resume`."""
        assert self._daemon is not None
        suspend(self._daemon.pid)

    def resume(self) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGCONT)

    @property
    def _port(self) -> int:
        return ports.port_of(self._reserved)

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0
