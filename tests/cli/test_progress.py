"""Progress of long commands in a terminal."""

import os
import re
import sys
from pathlib import Path

import pytest

from clustercert.cli.terminal import output
from support.command_line import Operator, new_operator, run_in_terminal
from support.terminal import in_a_terminal

# The real program, which shows each step instead of one now and then.
AT_ONCE = (
    *(sys.executable, "-c"),
    (
        "import clustercert.cli.terminal.output as p\np.FIRST_SECONDS, p._SECONDS_BETWEEN = -1, 0\n"
        "from clustercert.__main__ import main\nmain()"
    ),
)
DOCUMENT = """\
apiVersion: clustercert/v1
kind: Project
metadata: {name: eu-nl}
"""


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    operator = new_operator(tmp_path_factory.mktemp("progress"))
    operator.output("project", "create", "eu-de")
    operator.output("audit", "export", "--out", operator.folder / "exported")
    (operator.folder / "new.yaml").write_text(DOCUMENT)
    return operator


@pytest.mark.parametrize(
    ("command", "shown"),
    {
        "audit verify": r"\[#{30}\] \d+/\d+ events checked",
        "audit verify --export exported": r"\[#{30}\] \d+/\d+ events checked",
        "audit export --out again": r"\[#{30}\] \d+/\d+ events exported",
        "db check --certificates": "0 certificates checked",
        "policy replay": None,
        "export --local": "1 documents",
        "diff -f new.yaml --local": r"\[#{30}\] 1/1 documents compared",
        "apply -f new.yaml --local": r"\[#{30}\] 1/1 changes",
    }.items(),
)
def test_progress_is_shown_in_a_terminal(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, command: str, shown: str | None
) -> None:
    names = {name: str(operator.folder / name) for name in ("exported", "again", "new.yaml")}
    arguments = ["--config", str(operator.config), *(names.get(each, each) for each in command.split())]
    with monkeypatch.context() as patch:
        patch.setattr(output, "FIRST_SECONDS", -1)
        patch.setattr(output, "_SECONDS_BETWEEN", 0)
        _, screen = run_in_terminal(arguments)
    lines = screen.split("\r\x1b[K")
    if shown is not None:
        assert any(re.match(shown, line) for line in lines), screen
    # The last progress is cleared, and results are not mixed with it.
    assert not re.search(r"\[[#-]{30}\]", lines[-1])
    assert re.search(r"\[[#-]{30}\]|documents|checked$", operator.run(*arguments).err) is None


@pytest.mark.full
def test_the_migrations_are_counted(tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    operator.configure()
    operator.output("keys", "generate", "--out", tmp_path / "kek")
    # In a real terminal.
    code, screen = in_a_terminal(
        ["--config", str(operator.config), "db", "upgrade"], {}, os.environ, columns=80, program=AT_ONCE
    )
    assert code == 0
    assert re.search(r"\[-{30}\] 0/\d+ migrations\r\x1b\[K", screen), screen
    assert "The database schema is up to date." in screen.split("\r\x1b[K")[-1]
