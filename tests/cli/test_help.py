"""The help texts of all commands at 80 columns."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from clustercert.cli.main import PANELS, app, run
from clustercert.cli.options import USAGE


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ROOT = typer.main.get_command(app)
ALL = [*commands(ROOT)]


def command_of(path: tuple[str, ...]) -> Any:
    found: Any = ROOT
    for name in path:
        found = found.commands[name]
    return found


def examples() -> Iterator[str]:
    for path in ALL:
        text = command_of(path).help or ""
        yield from (line.strip() for line in text.splitlines() if line.startswith("    clustercert "))


def test_the_first_lines_show_what_developers_need(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    panels = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert panels == [
        *(f"{name}:" for name in list(PANELS)[:1]),
        "Options:",
        *(f"{name}:" for name in list(PANELS)[1:]),
    ]
    first = [line.split()[0] for line in text.splitlines()[:24] if line.startswith("  ")]
    assert {entry.name for entry in PANELS["Every day"]} <= {*first}
    assert max(map(len, text.splitlines())) <= 80


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
    intro = (
        text.partition("\nEvery day:")[0]
        .partition("\nOptions:")[0]
        .partition("\nArguments:")[0]
        .partition("\n\n")[2]
    )
    assert not re.search(r"\S {2,}\S", intro), intro
    assert max(map(len, intro.splitlines())) <= 80, intro


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_each_option_says_what_it_does_and_what_it_takes(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    # By default, Typer writes names of Python types, and braces around required arguments.
    assert not re.search(r"<(str|int|float|path)( range)?>", text)
    assert "{" not in text.partition("\n")[0]
    for each in command_of(path).params:
        assert each.help or each.name in {"install_completion", "show_completion"}, each.name


def test_each_command_has_an_example() -> None:
    without = [
        path
        for path in ALL
        if not hasattr(command_of(path), "commands") and "Examples:" not in command_of(path).help
    ]
    assert without == []


@pytest.mark.parametrize("example", [*examples()])
def test_an_example_in_a_help_text_is_a_command(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The command opens the file while it parses its arguments.
    (tmp_path / "audit.log").touch()
    # The shell handles redirections.
    command, words = ROOT, shlex.split(example.partition(" >")[0])[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    with command.make_context(command.name, words) as context:
        assert not context.args


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["version"], ["--version"]),
        (["help"], ["--help"]),
        (["help", "kubeconfig", "merge"], ["kubeconfig", "merge", "--help"]),
        (["whoami", "--help"], ["status", "--help"]),
    ],
)
def test_words_of_other_programs_do_what_one_expects(
    words: list[str], same: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == run(same) == 0
    out = capsys.readouterr().out
    assert out == out[: len(out) // 2] * 2 != ""


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("merge prod", "Did you mean `clustercert kubeconfig merge`?"),
        ("get prod", "Did you mean `clustercert kubeconfig get`?"),
        ("-v", "Did you mean --verbose or --version?"),
        ("--profile work status", "Write it after the command."),
        ("apply --dry-run", "Error: There is no option --dry-run. `clustercert diff` shows what `apply`"),
        ("access-key list", "Error: Missing option '--user'."),
        ("kubeconfig get", "Error: Missing argument 'CLUSTER'."),
    ],
)
def test_a_wrong_command_line_names_the_right_one(
    line: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line.split()) == USAGE
    assert advice in capsys.readouterr().err


def test_the_choices_of_an_option_are_broken_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["clusters", "--output", "a-format-that-does-not-exist"]) == USAGE
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith("'name', 'wide'.")
