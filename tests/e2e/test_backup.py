"""docs/backup.md, command by command: a backup of a running service, a disaster, and the restore."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from support import postgres
from support import world as worlds
from support.leaf_checks import leaf_of
from support.wait import SECONDS, line_with
from support.world import World

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "backup.md"
DEPLOY = ROOT / "deploy"
UNITS = (".service", ".socket")
# Where a machine has no `sqlite3` command.
SQLITE3 = f"""#!{sys.executable}
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):
    print(row[0])
"""


def commands(name: str) -> list[tuple[str, str]]:
    """The commands of a block in the page, each with the output that the page shows."""
    text = PAGE.read_text()
    block = re.search(rf"<!-- begin {name} -->\n```console\n(.*?)```\n<!-- end {name} -->", text, re.DOTALL)
    assert block is not None
    parts = re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


@dataclass
class Machine:
    """A machine with the service, at whose shell the page's commands are typed.

    Attributes:
        variables: environment variables of the shell.
    """

    world: World
    variables: dict[str, str] = field(default_factory=dict)
    url: str = ""
    _process: "subprocess.Popen[str] | None" = None

    @property
    def folder(self) -> Path:
        return self.world.folder

    @property
    def config(self) -> Path:
        return self.folder / "clustercert.toml"

    def set_up(self, database_url: str | None) -> None:
        for name in ("bin", "backup", "keys"):
            (self.folder / name).mkdir(exist_ok=True)
        self._program("clustercert", f'#!/bin/sh\nexec "{sys.executable}" -m clustercert "$@"\n')
        if shutil.which("sqlite3") is None:
            self._program("sqlite3", SQLITE3)
        self.configure(database_url)

    def configure(self, database_url: str | None) -> None:
        database = f"database_url = '{database_url}'\n" if database_url else ""
        self.config.write_text(
            f"{database}data_dir = '{self.folder / 'data'}'\nkek_file = '{self.folder / 'kek'}'\n"
            f"[log]\nfile = '{self.folder / 'log'}'\n"
        )

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    @property
    def environment(self) -> Mapping[str, str]:
        path = f"{self.folder / 'bin'}:{self.variables.get('PROGRAMS', '')}:{os.environ['PATH']}"
        return os.environ | self.variables | {"PATH": path}

    def type(self, command: str, output: str) -> None:
        """Run a command of the page. It must succeed, with the output that the page shows."""
        for there, here in (
            ("/var/lib/clustercert", self.folder / "data"),
            ("/etc/clustercert", self.folder),
            ("/backup/", f"{self.folder / 'backup'}/"),
            ("/keys/", f"{self.folder / 'keys'}/"),
        ):
            command = command.replace(there, str(here))
        done = subprocess.run(
            ["sh", "-c", command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout + done.stderr)
        assert not output or done.stdout == output

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["clustercert", "--config", self.config, "serve", "--port", "0"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = line_with(self._process.stderr, "Listening on").split()[-1]

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.communicate(timeout=SECONDS)
            self._process = None

    def issue(self) -> str:
        """The fingerprint of a new certificate."""
        answer = self._post(self.world.path(), {"duration": 1})
        leaf_of(answer.json())
        return answer.headers["X-Clustercert-Fingerprint"]

    def revoke(self, fingerprint: str) -> None:
        project, cluster = self.world.project.id, self.world.clusters["plain"].id
        path = f"/clustercert/v1/projects/{project}/clusters/{cluster}/certificates/{fingerprint}/revoke"
        self._post(path, {"reason": "superseded"})

    def state(self, fingerprint: str) -> str:
        """The state of a certificate, or `unknown` if the ledger lacks it."""
        project, cluster = self.world.project.id, self.world.clusters["plain"].id
        path = f"{self.url}/clustercert/v1/projects/{project}/clusters/{cluster}/certificates/{fingerprint}"
        answer = httpx.get(path, headers=self.world.people["admin"].headers, timeout=SECONDS, trust_env=False)
        if answer.status_code == 404:
            return "unknown"
        assert answer.status_code == 200, answer.text
        return str(answer.json()["state"])

    def _post(self, path: str, body: Mapping[str, object]) -> httpx.Response:
        headers = self.world.people["admin"].headers
        answer = httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=SECONDS, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer


@contextlib.contextmanager
def machine(folder: Path, database_url: str | None = None) -> Iterator[Machine]:
    running = Machine(worlds.make(folder, database_url))
    running.set_up(database_url)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def restore(running: Machine, name: str, new_url: str | None = None) -> None:
    """Lose all data when the service has stopped, and follow the page."""
    for command, output in commands(name):
        if command.startswith("systemctl stop "):
            running.stop()
            shutil.rmtree(running.folder / "data")
            (running.folder / "kek").unlink()
            running.configure(new_url)
        elif command.startswith("systemctl start "):
            running.start()
        else:
            running.type(command, output)


@contextlib.contextmanager
def issuing(running: Machine) -> Iterator[None]:
    """Issue certificates without a pause during the `with` block."""
    stop = threading.Event()

    def issue() -> None:
        while not stop.is_set():
            running.issue()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(issue)
        try:
            yield
        finally:
            stop.set()
        writer.result()


def assert_restored(running: Machine, name: str, new_url: str | None = None) -> None:
    revoked, live = running.issue(), running.issue()
    running.revoke(revoked)
    # Twice, because the files of the first backup must not be in the way.
    for _ in range(2):
        with issuing(running):
            for command, output in commands(f"{name} backup"):
                running.type(command, output)
    lost = running.issue()
    restore(running, f"{name} restore", new_url)
    assert [running.state(each) for each in (revoked, live, lost)] == ["revoked", "live", "unknown"]
    assert running.state(running.issue()) == "live"
    assert stat.S_IMODE((running.folder / "kek").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["sqlite restore", "postgresql restore"])
def test_a_restore_stops_and_starts_every_unit(name: str) -> None:
    units = [unit.name.removesuffix(".service") for unit in DEPLOY.iterdir() if unit.suffix in UNITS]
    typed = [command for command, _ in commands(name) if command.startswith("systemctl ")]
    assert [command.split()[1] for command in typed] == ["stop", "start"]
    for command in typed:
        named = {re.sub(r"@.+", "@", word) for word in shlex.split(command)[2:]}
        assert named == set(units)


def test_a_restored_sqlite_file_has_what_was_backed_up(tmp_path: Path) -> None:
    with machine(tmp_path) as running:
        assert_restored(running, "sqlite")
        for file in (running.world.database, tmp_path / "backup" / "clustercert.db"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_restored_postgresql_database_has_what_was_backed_up(
    tmp_path: Path, server: postgres.Server
) -> None:
    old, new = make_url(server.create()), make_url(server.create())
    with machine(tmp_path, old.render_as_string(hide_password=False)) as running:
        running.variables |= {
            "PROGRAMS": str(server.programs),
            "PGPASSWORD": str(old.password),
            "DATABASE": f"postgresql://{old.username}@{old.host}:{old.port}/{old.database}",
            "NEW_DATABASE": f"postgresql://{new.username}@{new.host}:{new.port}/{new.database}",
        }
        assert_restored(running, "postgresql", new.render_as_string(hide_password=False))
        assert stat.S_IMODE((tmp_path / "backup" / "clustercert.dump").stat().st_mode) == 0o600
