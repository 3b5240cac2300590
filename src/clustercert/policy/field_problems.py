"""Says in plain words what is wrong with a field of the settings."""

import difflib
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

UNKNOWN_FIELD = "extra_forbidden"
MISSING_FIELD = "missing"
# pydantic puts this before the message of each ValueError.
_PREFIX = "Value error, "


def problem_text(problem: ErrorDetails, settings: type[BaseModel]) -> str:
    """Return what is wrong, for one of the errors of a `ValidationError` of these settings."""
    *table, name = problem["loc"] or ("",)
    if problem["type"] == UNKNOWN_FIELD:
        return f"unknown field{_suggestion(str(name), _fields(settings, table))}"
    if problem["type"] == MISSING_FIELD:
        return "the field is missing"
    return problem["msg"].removeprefix(_PREFIX)


def _suggestion(name: str, known: Sequence[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=1)
    if similar:
        return f"; did you mean {similar[0]}?"
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
