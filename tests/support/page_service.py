"""A service with TLS, set up by operators' commands, and a job that follows the documentation."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support import kubectl
from support.apiserver import ApiServer
from support.installed_demo import program
from support.store_commands import on_store
from support.wait import SECONDS, eventually

TESTS = Path(__file__).resolve().parents[1]
PROJECT = "eu-de"
CLUSTER = "prod"
SETTINGS = """
data_dir = "{folder}/data"
kek_file = "{folder}/kek"
[server]
host = "0.0.0.0"
[log]
file = "{folder}/log"
"""


@dataclass(frozen=True, slots=True)
class PageService:
    """A store with the project eu-de and the cluster prod. `run` works before and while it serves."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {**environment(self.folder), "CLUSTERCERT_CONFIG": str(self.folder / "clustercert.toml")}

    def configure(self, more: str) -> None:
        (self.folder / "clustercert.toml").write_text(SETTINGS.format(folder=self.folder) + more)

    def run(self, *arguments: str | Path, stdin: str = "") -> str:
        done = subprocess.run(
            [program(), *on_store(map(str, arguments))],
            input=stdin,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, *documents: Mapping[str, Any]) -> None:
        """Apply documents to the store."""
        complete = [{"apiVersion": "clustercert/v1", **document} for document in documents]
        self.run("apply", "--local", "-f", "-", stdin=yaml.safe_dump_all(complete))

    def add_user(self, name: str, role: str, password: str) -> None:
        """Add a user with a role in the project."""
        self.apply(
            {"kind": "User", "metadata": {"name": name}},
            {
                "kind": "RoleBinding",
                "metadata": {"name": name},
                "spec": {"project": PROJECT, "role": role, "users": [name]},
            },
        )
        self.run("user", "set-password", name, "--password-file", "-", stdin=password)

    @contextmanager
    def serving(self, role: str = "all") -> Iterator["Address"]:
        """Serve on a free port. The file `serve`, or `serve-ROLE`, has what the process prints."""
        printed = self.folder / ("serve" if role == "all" else f"serve-{role}")
        process = subprocess.Popen(
            [program(), "serve", "--role", role, "--port", "0"],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=printed.open("w"),
            start_new_session=True,
        )
        try:
            address = eventually(lambda: self._address(printed) or process.poll() is not None)
            assert isinstance(address, Address), printed.read_text()
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0, printed.read_text()

    def _address(self, printed: Path) -> "Address | None":
        said = printed.read_text()
        port = re.search(r"Listening on https://0\.0\.0\.0:(\d+)", said)
        fingerprints = re.findall(r"\b[0-9a-f]{64}\b", said)
        return Address(f"https://127.0.0.1:{port[1]}", fingerprints[0]) if port and fingerprints else None


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens, and the fingerprint that it prints for its clients."""

    url: str
    fingerprint: str


def environment(folder: Path) -> dict[str, str]:
    """The environment of somebody with a home in this folder, and clustercert and kubectl in the PATH."""
    programs = (Path(program()).parent, kubectl.program().parent)
    kept = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    return {
        **kept,
        "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        "HOME": str(folder),
        "KUBECACHEDIR": str(folder / "kube-cache"),
    }


def new_service(folder: Path, prod: ApiServer) -> PageService:
    """A new store. The API server trusts the client CA of its cluster prod."""
    shutil.copytree(_empty_store().name, folder, dirs_exist_ok=True)
    service = PageService(folder)
    service.configure("")
    service.apply(
        {"kind": "Project", "metadata": {"name": PROJECT}},
        {
            "kind": "Cluster",
            "metadata": {"name": CLUSTER, "project": PROJECT},
            "spec": {"internal_url": prod.url, "server_ca": prod.server_ca.read_text()},
        },
    )
    prod.trust(service.run("cluster", "ca", "show", CLUSTER, "--bundle").encode())
    return service


@functools.cache
def _empty_store() -> "tempfile.TemporaryDirectory[str]":
    """A key and an empty store: made once, because two commands take seconds, and copied for each test."""
    made = tempfile.TemporaryDirectory(prefix="clustercert-page-service-")
    folder = Path(made.name)
    service = PageService(folder)
    service.configure("")
    service.run("keys", "generate", "--out", folder / "kek")
    service.run("db", "upgrade")
    return made


@contextmanager
def issuer(folder: Path) -> Iterator[Mapping[str, str]]:
    """The report of `support.programs.ci_issuer`, while it runs in the project's environment."""
    python = Path(program()).with_name("python")
    process = subprocess.Popen(
        [python, "-m", "support.programs.ci_issuer", folder],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        yield json.loads(process.stdout.readline())


def run_script(script: str, folder: Path, env: Mapping[str, str]) -> str:
    """Run a job's script as CI systems do. Programs that install packages only print their arguments."""
    done = subprocess.run(
        ["bash", "-e", "-c", f"pip() {{ echo pip $*; }}; pipx() {{ echo pipx $*; }}\n{script}"],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
