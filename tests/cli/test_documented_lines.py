"""Every `clustercert` command line in the documentation names an existing command, and options that it has."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from clustercert.cli.main import app
from support.page_steps import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
COMMANDS: Any = typer.main.get_command(app)
# What may stand before a command: the start of a line, a prompt, another command, or a program that runs commands.
_BEFORE = r"(?:^[ -]*(?:\$ |run: )?|[|;&(`] *| -- |[A-Z_]+=\S+ |/bin/|\bexec \S+ )"
_LINE = re.compile(rf"{_BEFORE}clustercert ((?:[a-z]|--[a-z])[^`\n]*)", re.MULTILINE)
# The first line of a signed statement, and the label of a key.
_NO_COMMANDS = {"revoke v1", "client CA"}
# The options of the root command are allowed anywhere.
_ROOT_OPTION = re.compile(r"--(?:config|data-dir)[= ]\S+ ?")


def lines() -> Iterator[tuple[str, str]]:
    """The pages, and the command lines in their code blocks and between backticks. No page lists the changes."""
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        text = page.read_text(encoding="utf-8")
        fenced = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
        prose = re.sub(r"\n *(?=\S)", " ", fenced.sub("\n\n", text))
        spans = re.findall(r"`(clustercert [^`]+)`", prose)
        for part in [*map(textwrap.dedent, fenced.findall(text)), *spans]:
            joined = re.sub(r"\\\n *", " ", part)
            # A message in the output may go on in the next line.
            joined = re.sub(
                r"(?<=`)clustercert [^`$]+(?=`)", lambda found: " ".join(found[0].split()), joined
            )
            for found in _LINE.finditer(joined):
                if found[1] not in _NO_COMMANDS:
                    yield str(page.relative_to(ROOT)), found[1]


def arguments(line: str) -> list[str]:
    """The words of a command, up to a comment, a pipe, a redirection or the next command."""
    lexer = shlex.shlex(_ROOT_OPTION.sub("", line), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            break
        words.append(word)
    return words


def fault(line: str) -> str | None:
    """What is wrong with a command line, or None."""
    command, words = COMMANDS, arguments(line)
    while commands := getattr(command, "commands", {}):
        if not words or words[0].startswith(("-", "…")) or words[0].isupper():
            return None  # a group alone
        if words[0] not in commands:
            return f"there is no command {words[0]}"
        command, words = commands[words[0]], words[1:]
    names = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    for word in words:
        name = word.partition("=")[0]
        if re.match(r"--?[a-z]", name) and name not in names:
            return f"there is no option {name}"
    return None


def test_every_command_line_in_the_documentation_exists() -> None:
    found = {*lines()}
    assert len(found) > 300
    assert [(page, line, fault(line)) for page, line in sorted(found) if fault(line)] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("users list", "there is no command users"),
        ("user list --everyone", "there is no option --everyone"),
        ("user list -x | head --lines=1", "there is no option -x"),
        ("user list --output json | head --lines=1", None),
        ("--config /etc/clustercert.toml user list > users --everyone", None),
        ("cluster …", None),
    ],
)
def test_a_line_that_does_not_exist_is_found(line: str, expected: str | None) -> None:
    assert fault(line) == expected
