"""Users of the command line with their own home directories, for `credential` and `kubeconfig merge`."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support import patient_plugin
from support.command_line import Operator, run_command, run_in_terminal
from support.operated_cluster import SERVICE_CA
from support.stores import rows
from support.wait import SECONDS, eventually

COMMAND = (sys.executable, "-m", "clustercert")
PATIENT = patient_plugin.command(sys.executable)
PASSWORD = "correct horse"
PROJECT = "eu-de"
FORBIDDEN = 4
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class User:
    """A user of a running TLS service.

    Attributes:
        home: their home directory. The variables of the test process do not reach their commands.
        name: at the service.
    """

    operator: Operator
    url: str
    home: Path
    name: str

    @classmethod
    def create(cls, operator: Operator, url: str, home: Path, name: str, role: str = "admin") -> "User":
        """A user with a role in the project eu-de."""
        home.mkdir(mode=0o700)
        password = home / "password"
        password.write_text(PASSWORD)
        operator.output("user", "create", name, "--password-file", password)
        operator.create_role(role)
        operator.output("role", "assign", role, "--user", name, "--project", PROJECT)
        return cls(operator, url, home, name)

    @property
    def environment(self) -> dict[str, str]:
        python = {
            name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "COVERAGE"))
        }
        return {**python, "PATH": "/usr/bin:/bin", "HOME": str(self.home)}

    @property
    def uncovered(self) -> dict[str, str]:
        """The environment without coverage, which writes files of its own."""
        return {
            name: value
            for name, value in self.environment.items()
            if not name.startswith("COVERAGE_PROCESS_")
        }

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "clustercert" / "credentials"

    @property
    def project_id(self) -> str:
        return str(self.operator.output_json("project", "show", PROJECT)["id"])

    def run(
        self,
        *arguments: str | Path,
        stdin: str = "",
        env: dict[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
        command: Sequence[str] | None = None,
        **variables: str,
    ) -> Done:
        """Run a command of this user: in this process, or in one of its own if `command` or `preexec` is given."""
        environment = (self.environment if env is None else env) | variables
        if command is None and preexec is None:
            with self._at_home(environment):
                said = run_command(*map(str, arguments), stdin=stdin)
            return Done(arguments, said.code, said.out, said.err)
        done = subprocess.run(
            [*(command or COMMAND), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=2 * SECONDS,
            cwd=self.home,
            env=environment,
            check=False,
            preexec_fn=preexec,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def in_terminal(
        self, *arguments: str | Path, typed: str = "", columns: int = 80, **variables: str
    ) -> tuple[int, str]:
        """Run a command of this user in this process, as if in a terminal. Returns its exit code and the screen."""
        with self._at_home(self.environment | variables):
            return run_in_terminal([*map(str, arguments)], typed, columns)

    @contextlib.contextmanager
    def _at_home(self, environment: dict[str, str]) -> Iterator[None]:
        """Give this process the user's environment and home directory."""
        with warnings.catch_warnings(), patch.dict(os.environ, environment, clear=True):
            if "BROWSER" in environment:
                # A browser that a command opens may run for longer than the command.
                warnings.simplefilter("ignore", ResourceWarning)
            with contextlib.chdir(self.home):
                yield

    def output(self, *arguments: str | Path, **variables: str) -> str:
        """The output of a command that succeeds."""
        done = self.run(*arguments, env=self.environment | variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log_in(self, *options: str) -> None:
        done = self.run(
            "login", self.url, "--user", self.name, "--project", PROJECT, "--password-file", "password",
            "--ca-file", self.operator.folder / SERVICE_CA, *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def lose_role(self, role: str, cluster: str) -> None:
        """Replace a role by one without rights, and wait until the service refuses a certificate for the cluster.

        The commands work on the store, so the service learns of the change within a second.
        """
        self.operator.create_role("nothing")
        self.operator.output("role", "assign", "nothing", "--user", self.name, "--project", PROJECT)
        self.operator.output("role", "unassign", role, "--user", self.name, "--project", PROJECT)
        command = ("credential", cluster, "--profile", "default", "--project", self.project_id)
        eventually(lambda: self.run(*command, XDG_CACHE_HOME=os.devnull).returncode == FORBIDDEN)

    def issued(self, cluster_id: str) -> int:
        """The number of this user's certificates for a cluster, in the database."""
        return len(self.key_origins(cluster_id))

    def key_origins(self, cluster_id: str) -> list[object]:
        """Where the keys of those certificates come from."""
        database = self.operator.folder / "data" / "clustercert.db"
        query = (
            "SELECT key_origin FROM certificate JOIN user ON user.id = certificate.user_id"
            f" WHERE user.name = '{self.name}' AND cluster_id = '{cluster_id}'"
        )
        return [origin for (origin,) in rows(database, query)]


def add_cluster(operator: Operator, name: str, server_ca: Path, *options: str) -> str:
    """Register a cluster in the project eu-de. Returns its id."""
    address = () if "--internal-url" in options else ("--internal-url", "https://10.0.0.5:6443")
    return str(
        operator.output_json(
            "cluster", "add", name, "--project", PROJECT, *address, *options, "--server-ca", server_ca
        )["id"]
    )


def status_of(output: str) -> dict[str, Any]:
    """The status of an ExecCredential."""
    credential = json.loads(output)
    assert credential["kind"] == "ExecCredential"
    status: dict[str, Any] = credential["status"]
    return status
