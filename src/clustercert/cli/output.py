"""How answers look: tables for people, JSON, YAML and CSV for programs, names for shells; not what they say.

Answers go to standard output and nothing else does; notes and errors go to standard error. What came from elsewhere
is data: never markup, and its control characters are shown, not sent to the terminal.
"""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

Row = Mapping[str, object]

_GAP = "   "
_NOTHING = "-"
_PAGE_WIDTH, _LEAST_WIDTH = 100, 40
_PERHAPS_NOT_PRINTABLE = re.compile(r"[^\n -~]")


class Output(StrEnum):
    """The forms that an answer has."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"
    NAME = "name"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="The form of the answer.")]


def show_list(rows: Sequence[Row], output: Output, *, columns: Sequence[str], name: str = "name") -> None:
    """Answer with a list. A table has the given columns, `name` has one, the other forms have everything."""
    match output:
        case Output.TABLE if rows:
            _print_table(
                [column.upper().replace("_", "-") for column in columns],
                [_cells(row, columns) for row in rows],
            )
        case Output.TABLE:
            note("There is nothing to list.")
        case Output.NAME:
            answer("".join(f"{_cell(row[name])}\n" for row in rows))
        case Output.CSV:
            answer(csv(rows, list(rows[0]) if rows else columns))
        case _:
            answer(document([_plain(row) for row in rows], output))


def show_one(row: Row, output: Output, *, name: str = "name") -> None:
    """Answer with one thing."""
    match output:
        case Output.TABLE:
            _print_table(["FIELD", "VALUE"], [(field, _cell(value)) for field, value in row.items()])
        case Output.NAME:
            answer(f"{_cell(row[name])}\n")
        case Output.CSV:
            answer(csv([row], list(row)))
        case _:
            answer(document(_plain(row), output))


def document(value: object, output: Output) -> str:
    """A value of JSON's kinds as a JSON or YAML document with a line end."""
    if output is Output.JSON:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        # Whatever is not printable stands inside a string, where JSON has escapes for it.
        return _PERHAPS_NOT_PRINTABLE.sub(_json_escape, text)
    import yaml

    text = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1_000_000
    )
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return yaml.safe_dump(
        value, sort_keys=False, allow_unicode=False, default_flow_style=False, width=1_000_000
    )


def csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """With a header, lists and objects as JSON; nothing in it is a formula to a spreadsheet."""
    from clustercert.spreadsheet import csv_text

    text = csv_text([_plain(row) for row in rows], columns)
    return "\r\n".join(_escaped(line) for line in text.split("\r\n"))


def answer(text: str) -> None:
    """Write to standard output."""
    sys.stdout.write(text)


def paragraph(text: str) -> None:
    """Write a text to standard output, indented, in lines that fit the terminal, or a page where there is none."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PAGE_WIDTH
    lines = textwrap.wrap(
        printable(text),
        max(width, _LEAST_WIDTH),
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    answer("".join(f"{line}\n" for line in lines))


def note(text: str) -> None:
    """Say something that is not the answer."""
    sys.stderr.write(f"{printable(text)}\n")


def printable(text: str) -> str:
    """Text with everything escaped that is not printable, line ends aside."""
    return "\n".join(_escaped(line) for line in text.split("\n"))


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _json_escape(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def _plain(row: Row) -> dict[str, object]:
    """The row with values of JSON's kinds only."""
    return {field: _plain_value(value) for field, value in row.items()}


def _plain_value(value: object) -> object:
    match value:
        case datetime():
            return time_text(value)
        case Mapping():
            return _plain(value)
        case tuple() | list():
            return [_plain_value(item) for item in value]
        case _:
            return value


def time_text(time: datetime) -> str:
    """RFC 3339, UTC, whole seconds."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _cells(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(_cell(row[column]) for column in columns)


def _cell(value: object) -> str:
    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = time_text(value)
        case Mapping():
            text = ",".join(f"{key}={item}" for key, item in value.items())
        case tuple() | list():
            text = ",".join(str(item) for item in value)
        case _:
            text = str(value)
    return _escaped(text) or _NOTHING


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        _print_for_a_terminal(headings, rows)
        return
    # As kubectl does it: aligned columns and nothing around them, so that grep, awk and sort can read it.
    widths = [max(len(line[column]) for line in (headings, *rows)) for column in range(len(headings))]
    for line in (headings, *rows):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        answer(_GAP.join(padded).rstrip() + "\n")


def _print_for_a_terminal(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(markup=False, highlight=False, emoji=False).print(table)
