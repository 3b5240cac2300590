"""The command line on a separate store, run in this process."""

import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from clustercert.cli.credential import access_request, entry, service_requests
from clustercert.cli.main import run
from clustercert.cli.options import FAILED, NOT_FOUND, USAGE
from clustercert.client.connection import ServiceClient
from support.store_commands import on_store
from support.wait import SECONDS

PASSWORD = "correct horse"


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def run_command(*arguments: str, stdin: str | None = None) -> CommandResult:
    """Run a command in this process."""
    out, err = (_Stream(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    keys = None if stdin is None else _Stream(io.BytesIO(stdin.encode()), encoding="utf-8")
    code = _run(arguments, out, err, keys)
    said = CommandResult(code, out.written, err.written)
    assert "Traceback" not in said.err
    return said


def run_in_terminal(arguments: Sequence[str], typed: str = "", columns: int = 80) -> tuple[int, str]:
    """Run a command in this process, as if in a terminal. Returns the exit code and the screen.

    A password can't be typed here: Python would ask for it at the terminal of the tests.

    Args:
        typed: the lines that answer the prompts, where Ctrl-C ends a line too. The screen does not show them.
    """
    screen = _TerminalStream(io.BytesIO(), encoding="utf-8", newline="\r\n", write_through=True)
    keyboard = _Keyboard(io.BytesIO(typed.encode()), encoding="utf-8")
    with patch.dict(os.environ, {"TERM": "xterm", "COLUMNS": str(columns)}):
        code = _run(arguments, screen, screen, keyboard)
    assert "Traceback" not in screen.written
    return code, screen.written


class _Stream(io.TextIOWrapper):
    @property
    def written(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


class _TerminalStream(_Stream):
    def isatty(self) -> bool:
        return True


class _Keyboard(_TerminalStream):
    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override] # as TextIOWrapper does
        line = super().readline(-1 if size is None else size)
        if "\x03" in line:
            raise KeyboardInterrupt
        return line


def _run(arguments: Sequence[str], out: _Stream, err: _Stream, keys: _Stream | None) -> int:
    """Run a command as `clustercert.__main__` does, with these streams."""
    keyboard = contextlib.nullcontext() if keys is None else patch("sys.stdin", keys)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), keyboard:
        code = _run_plugin([*arguments[1:]]) if "credential" in arguments[:1] else run(arguments)
    # --verbose sets it for the whole process, and the next command would print requests too.
    ServiceClient.trace = None
    return code


def _run_plugin(arguments: list[str]) -> int:
    """Run the exec plugin. It waits for the service on a busy machine too, which can take more than 10 seconds."""
    with (
        patch.object(service_requests, "NETWORK_SECONDS", SECONDS),
        patch.object(access_request, "ANSWER_SECONDS", SECONDS),
    ):
        return entry.run(arguments)


@dataclass(frozen=True)
class Operator:
    """Runs commands with a configuration file."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "clustercert.toml"

    def configure(self, more: str = "") -> None:
        self.config.write_text(
            f"data_dir = '{self.folder / 'data'}'\nkek_file = '{self.folder / 'kek'}'\n{more}",
            encoding="utf-8",
        )

    def copy(self, folder: Path) -> "Operator":
        """The operator of a copy of everything in another folder."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        copied = Operator(folder)
        copied.configure()
        return copied

    def run(self, *arguments: str | Path) -> CommandResult:
        """Run a command. Administration is done on the store."""
        return run_command("--config", str(self.config), *on_store(map(str, arguments)))

    def output(self, *arguments: str | Path) -> str:
        """The output of a command that succeeds."""
        done = self.run(*arguments)
        assert done.code == 0, done.err
        return done.out

    def output_json(self, *arguments: str | Path) -> Any:
        return json.loads(self.output(*arguments, "--output", "json"))

    def create_role(self, name: str) -> None:
        """Create a role unless it exists."""
        if name not in self.output("role", "list", "--names", "--output", "name").split():
            self.output("role", "create", name)

    def error(self, *arguments: str | Path) -> str:
        """The error message of a command that fails with an empty standard output."""
        done = self.run(*arguments)
        assert done.code in {FAILED, USAGE, NOT_FOUND}, done
        assert done.out == ""
        assert done.err.startswith("Error: ")
        return done.err.removeprefix("Error: ").rstrip("\n")

    def usage_error(self, *arguments: str | Path) -> str:
        """The error output of wrong usage."""
        done = self.run(*arguments)
        assert (done.code, done.out) == (2, ""), done
        return done.err


def new_operator(folder: Path) -> Operator:
    """An operator with a new store."""
    operator = Operator(folder)
    operator.configure()
    for name, content in _new_files().items():
        file = folder / name
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(content)
    return operator


@functools.cache
def _new_files() -> dict[str, bytes]:
    """The KEK and the empty store, by their names in an operator's folder. Each process makes them once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        operator = Operator(folder)
        operator.configure()
        operator.output("keys", "generate", "--out", folder / "kek")
        operator.output("db", "upgrade")
        return {file: (folder / file).read_bytes() for file in ("kek", "data/clustercert.db")}
