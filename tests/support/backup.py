"""A machine with the service, on which tests type the commands of docs/backup.md."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from support import world as worlds
from support.leaf_checks import leaf_of
from support.page_steps import Step, run, steps
from support.wait import SECONDS, line_with
from support.world import World

PAGE = Path(__file__).parents[2] / "docs" / "backup.md"
# Where a machine has no `sqlite3` command.
SQLITE3 = f"""#!{sys.executable}
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):
    print(row[0])
"""


def commands(name: str) -> Sequence[Step]:
    """The commands of a block in the page, each with the output that the page shows."""
    text = PAGE.read_text()
    block = re.search(rf"<!-- begin {name} -->\n(.*?)<!-- end {name} -->", text, re.DOTALL)
    assert block is not None
    return steps(block[1])


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
        return os.environ | self.variables | {"PATH": path, "CLUSTERCERT_CONFIG": str(self.config)}

    def type(self, step: Step) -> None:
        """Run a command of the page. It must succeed, with the output that the page shows."""
        words = {
            # This machine may lack the user: tests/e2e/test_service_user.py has it.
            " -o clustercert": "",
            "/var/lib/clustercert": str(self.folder / "data"),
            "/etc/clustercert/private": str(self.folder),
            "/etc/clustercert": str(self.folder),
            "/backup/": f"{self.folder / 'backup'}/",
            "/keys/": f"{self.folder / 'keys'}/",
        }
        run(step, self.folder, self.environment, words=words)

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
        answer = self.post(self.world.path(), {"duration": 1})
        leaf_of(answer.json())
        return answer.headers["X-Clustercert-Fingerprint"]

    def revoke(self, fingerprint: str) -> None:
        project, cluster = self.world.project.id, self.world.clusters["plain"].id
        path = f"/clustercert/v1/projects/{project}/clusters/{cluster}/certificates/{fingerprint}/revoke"
        self.post(path, {"reason": "superseded"})

    def state(self, fingerprint: str) -> str:
        """The state of a certificate, or `unknown` if the ledger lacks it."""
        project, cluster = self.world.project.id, self.world.clusters["plain"].id
        path = f"{self.url}/clustercert/v1/projects/{project}/clusters/{cluster}/certificates/{fingerprint}"
        answer = httpx2.get(
            path, headers=self.world.people["admin"].headers, timeout=SECONDS, trust_env=False
        )
        if answer.status_code == 404:
            return "unknown"
        assert answer.status_code == 200, answer.text
        return str(answer.json()["state"])

    def post(self, path: str, body: Mapping[str, object]) -> httpx2.Response:
        headers = self.world.people["admin"].headers
        answer = httpx2.post(
            f"{self.url}{path}", json=body, headers=headers, timeout=SECONDS, trust_env=False
        )
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
