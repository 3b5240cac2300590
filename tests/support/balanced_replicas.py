"""Replicas behind HAProxy with deploy/haproxy.cfg, changed as docs/operations.md says for several replicas."""

import contextlib
import csv
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2

from clustercert.pki.certificates import chain_pem
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from support import ports, serve_process
from support.demo_process import uncovered
from support.wait import SECONDS, eventually
from support.world import World

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_ROOT = Path(__file__).parents[2]
# Of one replica, in deploy/haproxy.cfg.
_SERVER = re.compile(r"    server (clustercert|webhook) \S+ maxconn (\d+)\n")
NAMES = ("one", "two")


@dataclass(frozen=True)
class Proxy:
    """HAProxy with a server for each name in each backend.

    Attributes:
        folder: has its admin socket.
        ports: where clients and API servers connect.
        context: trusts its certificate.
    """

    folder: Path
    ports: tuple[int, int]
    context: ssl.SSLContext

    def client(self, port: int, **headers: str) -> httpx2.Client:
        return httpx2.Client(
            base_url=f"https://127.0.0.1:{port}",
            headers=headers,
            verify=self.context,
            timeout=SECONDS,
            trust_env=False,
        )

    def set_state(self, name: str, state: str) -> None:
        for backend in ("clustercert", "webhook"):
            self._command(f"set server {backend}/{name} state {state}")

    def is_up(self, name: str) -> bool:
        return all(row["status"] == "UP" for row in self._rows(name))

    def is_idle(self, name: str) -> bool:
        """Whether a server that is drained has answered all its requests."""
        return all(row["scur"] == "0" for row in self._rows(name))

    def _rows(self, name: str) -> list[dict[str, str]]:
        lines = self._command("show stat").removeprefix("# ").splitlines()
        return [row for row in csv.DictReader(lines) if row["svname"] == name]

    def _command(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(SECONDS)
            admin.connect(str(self.folder / "admin"))
            admin.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()


@dataclass
class Replicas:
    """Two addresses behind a proxy, at each of which a `serve` process may run."""

    world: World
    proxy: Proxy
    addresses: Mapping[str, int]
    _processes: "dict[str, subprocess.Popen[str]]" = field(default_factory=dict)

    def start(self, name: str, program: Mapping[str, str]) -> None:
        """Start a replica with two workers, and wait until the proxy sends requests to it."""
        workers = {"CLUSTERCERT_SERVER__WORKERS": "2"}
        environment = uncovered(serve_process.environment_of(self.world) | workers | dict(program))
        self._processes[name] = serve_process.start(["--port", str(self.addresses[name])], environment)
        eventually(lambda: self._answers(name))
        # The proxy would send requests at once, before its first check.
        self.proxy.set_state(name, "ready")
        eventually(lambda: self.proxy.is_up(name))

    def stop(self, name: str) -> int:
        """Take a replica out of the proxy, and end it. Returns its exit code."""
        self.proxy.set_state(name, "drain")
        eventually(lambda: self.proxy.is_idle(name))
        process = self._processes.pop(name)
        serve_process.end(process)
        self.proxy.set_state(name, "maint")
        return process.returncode

    def stop_all(self) -> None:
        for process in self._processes.values():
            serve_process.end(process)

    def _answers(self, name: str) -> bool:
        assert self._processes[name].poll() is None
        with contextlib.suppress(httpx2.TransportError):
            url = f"http://127.0.0.1:{self.addresses[name]}/readyz"
            return httpx2.get(url, trust_env=False, timeout=SECONDS).status_code == 200
        return False


@contextlib.contextmanager
def replicas(world: World, folder: Path) -> Iterator[Replicas]:
    """A proxy without replicas. The replicas that run at the end of the block are ended."""
    with contextlib.ExitStack() as stack:
        own = [ports.port_of(stack.enter_context(ports.reserve())) for _ in NAMES]
        front = [ports.port_of(stack.enter_context(ports.reserve())) for _ in range(2)]
        proxy = stack.enter_context(_proxy(folder, (front[0], front[1]), own))
        running = Replicas(world, proxy, dict(zip(NAMES, own, strict=True)))
        stack.callback(running.stop_all)
        yield running


@contextlib.contextmanager
def _proxy(folder: Path, front: tuple[int, int], own: list[int]) -> Iterator[Proxy]:
    key, now = new_key("ec-p256"), datetime.now(UTC).replace(microsecond=0)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=2))
    (folder / "server.pem").write_bytes(chain_pem((leaf,)) + key_pem(key))
    (folder / "ca.pem").write_bytes(chain_pem((ca,)))
    (folder / "haproxy.cfg").write_text(_configuration(folder, own))
    env = os.environ | {
        "CLUSTERCERT_LISTEN": f"127.0.0.1:{front[0]}",
        "CLUSTERCERT_WEBHOOK_LISTEN": f"127.0.0.1:{front[1]}",
        "CLUSTERCERT_CERTIFICATE": str(folder / "server.pem"),
    }
    process = subprocess.Popen([str(HAPROXY), "-db", "-f", folder / "haproxy.cfg"], env=env)
    proxy = Proxy(folder, front, ssl.create_default_context(cafile=folder / "ca.pem"))
    try:
        eventually(lambda: process.poll() is not None or (folder / "admin").exists())
        assert process.poll() is None, "haproxy did not start"
        for name in NAMES:
            proxy.set_state(name, "maint")
        yield proxy
    finally:
        process.kill()
        process.wait(SECONDS)


def _configuration(folder: Path, own: list[int]) -> str:
    """The configuration of one replica, with the lines of the page for two."""
    page = (_ROOT / "docs" / "operations.md").read_text()
    block = re.search(r"<!-- begin haproxy -->\n```\n(.*?)```\n<!-- end haproxy -->", page, re.DOTALL)
    assert block is not None
    for_all, servers = block[1].split("backend clustercert\n")
    text = (_ROOT / "deploy" / "haproxy.cfg").read_text()
    for host, port in zip(("10.0.0.11:8080", "10.0.0.12:8080"), own, strict=True):
        assert host in servers
        servers = servers.replace(host, f"127.0.0.1:{port}")
    assert "stats socket" in for_all
    socket_line = for_all.removeprefix("global\n").replace("/run/haproxy/admin.sock", str(folder / "admin"))
    assert len(_SERVER.findall(text)) == 2
    return _SERVER.sub(servers, text).replace("global\n", f"global\n{socket_line}", 1)
