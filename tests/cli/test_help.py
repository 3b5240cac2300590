"""The help texts of all commands at 80 columns."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from clustercert.cli.main import app, run


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL = [*commands(typer.main.get_command(app))]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_a_help_text_is_whole(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    # A list of commands has their whole first sentences.
    assert "..." not in text.partition("\n")[2]
    intro = text.partition("\nOptions:")[0].partition("\nArguments:")[0].partition("\n\n")[2]
    assert not re.search(r"\S {2,}\S", intro), intro
    assert max(map(len, intro.splitlines())) <= 80, intro
