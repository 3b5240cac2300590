"""The command line on a store of its own, run in this process as an operator would run it."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustercert.cli.root import run


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Operator:
    """Somebody at a shell, with a configuration file."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "clustercert.toml"

    def configure(self, more: str = "") -> None:
        self.config.write_text(
            f"data_dir = '{self.folder / 'data'}'\nkek_file = '{self.folder / 'kek'}'\n{more}",
            encoding="utf-8",
        )

    def types(self, *arguments: str | Path) -> Done:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(["--config", str(self.config), *map(str, arguments)])
        said = Done(code, _written(out), _written(err))
        assert "Traceback" not in said.err
        return said

    def gets(self, *arguments: str | Path) -> str:
        """The answer of a command that works."""
        done = self.types(*arguments)
        assert done.code == 0, done.err
        return done.out

    def gets_json(self, *arguments: str | Path) -> Any:
        return json.loads(self.gets(*arguments, "--output", "json"))

    def is_refused(self, *arguments: str | Path) -> str:
        """What is said of a command that is refused: one sentence, and nothing on standard output."""
        done = self.types(*arguments)
        assert (done.code, done.out) == (1, ""), done
        assert done.err.startswith("Error: ")
        return done.err.removeprefix("Error: ").rstrip("\n")

    def misuses(self, *arguments: str | Path) -> str:
        """What is said of wrong usage."""
        done = self.types(*arguments)
        assert (done.code, done.out) == (2, ""), done
        return done.err


def new_operator(folder: Path) -> Operator:
    """An operator with a new store."""
    operator = Operator(folder)
    operator.configure()
    operator.gets("keys", "generate", "--out", folder / "kek")
    operator.gets("db", "upgrade")
    return operator


def _written(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
