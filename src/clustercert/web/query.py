"""The query parameters of lists: what they are in OpenAPI, and how they are read."""

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from starlette.datastructures import QueryParams

from clustercert.errors import InvalidRequest
from clustercert.policy import is_plain_text

C = TypeVar("C", bound=str)

MAX_TEXT = 255

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})", re.ASCII)


def id_parameters(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """For OpenAPI, the parameters that `id_text` reads, by name, and what each says."""
    return [_parameter(name, text, maxLength=MAX_TEXT) for name, text in texts.items()]


def time_parameters(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """For OpenAPI, the parameters that `sent_times` reads, by name, and what each says."""
    return [_parameter(name, text, format="date-time") for name, text in texts.items()]


def choice_parameter(name: str, text: str, choices: Collection[str]) -> dict[str, Any]:
    """For OpenAPI, a parameter that `one_of` reads."""
    return _parameter(name, text, enum=list(choices))


def _parameter(name: str, text: str, **schema: object) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": {"type": "string", **schema}}


def require_known(query: QueryParams, taken: Collection[str]) -> None:
    """Raises InvalidRequest for a parameter that doesn't exist or is sent twice.

    A filter that is misspelled must not give more than was meant.
    """
    names = [name for name, _ in query.multi_items()]
    for name in names:
        if name not in taken:
            raise InvalidRequest(
                f"There is no such query parameter here. There are {', '.join(sorted(taken))}."
            )
        if names.count(name) > 1:
            raise InvalidRequest(f"{name}: send it once.")


def id_text(name: str, text: str | None) -> str | None:
    """An id as it may stand in the store, or None where none is sent. Raises InvalidRequest."""
    if text is not None and not (1 <= len(text) <= MAX_TEXT and is_plain_text(text)):
        raise InvalidRequest(f"{name}: must have 1 to {MAX_TEXT} printable characters.")
    return text


def one_of(name: str, text: str | None, choices: tuple[C, ...]) -> C | None:
    """One of the choices, or None where none is sent. Raises InvalidRequest."""
    if text is None:
        return None
    for choice in choices:
        if choice == text:
            return choice
    raise InvalidRequest(f"{name}: must be {' or '.join(choices)}.")


def sent_times(query: QueryParams, names: Collection[str]) -> dict[str, datetime]:
    """The times that are sent, by name. Raises InvalidRequest."""
    return {name: _rfc3339_time(name, query[name]) for name in names if name in query}


def _rfc3339_time(name: str, text: str) -> datetime:
    try:
        if not _TIME.fullmatch(text):
            raise ValueError("another form")
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name}: write it like 2027-01-01T16:00:00Z.") from error
