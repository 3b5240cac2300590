import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.output import Output, document, note, printable, show_list, show_one

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


def test_a_table_off_a_terminal_is_columns_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROW, ROW | {"name": "bartholomew", "enabled": False}]
    show_list(rows, Output.TABLE, columns=("name", "enabled", "nothing", "at"))
    assert capsys.readouterr().out.split("\n") == [
        "NAME          ENABLED   NOTHING   AT",
        f"alice         yes       -         {TIME}",
        f"bartholomew   no        -         {TIME}",
        "",
    ]


def test_one_thing_is_a_table_of_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    show_one(ROW, Output.TABLE)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [["FIELD", "VALUE"], ["id", "1"]]
    assert ["groups", "a,b"] in lines
    assert ["labels", "env=prod"] in lines


@pytest.mark.parametrize(("output", "parse"), [(Output.JSON, json.loads), (Output.YAML, yaml.safe_load)])
def test_programs_get_everything(output: Output, parse: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(parse)
    expected = ROW | {"groups": ["a", "b"], "at": TIME}
    show_one(ROW, output)
    assert parse(capsys.readouterr().out) == expected
    show_list([ROW], output, columns=("name",))
    assert parse(capsys.readouterr().out) == [expected]


def test_a_spreadsheet_gets_everything_and_no_formula(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_names_are_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_list([ROW, ROW], Output.NAME, columns=())
    show_one(ROW, Output.NAME, name="id")
    assert capsys.readouterr().out == "alice\nalice\n1\n"


def test_an_empty_list_is_empty_for_programs_and_said_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    show_list([], Output.TABLE, columns=("name",))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "There is nothing to list.\n")
    show_list([], Output.JSON, columns=("name",))
    assert json.loads(capsys.readouterr().out) == []


@given(st.text() | st.text("\x00\x1b\x7f\x85\x9b\u202e\u2028\ud800\n[]/"))
def test_no_text_reaches_a_terminal_as_anything_but_text(text: str) -> None:
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


def test_hostile_cells_stay_in_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_list([{"name": "\x1b]0;x\x07[red]a\nb\u202e"}], Output.TABLE, columns=("name",))
    assert capsys.readouterr().out == "NAME\n\\x1b]0;x\\x07[red]a\\nb\\u202e\n"


def test_notes_go_to_standard_error_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    note("a\x1b[2J[bold]\nb")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "a\\x1b[2J[bold]\nb\n")


def test_time_is_shown_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    show_one({"name": datetime(2026, 1, 1, tzinfo=UTC)}, Output.NAME)
    assert capsys.readouterr().out == "2026-01-01T00:00:00Z\n"
