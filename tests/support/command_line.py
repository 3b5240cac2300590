"""The command line on a separate store, run in this process."""

import contextlib
import functools
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from clustercert.cli.main import run
from clustercert.cli.options import FAILED, NOT_FOUND, USAGE
from clustercert.client.connection import ServiceClient
from support.store_commands import on_store

PASSWORD = "correct horse"


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def run_command(*arguments: str, stdin: str | None = None) -> CommandResult:
    """Run a command in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _standard_input(stdin):
        code = run(arguments)
    # --verbose sets it for the whole process, so the next command would write what it does not expect.
    ServiceClient.trace = None
    said = CommandResult(code, _written(out), _written(err))
    assert "Traceback" not in said.err
    return said


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


@contextlib.contextmanager
def _standard_input(text: str | None) -> Iterator[None]:
    """Let the commands of the block read this text, if there is one."""
    if text is None:
        yield
    else:
        with patch("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")):
            yield


def _written(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
