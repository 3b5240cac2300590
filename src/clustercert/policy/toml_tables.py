"""Reads settings from TOML files, and explains in plain words what is wrong with a field."""

import bisect
import contextlib
import difflib
import json
import re
import tomllib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from clustercert.policy.rule_settings import PolicySettings
from clustercert.policy.setting_types import RuleFault
from clustercert.secure_file import access_advice

# The maximum number of characters of a value in a message.
MAX_SHOWN = 64
# pydantic prepends this text to the message of each ValueError.
_PREFIX = "Value error, "
_TIME = "write a time with its offset from UTC, such as 2026-01-05T12:00:00Z"
_TEXTS = {
    "missing": "the field is missing",
    "too_short": "write at least one entry",
    "too_long": "write at most {max_length} entries",
    "string_too_short": "write at least one character",
    "string_too_long": "write at most {max_length} characters",
    "model_type": "write a table",
    "dict_type": "write a table",
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "timezone_aware": _TIME,
    "time_delta_type": 'write a lifetime, such as "8h"',
}


def problem_text(problem: ErrorDetails, settings: type[BaseModel]) -> str:
    """Return the message for one of the errors in a `ValidationError` of these settings."""
    *table, name = problem["loc"] or ("",)
    match problem["type"]:
        case "extra_forbidden":
            text = f"unknown field{_suggestion(str(name), settings, table)}"
        case "bool_type":
            text = f"write true or false, not {_shown(problem)}"
        case "tuple_type" | "frozen_set_type" | "list_type" if isinstance(problem["input"], str):
            # The value may be a secret, such as a URL with a password.
            text = 'write a list, such as ["a", "b"], not a text'
        case "tuple_type" | "frozen_set_type" | "list_type":
            text = f'write a list, such as ["a", "b"], not {_shown(problem)}'
        case "literal_error":
            text = f"write {problem['ctx']['expected']}, not {_shown(problem)}"
        case "string_type" if isinstance(problem["input"], bool):
            text = f"write a text in quotes, not {_shown(problem)}"
        case "string_type":
            # The value may be a secret.
            text = "write a text in quotes"
        case kind:
            own = _TEXTS.get(kind)
            text = own.format_map(problem.get("ctx", {})) if own else problem["msg"].removeprefix(_PREFIX)
    return text


def causes(problems: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Return the problems without follow-up errors, because a list with wrong entries is also reported as too short."""
    paths = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short" or not any(_is_inside(path, problem["loc"]) for path in paths)
    ]


def _is_inside(path: Sequence[str | int], table: Sequence[str | int]) -> bool:
    return len(path) > len(table) and path[: len(table)] == table


def _shown(problem: ErrorDetails) -> str:
    """Format a field's value for an error message. Use this function only for fields that never contain a secret."""
    value = problem["input"]
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    text = json.dumps(value) if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _suggestion(name: str, settings: type[BaseModel], table: Sequence[str | int]) -> str:
    known = _fields(settings, table)
    inner = {field: f"{each}.{field}" for each in known for field in _fields(settings, (*table, each))}
    # Inner tables have so many fields that one of them is nearly always slightly similar, so require more similarity.
    for names, cutoff in (({each: each for each in known}, 0.6), (inner, 0.8)):
        if similar := difflib.get_close_matches(name, names, n=1, cutoff=cutoff):
            return f"; did you mean {names[similar[0]]}?"
    return f"; the fields are {', '.join(sorted(known))}" if known else ""


def _fields(settings: type[BaseModel], path: Sequence[str | int]) -> tuple[str, ...]:
    """Return the names of the fields that a table may have; empty if the path does not lead to a table."""
    found: type[BaseModel] | None = settings
    for key in path:
        if isinstance(key, str):
            field = found.model_fields.get(key) if found is not None else None
            found = _table(field.annotation) if field is not None else None
    return tuple(found.model_fields) if found is not None else ()


def _table(annotation: Any) -> type[BaseModel] | None:
    """Return the model within an annotation such as `tuple[Model, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in typing.get_args(annotation) if (found := _table(each))), None)


Key = str | int

# The maximum number of faults to report. Finding the line of a fault takes up to 0.3 seconds with 1000 rules.
MAX_FAULTS = 10
# The maximum size of a file, far above the size of any real policy. Without a limit, an endless file, such as a device,
# would use up all memory.
_MAX_CHARACTERS = 16_000_000


class UnreadableFile(Exception):
    """A file can't be read or is not valid TOML. The message contains the file, and line and column if known."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The values of a TOML file.

    Attributes:
        name: the file's path, for messages.
    """

    values: dict[str, Any]
    text: str
    name: str = ""

    def place(self, path: Sequence[Key]) -> str | None:
        """Return `file:line:column` of a value.

        If the file lacks the value, return the position of the innermost table that the file has.

        Returns None if the file has none of the tables in the path.
        """
        while path and not _has(self.values, path):
            path = path[:-1]
        if not path:
            return None
        line, column = _position(self.text, path)
        return f"{self.name}:{line}:{column}"


def read_tables(file: Path, kind: str = "configuration") -> Tables:
    """Read a TOML file. Raises UnreadableFile, whose message begins with the kind of file."""
    try:
        with file.open("rb") as stream:
            # A character has at most four bytes in UTF-8.
            content = stream.read(4 * _MAX_CHARACTERS + 1)
        text = content.decode("utf-8")
        if len(text) > _MAX_CHARACTERS:
            raise UnreadableFile(
                f"The {kind} file {file} is longer than {_MAX_CHARACTERS} characters. Shorten the file."
            )
        if text.startswith("\ufeff"):
            raise UnreadableFile(
                f"The {kind} file {file} begins with a byte order mark. Save the file without this mark."
            )
        return Tables(tomllib.loads(text), text, str(file))
    except OSError as error:
        advice = access_advice(error, file)
        raise UnreadableFile(f"Can't read the {kind} file {file}: {error.strerror}.{advice}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UnreadableFile(f"The {kind} file {file} is not text in UTF-8: line {line}.") from error
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("Illegal character '\\n'", "A string has no end")
        raise UnreadableFile(f"The {kind} file {file} is not valid TOML: {reason}.") from error


def read_policy_file(policy: object) -> Tables | None:
    """Read the file in `policy.file`. Returns None if this field is not set.

    Raises UnreadableFile, also if `policy` has other fields, or if the file has neither rules nor role_groups.
    """
    if not isinstance(policy, dict) or not policy.get("file"):
        return None
    file = Path(str(policy["file"]))
    if beside := sorted(policy.keys() - {"file"}):
        raise UnreadableFile(f"policy.file is set, so write policy.{beside[0]} into {file}.")
    tables = read_tables(file, "policy")
    if "file" in tables.values:
        raise UnreadableFile(
            f"The policy file {file} must not have the field file. Write the rules into {file} instead."
        )
    if not tables.values.keys() & {"role_groups", "rules"}:
        if "policy" in tables.values:
            raise UnreadableFile(
                f"{tables.place(['policy'])}: the policy file has a table named policy. Write the table's fields at the"
                " top level of the file, such as [[rules]] instead of [[policy.rules]]."
            )
        if tables.values.keys() <= PolicySettings.model_fields.keys():
            raise UnreadableFile(
                f"The policy file {file} has neither rules nor role_groups. Add at least one of the two."
            )
    return tables


def merged(lower: dict[str, Any], higher: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings table by table. Values of `higher` take precedence."""
    values = lower | higher
    for name in lower.keys() & higher.keys():
        if isinstance(lower[name], dict) and isinstance(higher[name], dict):
            values[name] = merged(lower[name], higher[name])
    return values


def fault_lines(
    error: ValidationError, model: type[BaseModel], from_file: Tables, from_policy_file: Tables | None
) -> Iterator[str]:
    """Yield a line for each of the first faults in the settings, with file, line and column if known."""
    problems = causes(error.errors(include_url=False))
    for problem in problems[:MAX_FAULTS]:
        cause = problem.get("ctx", {}).get("error")
        path = (*problem["loc"], *(cause.path if isinstance(cause, RuleFault) else ()))
        place = from_file.place(path)
        if from_policy_file is not None and path[:1] == ("policy",):
            place = from_policy_file.place(path[1:]) or place
        name = ".".join(map(str, path)) or "settings"
        yield f"  {f'{place}: ' if place else ''}{name}: {problem_text(problem, model)}"
    if len(problems) > MAX_FAULTS:
        yield f"  and {len(problems) - MAX_FAULTS} more"


def _has(values: object, path: Sequence[Key]) -> bool:
    for key in path:
        try:
            values = values[key]  # type: ignore[index] # TypeError is caught
        except (LookupError, TypeError):
            return False
    return True


def _position(text: str, path: Sequence[Key]) -> tuple[int, int]:
    """Return the line and column of the statement that defines a value.

    Finds the shortest beginning of the file that is valid TOML and defines the value. The last statement of this part
    defines the value.
    """
    lines = [f"{line}\n" for line in text.split("\n")]
    end = bisect.bisect_left(
        range(len(lines) + 1), True, key=lambda count: _has(_valid_start(lines, count)[1], path)
    )
    start, _ = _valid_start(lines, end - 1)
    statement = "".join(lines[start:end])
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    found = re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", statement)
    before = statement[: found.start() if found else 0]
    return start + before.count("\n") + 1, len(before) - before.rfind("\n")


def _valid_start(lines: Sequence[str], count: int) -> tuple[int, dict[str, Any]]:
    """Parse the longest valid prefix of at most `count` lines. Returns the number of lines and the values."""
    for valid in range(count, 0, -1):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return valid, tomllib.loads("".join(lines[:valid]))
    return 0, {}
