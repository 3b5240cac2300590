"""Someone who uses the command line with a login at a running service, from another home directory."""

import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support.command_line import PASSWORD, CommandResult, Operator, run_command, run_in_terminal
from support.operated_cluster import SERVICE_CA

_OURS = ("CLUSTERCERT", "OS_", "XDG_")


@dataclass(frozen=True)
class RemoteUser:
    """A user with a saved login. Commands run in this process."""

    home: Path

    def run(self, *arguments: str | Path, stdin: str | None = None, **variables: str) -> CommandResult:
        with self._environment(**variables):
            return run_command(*map(str, arguments), stdin=stdin)

    def in_terminal(self, *arguments: str | Path, typed: str = "", columns: int = 80) -> tuple[int, str]:
        """Run a command as if in a terminal. Returns its exit code and the screen."""
        with self._environment():
            return run_in_terminal([*map(str, arguments)], typed, columns)

    def _environment(self, **variables: str) -> AbstractContextManager[object]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        return patch.dict(os.environ, kept | {"HOME": str(self.home)} | variables, clear=True)

    def output(self, *arguments: str | Path) -> str:
        """The output of a command that succeeds."""
        done = self.run(*arguments)
        assert done.code == 0, done.err
        return done.out

    def output_json(self, *arguments: str | Path) -> Any:
        return json.loads(self.output(*arguments, "--output", "json"))

    def failure(self, code: int, *arguments: str | Path) -> str:
        """The error message of a command that fails with this exit code."""
        done = self.run(*arguments)
        assert (done.code, done.out) == (code, ""), done
        assert done.err.startswith("Error: "), done.err
        return done.err.removeprefix("Error: ").rstrip("\n")


def new_remote_user(operator: Operator, url: str, name: str, home: Path, *options: str) -> RemoteUser:
    """Create a user without roles, and log in as them.

    Args:
        options: options of `login`.
    """
    password = home / "password"
    password.write_text(PASSWORD)
    operator.output("user", "create", name, "--password-file", password)
    user = RemoteUser(home)
    ca = operator.folder / SERVICE_CA
    user.output("login", url, "--user", name, "--password-file", password, "--ca-file", ca, *options)
    return user
