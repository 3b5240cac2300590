import json
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.audit.events import EventPrinter
from clustercert.cli.terminal.output import Output, document, paragraph, print_note, show_list, show_one
from clustercert.cli.terminal.printable import printable

ROW = {
    "id": "1",
    "name": "alice",
    "enabled": True,
    "groups": ("a", "b"),
    "labels": {"env": "prod"},
    "at": datetime(2026, 1, 15, 11, 30, 5, 9, tzinfo=timezone(timedelta(hours=1))),
    "nothing": None,
}
TIME = "2026-01-15T10:30:05Z"


def test_a_table_without_a_terminal_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROW, ROW | {"name": "bartholomew", "enabled": False}]
    show_list(rows, Output.TABLE, columns=("name", "enabled", "nothing", "at"))
    assert capsys.readouterr().out.split("\n") == [
        "NAME          ENABLED   NOTHING   AT",
        f"alice         yes       -         {TIME}",
        f"bartholomew   no        -         {TIME}",
        "",
    ]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def test_identifiers_are_never_wrapped_or_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    row = {"id": "a" * 36, "name": "production", "description": "d" * 30, "fingerprint": "f" * 64}
    show_list([row], Output.TABLE, columns=("id", "name", "description"))
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()] == [
        ["NAME", "DESCRIPTION"],
        ["production", "d" * 30],
    ]
    assert shown.err == "Columns that do not fit: id. Show them with -o wide.\n"
    show_list([row], Output.TABLE, columns=("fingerprint", "name", "description"), name="fingerprint")
    assert f"\n{'f' * 64}   production\n" in capsys.readouterr().out
    show_one(row | {"fingerprint": "f" * 200}, Output.TABLE)
    assert "f" * 200 in capsys.readouterr().out


def test_a_narrow_terminal_shows_the_columns_that_answer_the_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    row = {"name": "production", "place": "p" * 40, "owner": "alice", "until": "u" * 30}
    columns = ("name", "place", "owner", "until")
    show_list([row], Output.TABLE, columns=columns, keep=("owner", "until"))
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()] == [
        ["NAME", "OWNER", "UNTIL"],
        ["production", "alice", "u" * 30],
    ]
    assert shown.err == "Columns that do not fit: place. Show them with -o wide.\n"
    # If they don't fit beside each other, each row is a list of fields.
    show_list([row], Output.TABLE, columns=columns, keep=("place", "until"))
    assert capsys.readouterr().out.splitlines() == [
        "FIELD   VALUE",
        "name    production",
        f"place   {'p' * 40}",
        "owner   alice",
        f"until   {'u' * 30}",
    ]


def test_a_narrow_terminal_shows_what_all_rows_share_above_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    shared = {"project": "Default/eu-de", "why": "w" * 36, "ca_id": "12345678"}
    rows = [{"name": f"certificate-{state}", "state": state, **shared} for state in ("live", "revoked")]
    columns = ("name", "project", "why", "ca_id", "state")
    show_list(rows, Output.TABLE, columns=columns, keep=("state",))
    shown = capsys.readouterr()
    # No more columns than necessary.
    assert [line.split() for line in shown.out.splitlines()] == [
        ["WHY:", "w" * 36],
        ["NAME", "PROJECT", "CA-ID", "STATE"],
        ["certificate-live", "Default/eu-de", "12345678", "live"],
        ["certificate-revoked", "Default/eu-de", "12345678", "revoked"],
    ]
    assert shown.err == ""
    # Ids make no column move, and columns whose values differ are left out afterwards.
    rows[0] |= {"why": "v" * 36, "ca_id": "1" * 16}
    show_list(rows, Output.TABLE, columns=columns, keep=("state",))
    shown = capsys.readouterr()
    assert shown.out.startswith("PROJECT: Default/eu-de\nNAME")
    assert shown.err == "Columns that do not fit: ca_id. Show them with -o wide.\n"


def test_a_narrow_terminal_shows_what_a_webhook_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    cluster_id = "32a5b376-2b3e-4a09-aa10-5660c2927fc6"
    event = {
        "leaf_index": 4711,
        "kind": "credential.revoked_used",
        "version": 1,
        "project_id": "a" * 32,
        "at": "2026-01-15T10:30:05Z",
        "actor": f"cluster:{cluster_id}",
        "subject": "f" * 64,
        "source": None,
        "request_id": None,
        "detail": {},
    }
    ago = "[0-9]+d ago"

    def lines(names: dict[str, str]) -> tuple[list[str], str]:
        EventPrinter(Output.TABLE).print([event, event | {"actor": "b" * 32, "subject": cluster_id}], names)
        shown = capsys.readouterr()
        return [re.sub(ago, "TIME", line) for line in shown.out.splitlines()], shown.err

    table, note = lines({cluster_id: "a-long-domain/eu-de-1/prod-frankfurt", "b" * 32: "acme/alice"})
    assert [line.split() for line in table] == [
        ["AT", "KIND", "SUBJECT", "ACTOR"],
        ["TIME", "credential.revoked_used", "f" * 16, "cluster:prod-frankfurt"],
        ["TIME", "credential.revoked_used", "prod-frankfurt", "acme/alice"],
    ]
    assert note == "Columns that do not fit: place. Show them with -o wide.\n"
    # The service names nothing for a project's admin.
    table, note = lines({})
    assert [line.split()[3:] for line in table] == [
        ["SUBJECT", "ACTOR"],
        ["f" * 16, "cluster:32a5b376"],
        ["32a5b376", "b" * 8],
    ]
    assert note == ""


@pytest.mark.parametrize(
    ("away", "text"),
    [
        (timedelta(minutes=5, seconds=30), "in 5m"),
        (timedelta(hours=7, minutes=59, seconds=50), "in 7h59m"),
        (timedelta(hours=9, minutes=30), "in 9h"),
        (timedelta(days=6, hours=23, minutes=30), "in 6d23h"),
        (timedelta(days=9, hours=12), "in 9d"),
        (timedelta(days=-3, minutes=-30), "3d ago"),
        (timedelta(minutes=-5), "5m ago"),
        (timedelta(days=-400), "400d ago"),
    ],
)
def test_times_are_relative_on_a_terminal(
    away: timedelta, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    at = datetime.now(UTC) + away
    show_list([{"at": at}], Output.TABLE, columns=("at",))
    show_one({"at": at}, Output.TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == text
    assert lines[3].endswith(f"Z ({text})")
    show_one({"at": at}, Output.JSON)
    assert text not in capsys.readouterr().out


def test_one_object_is_a_table_of_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    show_one(ROW, Output.TABLE)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [["FIELD", "VALUE"], ["id", "1"]]
    assert ["groups", "a,b"] in lines
    assert ["labels", "env=prod"] in lines


@pytest.mark.parametrize(("output", "parse"), [(Output.JSON, json.loads), (Output.YAML, yaml.safe_load)])
def test_json_and_yaml_contain_all_fields(
    output: Output, parse: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(parse)
    expected = ROW | {"groups": ["a", "b"], "at": TIME}
    show_one(ROW, output)
    assert parse(capsys.readouterr().out) == expected
    show_list([ROW], output, columns=("name",))
    assert parse(capsys.readouterr().out) == [expected]


def test_csv_contains_all_fields_and_no_formula(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = ROW | {"name": "=1+1", "labels": {"b": "\x1b[2J"}}
    show_list([ROW, hostile], Output.CSV, columns=("name",))
    header = "id,name,enabled,groups,labels,at,nothing"
    groups = '"[""a"", ""b""]"'
    assert capsys.readouterr().out.split("\r\n") == [
        header,
        f'1,alice,true,{groups},"{{""env"": ""prod""}}",{TIME},',
        f'1,\'=1+1,true,{groups},"{{""b"": ""\\u001b[2J""}}",{TIME},',
        "",
    ]
    show_one({"a": "@x", "b": "\x1b\n"}, Output.CSV)
    show_list([], Output.CSV, columns=("name", "id"))
    assert capsys.readouterr().out == 'a,b\r\n\'@x,"\\x1b\\n"\r\nname,id\r\n'


def test_names_are_printed_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_list([ROW, ROW], Output.NAME, columns=())
    show_one(ROW, Output.NAME, name="id")
    assert capsys.readouterr().out == "alice\nalice\n1\n"


@pytest.mark.parametrize(
    ("name", "row", "shown"),
    [
        ("name", {"name": "alice", "domain": "acme"}, "acme/alice"),
        ("name", {"name": "prod", "project": "eu-de", "domain": "acme"}, "acme/eu-de/prod"),
        ("cluster", {"cluster": "prod", "project": "eu-de", "domain": "acme"}, "acme/eu-de/prod"),
        ("context", {"context": "work-prod", "project": "eu-de", "domain": "acme"}, "work-prod"),
        ("role", {"role": "member", "project": "eu-de"}, "member"),
        ("user", {"user": "alice", "user_domain": "acme", "project": "eu-de"}, "acme/alice"),
    ],
)
def test_a_printed_name_is_one_that_commands_accept(
    name: str, row: dict[str, str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_list([row], Output.NAME, columns=(name,), name=name)
    assert capsys.readouterr().out == f"{shown}\n"


def test_an_empty_list_prints_a_note_or_an_empty_document(capsys: pytest.CaptureFixture[str]) -> None:
    show_list([], Output.TABLE, columns=("name",))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Nothing found.\n")
    show_list([], Output.JSON, columns=("name",))
    assert json.loads(capsys.readouterr().out) == []


@given(st.text() | st.text("\x00\x1b\x7f\x85\x9b\u202e\u2028\ud800\n[]/"))
def test_control_characters_are_escaped(text: str) -> None:
    assert printable(text).replace("\n", "").isprintable()
    for output, parse in ((Output.JSON, json.loads), (Output.YAML, yaml.safe_load)):
        try:
            shown = document({"name": text}, output)
        except yaml.YAMLError:
            continue
        assert shown.replace("\n", "").isprintable()
        # YAML has no way to write half a surrogate pair.
        if output is Output.JSON or not any("\ud800" <= character <= "\udfff" for character in text):
            assert parse(shown) == {"name": text}


def test_cells_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_list([{"name": "\x1b]0;x\x07[red]a\nb\u202e"}], Output.TABLE, columns=("name",))
    assert capsys.readouterr().out == "NAME\n\\x1b]0;x\\x07[red]a\\nb\\u202e\n"


def test_objects_in_a_cell_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    detail = {"name": "prod", "reason": None, "count": 2, "caller": {"roles": ["admin"], "csr": True}}
    show_one({"detail": detail, "groups": ["a", "b"], "steps": [{"at": None}]}, Output.TABLE)
    *_, first, _, last = (line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines())
    assert first == 'name=prod,reason=null,count=2,caller={"roles": ["admin"], "csr": true}'
    assert last == '{"at": null}'


def test_notes_are_escaped_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_note("a\x1b[2J[bold]\nb")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "a\\x1b[2J[bold]\nb\n")


def test_time_is_shown_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    show_one({"name": datetime(2026, 1, 1, tzinfo=UTC)}, Output.NAME)
    assert capsys.readouterr().out == "2026-01-01T00:00:00Z\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("It is short.", "It is short."),
        (f"{'word ' * 12}{'a' * 25}", f"{'word ' * 12}".rstrip() + f"\n{'a' * 25}"),
        (f"{'word ' * 10}{'a' * 25} end", f"{'word ' * 10}{'a' * 25} end"),
        ("word " * 30, ("word " * 16).rstrip() + "\n" + "word " * 14),
        (f"{'a' * 76} clusters", f"{'a' * 76}\nclusters"),
        (f"{'a' * 80} b", f"{'a' * 80}\nb"),
        ("a" * 100, "a" * 100),
        (f"{'word ' * 14}`run me here`, b", f"{'word ' * 14}".rstrip() + "\n`run me here`, b"),
        (f"{'word ' * 13}`run {'a' * 80}`", f"{'word ' * 13}`run {'a' * 80}`"),
        (f"{'a ' * 34}`unpaired and more", f"{'a ' * 34}`unpaired\nand more"),
        (f"{'a' * 79}  bb", f"{'a' * 79}\nbb"),
        (f"{'a' * 80}  bb", f"{'a' * 80}\nbb"),
        (f"{'a' * 78}  b  c", f"{'a' * 78}\nb  c"),
        (f"  1  {'word ' * 15}end", f"  1  {'word ' * 15}".rstrip() + "\nend"),
    ],
)
def test_a_terminal_breaks_no_word_and_no_command_of_a_note(
    line: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_note(line)
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    print_note(line)
    assert capsys.readouterr().err == f"{shown}\n"


def test_a_paragraph_breaks_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    paragraph(f"{'word ' * 18}`run me here` again.")
    assert capsys.readouterr().out == f"  {'word ' * 18}".rstrip() + "\n    `run me here` again.\n"
