"""Says in plain words what is wrong with a field of the settings."""

import difflib
import json
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

# The maximum number of characters of a value in a message.
MAX_SHOWN = 64
# pydantic puts this before the message of each ValueError.
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
    """Return what is wrong, for one of the errors of a `ValidationError` of these settings."""
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
    """Return the problems without those that others cause: a list is also too short if its entries are wrong."""
    paths = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short" or not any(_is_inside(path, problem["loc"]) for path in paths)
    ]


def _is_inside(path: Sequence[str | int], table: Sequence[str | int]) -> bool:
    return len(path) > len(table) and path[: len(table)] == table


def _shown(problem: ErrorDetails) -> str:
    """Return the value as in the file. Only for fields that never contain a secret."""
    value = problem["input"]
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    text = json.dumps(value) if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _suggestion(name: str, settings: type[BaseModel], table: Sequence[str | int]) -> str:
    known = _fields(settings, table)
    inner = {field: f"{each}.{field}" for each in known for field in _fields(settings, (*table, each))}
    # A table has so many inner fields that one of them is nearly always a little similar.
    for names, cutoff in (({each: each for each in known}, 0.6), (inner, 0.8)):
        if similar := difflib.get_close_matches(name, names, n=1, cutoff=cutoff):
            return f"; did you mean {names[similar[0]]}?"
    return f"; the fields are {', '.join(sorted(known))}" if known else ""


def _fields(settings: type[BaseModel], path: Sequence[str | int]) -> tuple[str, ...]:
    """Return the names of the fields that a table may have, or none if the path leads to no table."""
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
