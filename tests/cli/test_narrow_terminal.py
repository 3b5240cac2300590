"""Tables in a terminal of 80 columns: nothing is wrapped or cut."""

import getpass
import json
import os
import re
from pathlib import Path

import pytest

from clustercert.cli.options import USAGE
from support.command_line import Operator, new_operator, run_in_terminal
from support.samples import server_ca_pem
from support.store_commands import on_store
from support.terminal import in_a_terminal

pytestmark = pytest.mark.usefixtures("home")
LONG = "a-name-of-forty-characters-and-no-spaces"
COMMANDS = (
    "domain list",
    "project list",
    "project show " + LONG,
    "user list",
    "user show " + LONG,
    "group list",
    "group show " + LONG,
    "role list",
    "role list --names",
    "access-key list --user " + LONG,
    "cluster list",
    "cluster show " + LONG,
    "keys list",
    "kubernetes token list " + LONG,
    "audit tail",
    "audit tail --kind cluster.*",
    "audit show 0",
    "audit verify",
    "profile list",
    "kubeconfig list",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    operator = new_operator(tmp_path_factory.mktemp("narrow"))
    ca = operator.folder / "ca.pem"
    ca.write_text(server_ca_pem().decode())
    operator.output("project", "create", LONG, "--description", "d" * 60)
    operator.output("user", "create", LONG, "--no-password")
    operator.output("group", "create", LONG)
    operator.output("group", "add-user", LONG, LONG)
    operator.output("role", "assign", "member", "--user", LONG, "--project", LONG)
    operator.output("access-key", "create", "--user", LONG)
    options = ("--project", LONG, "--internal-url", "https://10.0.0.5:6443", "--server-ca", ca)
    operator.output("cluster", "add", LONG, *options, "--external-url", f"https://{LONG}.example.com:6443")
    operator.output("kubernetes", "token", "create", LONG)
    # Seals the events, for `audit verify`.
    operator.output("audit", "checkpoint")
    return operator


def screen_of(operator: Operator, *arguments: str, expected: int = 0) -> list[str]:
    """The lines on the screen, without what starts and ends bold text."""
    code, screen = run_in_terminal(["--config", str(operator.config), *on_store(arguments)])
    assert code == expected, screen
    return lines_of(screen)


def lines_of(screen: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*[mK]|\r", "", screen).splitlines()


def is_prose(line: str) -> bool:
    """Whether the line is not a row of a table, and the terminal breaks no word of it."""
    words = [(each.start(), each.end() - 1) for each in re.finditer(r"\S+", line)]
    return "   " not in line and all(first // 80 == last // 80 for first, last in words)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_too_long(store: Operator, command: str) -> None:
    lines = screen_of(store, *command.split())
    assert [line for line in lines if len(line) > 80 and not is_prose(line)] == []


@pytest.mark.parametrize(
    "command",
    ["kubeconfig get prod --expire-at junk", "credential prod --profile ../x", "login --profile ../x"],
)
def test_an_error_is_broken_between_words(store: Operator, command: str) -> None:
    lines = screen_of(store, *command.split(), expected=USAGE)
    assert all(len(line) <= 80 for line in lines), lines
    assert any(len(line) > 60 for line in lines)


@pytest.mark.parametrize("command", ["cluster list", "kubeconfig get prod --expire-at junk"])
def test_a_real_terminal_shows_the_same(store: Operator, home: Path, command: str) -> None:
    arguments = ["--config", str(store.config), *on_store(command.split())]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTERCERT")}
    code, screen = in_a_terminal(arguments, {}, variables | {"HOME": str(home)}, columns=80)
    assert lines_of(screen) == screen_of(store, *command.split(), expected=code)
    assert max(map(len, lines_of(screen))) in range(60, 81)


def test_an_identifier_is_whole_and_wide_shows_all(store: Operator) -> None:
    (cluster,) = store.output_json("cluster", "list")
    *note, heading, row = screen_of(store, "cluster", "list")
    assert heading.split()[0] == "NAME"
    assert row.split()[0] == LONG
    hidden = (
        " ".join(note).removeprefix("Columns that do not fit: ").removesuffix(". Show them with -o wide.")
    )
    assert {"id", "project", "external_url"} <= set(hidden.split(", "))
    wide = screen_of(store, "cluster", "list", "-o", "wide")[-1]
    assert {cluster["id"], LONG, cluster["external_url"]} <= set(wide.split())
    # A record is shown as a list; a value that is too long has a line of its own.
    shown = store.output_json("cluster", "show", LONG)
    assert shown["external_url"] in " ".join(screen_of(store, "cluster", "show", LONG)).split()


def test_events_have_names_and_relative_times(store: Operator) -> None:
    _, heading, *rows = screen_of(store, "audit", "tail", "--kind", "cluster.*")
    assert heading.split() == ["AT", "KIND", "SUBJECT", "ACTOR"]
    [cells] = [re.sub(r"\d+[smh] ago", "TIME", row).split() for row in rows]
    assert cells == ["TIME", "cluster.added", LONG, f"cli:{getpass.getuser()}"]
    (cluster,) = store.output_json("cluster", "list")
    assert cluster["id"] in screen_of(store, "audit", "tail", "--kind", "cluster.*", "-o", "wide")[-1]
    # Data have ids and absolute times.
    event = json.loads(store.output("audit", "tail", "--kind", "cluster.*", "-o", "json"))
    assert event["subject"] == cluster["id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["at"])
    assert store.output("audit", "tail", "--kind", "cluster.*").split()[0] == event["at"]
