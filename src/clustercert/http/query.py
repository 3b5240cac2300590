"""Query parameters that filter a list: parsing and OpenAPI documentation."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from clustercert.http.openapi import TEXT
from clustercert.model import JsonObject, parse_rfc3339
from clustercert.model.errors import InvalidRequest
from clustercert.policy.templates import is_plain_text

MAX_TEXT = 255

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})", re.ASCII)


_PLAIN_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter.

    Attributes:
        parse: parses a value, given the parameter's name and the value as sent. Raises InvalidRequest.
        schema: restrictions on the string, for the OpenAPI document.
        required: whether OpenAPI documents it as required; the route checks it.
    """

    name: str
    description: str
    parse: Callable[[str, str], Any]
    schema: JsonObject
    required: bool = False


def text(name: str, description: str) -> Parameter:
    return Parameter(name, description, plain_text, {"maxLength": MAX_TEXT})


def time(name: str, description: str) -> Parameter:
    return Parameter(name, f"{description}, RFC 3339.", _rfc3339_time, {"format": "date-time"})


def choice(name: str, description: str, choices: tuple[str, ...]) -> Parameter:
    def parse(name: str, value: str) -> str:
        if value not in choices:
            raise InvalidRequest(f"{name}: must be {' or '.join(choices)}.")
        return value

    return Parameter(name, description, parse, {"enum": list(choices)})


def described(parameters: Iterable[Parameter]) -> dict[str, Any]:
    return {
        "parameters": [
            {
                "name": each.name,
                "in": "query",
                "description": each.description,
                "required": each.required,
                "schema": TEXT | each.schema,
            }
            for each in parameters
        ]
    }


def parsed(
    query: Mapping[str, str], parameters: Iterable[Parameter], others: Iterable[str] = ("limit", "cursor")
) -> dict[str, Any]:
    """Return the values of the parameters that were sent, by name. Ignores `others`.

    Raises InvalidRequest for an invalid or unknown parameter: a misspelled filter must not widen the result.
    """
    known = {each.name: each for each in parameters}
    if not query.keys() <= {*known, *others}:
        supported = ", ".join(sorted([*known, *others]))
        raise InvalidRequest(f"Unknown query parameter. This path supports {supported}.")
    return {name: known[name].parse(name, value) for name, value in query.items() if name in known}


def refuse_repeated(query_string: bytes) -> None:
    """Raise InvalidRequest if a query parameter is repeated.

    Routes would use the last value, but one of the request signature schemes covers only the first.
    """
    names = set[str]()
    for name, _ in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True):
        if name in names:
            raise InvalidRequest(f"{shown_name(name)}: send it once.")
        names.add(name)


def check_parameters(sent: Iterable[str], known: Collection[str]) -> None:
    """Raise InvalidRequest for a query parameter that is not known, such as a misspelled one."""
    if unknown := set(sent) - set(known):
        supported = ", ".join(sorted(known))
        raise InvalidRequest(f"{shown_name(min(unknown))}: unknown query parameter. Known: {supported}.")


def shown_name(name: str) -> str:
    """Return the name of a parameter for an error message, without characters that the caller could misuse."""
    return name if _PLAIN_NAME.fullmatch(name) else "A query parameter"


def plain_text(name: str, value: str) -> str:
    """Check the length, and that all characters are printable. Raises InvalidRequest."""
    if not (1 <= len(value) <= MAX_TEXT and is_plain_text(value)):
        raise InvalidRequest(f"{name}: must have 1 to {MAX_TEXT} printable characters.")
    return value


def _rfc3339_time(name: str, value: str) -> datetime:
    try:
        if not _TIME.fullmatch(value):
            raise ValueError("not RFC 3339")
        return parse_rfc3339(value)
    except ValueError as error:
        raise InvalidRequest(f"{name}: write it like 2027-01-01T16:00:00Z.") from error
