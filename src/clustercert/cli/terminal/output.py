"""Output of commands: values, tables, notes and progress."""

import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from clustercert.cli.terminal.printable import printable, printable_line
from clustercert.model.identity import DEFAULT_DOMAIN, qualified_name
from clustercert.model.times import parse_rfc3339, rfc3339

if TYPE_CHECKING:
    from clustercert.model import JsonObject


_TIMES = frozenset({"at", "not_before", "not_after", "client_ca_not_after"})
# The number of fingerprint digits in a table. `certificate show` and `certificate revoke` accept these digits instead
# of the whole fingerprint.
_DIGITS = 16


def with_times(fields: "JsonObject") -> "JsonObject":
    """Parse the times in an API object, so that tables can show them relative to now."""
    return {name: _time(name, value) for name, value in fields.items()}


def with_names(fields: "JsonObject") -> "JsonObject":
    """Add short columns: the first digits of the fingerprint, and the names of cluster and project, or their ids.

    Also parses the times, as `with_times` does.
    """
    columns: JsonObject = {}
    if "fingerprint" in fields:
        columns["certificate"] = str(fields["fingerprint"] or "")[:_DIGITS]
    for noun in ("cluster", "project"):
        if f"{noun}_id" in fields:
            columns[noun] = fields.get(f"{noun}_name") or fields[f"{noun}_id"]
    return with_times(fields) | columns


def with_qualified_names(
    rows: "Sequence[Mapping[str, object]]", column: str, domain: str
) -> "Sequence[Mapping[str, object]]":
    """Replace the names in a column by DOMAIN/NAME, if a row's domain is not `Default`.

    A table with all columns always has DOMAIN/NAME. Names without a known domain stay the same.

    Args:
        domain: the column that has the names of the domains.
    """
    if all(row[domain] in (None, DEFAULT_DOMAIN) for row in rows) and not is_wide():
        return rows
    return [
        {**row, column: qualified_name(str(row[column]), str(row[domain]))} if row[domain] else row
        for row in rows
    ]


def with_domain(columns: "Sequence[str]", rows: "Sequence[Mapping[str, object]]") -> "Sequence[str]":
    """Add the column `domain` after `project` if several projects in the rows have the same name."""
    projects = {(row["project"], row["domain"]) for row in rows}
    if len(projects) == len({name for name, _ in projects}):
        return columns
    place = columns.index("project") + 1
    return (*columns[:place], "domain", *columns[place:])


def _time(name: str, value: object) -> object:
    is_time = name in _TIMES or name.endswith("_at")
    return parse_rfc3339(value) if is_time and isinstance(value, str) else value


Row = Mapping[str, object]

_GAP = "   "
_EMPTY_CELL = "-"
_PAGE_WIDTH, _MIN_WIDTH = 100, 40
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
# A time of less than this number of days or hours is shown with a second, smaller unit, such as `7h59m`.
_FEW = 8
_SMALLER = {"d": (3600, "h"), "h": (60, "m")}
_COMMAND = re.compile(r"`[^`\n]*`")
# Stands for a space in a command, so that no line is broken there. Printable text does not contain this character.
_UNBROKEN_SPACE = "\0"
_NOT_PLAIN_ASCII = re.compile(r"[^\n -~]")


class Output(StrEnum):
    """The output formats."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"
    NAME = "name"
    WIDE = "wide"


class _Layout:
    """How tables are shown.

    Attributes:
        wide: whether all columns are shown, even if they don't fit into the terminal.
    """

    wide = False


def _choose_layout(output: Output) -> Output:
    """Replace the format `wide` by `table`, and remember that tables show all columns."""
    _Layout.wide = output is Output.WIDE
    return Output.TABLE if _Layout.wide else output


OutputOption = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        metavar="FORMAT",
        callback=_choose_layout,
        help="table, wide (a table with all columns), json, yaml, csv or name.",
    ),
]


def is_wide() -> bool:
    """Whether all columns are shown, even if they don't fit."""
    return _Layout.wide


def row_of(value: object, *fields: str) -> dict[str, object]:
    """Return the named attributes of an object as a row."""
    return {field: getattr(value, field) for field in fields}


class Table:
    """A table with aligned columns and no borders, like kubectl's tables, so that grep, awk and sort can read it.

    The rows of the first `print` decide which columns are shown. A later row that is too wide for the terminal is shown
    as a list of fields.

    Args:
        name: the column that identifies a row.
        keep: the most important columns. If these columns don't fit into the terminal, each row is shown as a list of
            fields.
    """

    def __init__(self, columns: Sequence[str], name: str, keep: Sequence[str] = ()) -> None:
        self._columns = columns
        self._name = name
        self._keep = keep
        self._widths: dict[str, int] = {}

    def print(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        if not self._widths:
            shown = _fitting(self._columns, rows, self._name, self._keep)
            if not shown:
                for row in rows:
                    _print_fields({column: row[column] for column in self._columns})
                return
            self._widths = {
                column: max(len(column), *(len(_cell(row[column])) for row in rows)) for column in shown
            }
            self._print_line({column: _heading(column) for column in shown}, is_heading=True)
        for row in rows:
            cells = {column: _cell(row[column]) for column in self._widths}
            if self._fits(cells):
                self._print_line(cells)
            else:
                _print_fields({column: row[column] for column in cells})

    def _fits(self, cells: Mapping[str, str]) -> bool:
        """Whether a line fits into the terminal."""
        if _Layout.wide or not sys.stdout.isatty():
            return True
        widths = [max(width, len(cells[column])) + len(_GAP) for column, width in self._widths.items()]
        return len(widths) == 1 or sum(widths) - len(_GAP) <= shutil.get_terminal_size().columns

    def _print_line(self, cells: Mapping[str, str], *, is_heading: bool = False) -> None:
        padded = [cells[column].ljust(width) for column, width in self._widths.items()]
        _print_line(_GAP.join(padded).rstrip(), is_heading=is_heading)


def show_list(
    rows: Sequence[Row],
    output: Output,
    *,
    columns: Sequence[str],
    name: str = "name",
    keep: Sequence[str] = (),
    empty: str = "Nothing found.",
) -> None:
    """Print a list. A table has the given columns; JSON, YAML and CSV have all fields.

    If a terminal is too narrow, ids are left out. If that is not enough, columns that have the same value in all rows
    move into a line above the table. Then other columns are left out from right to left, and `keep` last.

    Args:
        name: the field that identifies a row. `--output name` prints this field in a form that commands accept: see
            `_reference`.
        keep: the columns that even a narrow terminal must show, the most important first.
        empty: the note to print instead of an empty table.
    """
    match output:
        case Output.TABLE if rows:
            Table(_without_common(columns, rows, name, keep), name, keep).print(rows)
        case Output.TABLE:
            print_note(empty)
        case Output.NAME:
            write_out("".join(f"{_reference(row, name)}\n" for row in rows))
        case Output.CSV:
            write_out(csv(rows, list(rows[0]) if rows else columns))
        case _:
            write_out(document([_plain(row) for row in rows], output))


def _reference(row: Row, name: str) -> str:
    """Return how commands name the object of a row.

    This is `DOMAIN/PROJECT/NAME` for a cluster, and `DOMAIN/NAME` for a user, a group or a project. Other objects, such
    as roles and contexts, may have a domain or project in their row, but commands take only their name.
    """
    fields = {"name": ("domain", "project"), "cluster": ("domain", "project"), "user": ("user_domain",)}
    owners = [_cell(row[field]) for field in fields.get(name, ()) if row.get(field) is not None]
    return qualified_name(_cell(row[name]), "/".join(owners))


def show_one(row: Row, output: Output, *, name: str = "name") -> None:
    match output:
        case Output.TABLE:
            _print_fields(row)
        case Output.JSON | Output.YAML:
            write_out(document(_plain(row), output))
        case _:
            show_list([row], output, columns=list(row), name=name)


def document(value: object, output: Output) -> str:
    """Return a JSON value as a JSON or YAML document that ends with a line feed."""
    if output is Output.JSON:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        # Non-printable characters occur only in strings, where JSON can escape them.
        return _NOT_PLAIN_ASCII.sub(lambda c: c[0] if c[0].isprintable() else json.dumps(c[0])[1:-1], text)
    from clustercert.yaml_text import dump

    # If a character is not printable, escape everything outside ASCII.
    for allow_unicode in (True, False):
        text = dump(value, allow_unicode=allow_unicode)
        if all(line.isprintable() for line in text.split("\n")):
            break
    return text


def csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return CSV with a header. Lists and objects become JSON. Escapes cells that spreadsheets read as formulas."""
    from clustercert.csv_text import csv_text

    text = csv_text([_plain(row) for row in rows], columns)
    return "\r\n".join(printable_line(line) for line in text.split("\r\n"))


def write_out(text: str) -> None:
    sys.stdout.write(text)


def paragraph(text: str) -> None:
    """Write indented text to standard output, wrapped at the width of the terminal or at 100 columns.

    Does not break commands in backticks.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PAGE_WIDTH
    lines = textwrap.wrap(
        _unbroken_commands(printable(text)),
        max(width, _MIN_WIDTH),
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    write_out("".join(f"{line}\n" for line in lines).replace(_UNBROKEN_SPACE, " "))


def field_lines(fields: Sequence[tuple[str, str]]) -> None:
    """Write labels with their texts, wrapped like a paragraph. The lines of a text are aligned."""
    column = max(len(label) for label, _ in fields) + len(_GAP)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PAGE_WIDTH
    for label, text in fields:
        lines = textwrap.wrap(
            _unbroken_commands(printable_line(text)),
            max(width, _MIN_WIDTH),
            initial_indent=label.ljust(column),
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
        write_out("".join(f"{line}\n" for line in lines).replace(_UNBROKEN_SPACE, " "))


def print_note(text: str) -> None:
    """Write a note to standard error. See `note_text`."""
    sys.stderr.write(f"{note_text(text)}\n")


def note_text(text: str) -> str:
    """Return the text of a note or a question for standard error.

    Escapes non-printable characters. In a terminal, breaks lines so that the terminal splits no words and no commands
    in backticks, which users copy.
    """
    lines = printable(text).split("\n")
    if sys.stderr.isatty():
        lines = [_keep_words_whole(line, shutil.get_terminal_size().columns) for line in lines]
    return "\n".join(lines)


def _unbroken_commands(text: str) -> str:
    return _COMMAND.sub(lambda command: command[0].replace(" ", _UNBROKEN_SPACE), text)


def _keep_words_whole(line: str, width: int) -> str:
    """Break a line before each word or command that the terminal would split.

    Words and commands longer than a terminal line stay whole.
    """
    text, column = "", 0
    for word in _unbroken_commands(line).split(" "):
        is_split = column % width + len(word) > width >= len(word)
        # The terminal begins a new line at this word, or at the space before it. With the line feed, the new line does
        # not begin with a space, and a log of the terminal has short lines too.
        begins_line = column > 1 and column % width <= 1
        text, column = (f"{text.rstrip(' ')}\n", 0) if is_split or begins_line else (text, column)
        # Two spaces in a row have an empty word between them. Do not begin a line with the second space.
        if word or not text.endswith("\n"):
            text, column = f"{text}{word} ", column + len(word) + 1
    return text[:-1].replace(_UNBROKEN_SPACE, " ")


def _plain(row: Row) -> dict[str, object]:
    """Convert the values of a row to JSON types."""
    return {field: _plain_value(value) for field, value in row.items()}


def _plain_value(value: object) -> object:
    match value:
        case datetime():
            return rfc3339(value)
        case Mapping():
            return _plain(value)
        case tuple() | list():
            return [_plain_value(item) for item in value]
        case _:
            return value


def _cell(value: object) -> str:
    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = _relative(value) if sys.stdout.isatty() else rfc3339(value)
        case Mapping():
            text = ",".join(f"{key}={_item(item)}" for key, item in value.items())
        case tuple() | list():
            text = ",".join(map(_item, value))
        case _:
            text = str(value)
    return printable_line(text) or _EMPTY_CELL


def _item(value: object) -> str:
    """Return an item of a list or object in a cell as JSON, but a text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _detailed(value: object) -> str:
    """Return the text of a value in a list of fields. A time is absolute and, in a terminal, also relative."""
    if isinstance(value, datetime) and sys.stdout.isatty():
        return time_text(value)
    return _cell(value)


def time_text(time: datetime) -> str:
    """Return a time for a sentence: absolute, and relative to now."""
    return f"{rfc3339(time)} ({_relative(time)})"


def _relative(time: datetime) -> str:
    """Return how far a time is from now, such as `in 7h59m` or `30d ago`, in the same units as kubectl."""
    seconds = round((time - datetime.now(UTC)).total_seconds())
    size, unit = next((size, unit) for size, unit in _UNITS if abs(seconds) >= 2 * size or size == 1)
    count, rest = divmod(abs(seconds), size)
    amount = f"{count}{unit}"
    if unit in _SMALLER and count < _FEW:
        size, unit = _SMALLER[unit]
        amount += f"{rest // size}{unit}" if rest >= size else ""
    return f"in {amount}" if seconds > 0 else f"{amount} ago"


def _fitting(columns: Sequence[str], rows: Sequence[Row], name: str, keep: Sequence[str]) -> Sequence[str]:
    """Return the columns that fit into the terminal, and print which columns do not fit. Never wraps or cuts values.

    Columns of ids and of places in the log are left out first, then later columns before earlier columns. Returns no
    columns if one in `keep` does not fit.

    Args:
        name: the column that identifies a row, which is always shown.
        keep: the most important columns.
    """
    if _Layout.wide or not sys.stdout.isatty():
        return columns
    widths = _widths(columns, rows)
    first = name if name in columns else columns[0]
    left = shutil.get_terminal_size().columns + len(_GAP) - widths[first]
    shown = {first}
    kept = [column for column in keep if column in columns]
    for column in (*kept, *sorted(columns, key=_is_id)):
        if column not in shown and widths[column] <= left:
            shown.add(column)
            left -= widths[column]
    if not shown.issuperset(kept):
        return ()
    if hidden := [column for column in columns if column not in shown]:
        print_note(f"Columns that do not fit: {', '.join(hidden)}. Show them with -o wide.")
    return [column for column in columns if column in shown]


def _without_common(
    columns: Sequence[str], rows: Sequence[Row], name: str, keep: Sequence[str]
) -> Sequence[str]:
    """Return the columns for a table.

    Prints the removed columns, which have the same value in all rows, with this value.

    Removes columns from right to left until the columns without ids fit into the terminal. Removes columns in `keep`
    only if the terminal is too narrow for the columns in `keep` alone.
    """
    if _Layout.wide or not sys.stdout.isatty() or len(rows) == 1:
        return columns
    widths = _widths(columns, rows)
    common: list[str] = []

    def remove(needed: Sequence[str], removable: Sequence[str]) -> None:
        too_many = sum(widths[each] for each in needed) - len(_GAP) - shutil.get_terminal_size().columns
        for column in reversed(removable):
            if too_many > 0 and all(row[column] == rows[0][column] for row in rows):
                common.append(column)
                too_many -= widths[column]

    named = [column for column in columns if column == name or not _is_id(column)]
    kept = [column for column in keep if column in columns and column != name]
    remove(named, [column for column in named if column not in (name, *kept)])
    remove([*(column for column in columns if column == name), *kept], kept)
    if common:
        values = [f"{_heading(column)}: {_cell(rows[0][column])}" for column in columns if column in common]
        write_out(_GAP.join(values) + "\n")
    return [column for column in columns if column not in common]


def _widths(columns: Sequence[str], rows: Sequence[Row]) -> dict[str, int]:
    """Return the width of each column, with the gap to the next one."""
    return {
        column: max(len(column), *(len(_cell(row[column])) for row in rows)) + len(_GAP) for column in columns
    }


def _heading(column: str) -> str:
    return column.upper().replace("_", "-")


def _is_id(column: str) -> bool:
    return column in ("id", "place", "fingerprint") or column.endswith("_id")


def _print_fields(row: Row) -> None:
    """Print a line for each field. A value too long for the terminal is printed below its field, unbroken."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    column = max(map(len, ("FIELD", *row))) + len(_GAP)
    _print_line("FIELD".ljust(column) + "VALUE", is_heading=True)
    for field, value in row.items():
        text = _detailed(value)
        if width is None or column + len(text) <= width:
            _print_line(field.ljust(column) + text)
            continue
        _print_line(field)
        for each in value if isinstance(value, tuple | list) else [text]:
            _print_line(f"  {_cell(each)}")


def _print_line(text: str, *, is_heading: bool = False) -> None:
    write_out(f"{_BOLD}{text}{_PLAIN}\n" if is_heading and _has_style() else f"{text}\n")


def _has_style() -> bool:
    """Whether to print the headings in bold. See https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# How long a command runs before its progress is shown.
FIRST_SECONDS = 0.5
_SECONDS_BETWEEN = 0.1
_WIDTH = 30
_CLEAR = "\r\033[K"


class Progress:
    """Shows the progress of a command in a terminal. The command can print results at the same time.

    Args:
        noun: what is counted, in the plural.
        total: the total number of steps, if known.
        at_once: whether to show each step immediately, because single steps may take long.
    """

    def __init__(self, noun: str, total: int | None = None, *, at_once: bool = False) -> None:
        self._noun = noun
        self._total = total
        self._done = 0
        self._is_terminal = sys.stderr.isatty()
        self._is_shown = False
        self._between = 0 if at_once else _SECONDS_BETWEEN
        self._next = time.monotonic() + (0 if at_once else FIRST_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def advance(self, steps: int = 1) -> None:
        self.reach(self._done + steps, self._total)

    def reach(self, done: int, total: int | None = None) -> None:
        """Set the number of finished steps and the total number of steps. Shows the new progress."""
        self._done, self._total = done, total
        if self._is_terminal and time.monotonic() >= self._next:
            self._draw()
            self._next = time.monotonic() + self._between

    def print(self, text: str) -> None:
        """Print a line of results to standard output, and count a step."""
        was_shown = self._is_shown
        self._clear()
        write_out(text)
        sys.stdout.flush()
        self.advance()
        if was_shown and not self._is_shown:
            self._draw()

    def _clear(self) -> None:
        if self._is_shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
            self._is_shown = False

    def _draw(self) -> None:
        text = f"{self._done:,} {self._noun}"
        if self._total:
            filled = "#" * (_WIDTH * min(self._done, self._total) // self._total)
            text = f"[{filled:-<{_WIDTH}}] {self._done:,}/{self._total:,} {self._noun}"
        sys.stderr.write(_CLEAR + text)
        sys.stderr.flush()
        self._is_shown = True
