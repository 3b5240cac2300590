"""Query parameters: their types, and the checks that all routes have in common.

FastAPI parses parameters after it has called a route's dependencies. So the caller is authenticated before an invalid
parameter is refused.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import Query, Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import ParamTypes
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from clustercert.http.body import plain_message
from clustercert.model import parse_rfc3339
from clustercert.model.errors import InvalidRequest
from clustercert.policy.templates import is_plain_text

MAX_TEXT = 255

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})", re.ASCII)
_QUOTED = re.compile("'([^']*)'")
# The possible first elements of `loc`, the location of an error that FastAPI reports.
_PLACES = {"query", "header", "path"}
_PLAIN_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


def _plain_text(value: str) -> str:
    if not (1 <= len(value) <= MAX_TEXT and is_plain_text(value)):
        raise ValueError(f"must have 1 to {MAX_TEXT} printable characters")
    return value


def _rfc3339_time(value: str) -> datetime:
    try:
        if not _TIME.fullmatch(value):
            raise ValueError("not RFC 3339")
        return parse_rfc3339(value)
    except ValueError as error:
        raise ValueError("write it like 2027-01-01T16:00:00Z") from error


Text = Annotated[str, AfterValidator(_plain_text), Field(json_schema_extra={"maxLength": MAX_TEXT})]
Time = Annotated[
    datetime,
    BeforeValidator(_rfc3339_time),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]

Flag = Literal["true"]
F = TypeVar("F")
_TYPES: Mapping[Any, Any] = {str: Text, datetime: Time, bool: Flag}


def parsed_filter(
    filter_class: type[F], *, without: Collection[str] = (), **types: Any
) -> Callable[..., Awaitable[F]]:
    """Return a dependency that creates a filter of the store from the query parameters.

    Each field with a description, `Annotated[str | None, "Only …"]`, is a query parameter with the name of the field.

    Args:
        without: the fields that are not query parameters of the route.
        types: the types of parameters with further checks, by field.
    """
    parameters, flags = list[inspect.Parameter](), set[str]()
    for name, hint in get_type_hints(filter_class, include_extras=True).items():
        if get_origin(hint) is not Annotated or name in without:
            continue
        declared, description = get_args(hint)
        [type_] = (each for each in get_args(declared) or (declared,) if each is not NoneType)
        if type_ is bool:
            flags.add(name)
        query = Query(description=description)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[types.get(name, _TYPES.get(type_, type_)) | None, query],
            )
        )

    async def parsed(**given: Any) -> F:
        return filter_class(
            **{name: value is not None if name in flags else value for name, value in given.items()}
        )

    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # FastAPI reads it
    return parsed


def check_query(query_string: bytes) -> None:
    """Raise InvalidRequest if a query parameter is repeated, or has a percent-encoding that is not UTF-8.

    Of a repeated parameter, routes would use the last value, but one of the request signature schemes covers only the
    first value.
    """
    try:
        parameters = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidRequest("The query has a percent-encoding that is not UTF-8. Use UTF-8.") from error
    names = set[str]()
    for name, _ in parameters:
        if name in names:
            raise InvalidRequest(f"{_shown_name(name)}: occurs more than once. Send it once.")
        names.add(name)


def refuse_unknown(request: Request) -> None:
    """Raise InvalidRequest for a parameter that the route does not have. A misspelled filter must not be ignored.

    A model that forbids unknown fields would refuse the parameters of the route's other dependencies, too.
    """
    fields = get_flat_params(request.scope["route"].dependant)
    known = {
        each.alias for each in fields if getattr(each.field_info, "in_", ParamTypes.query) is ParamTypes.query
    }
    if unknown := request.query_params.keys() - known:
        supported = f"Known: {', '.join(sorted(known))}" if known else "This path has no query parameters"
        raise InvalidRequest(f"{_shown_name(min(unknown))}: unknown query parameter. {supported}.")


def invalid_parameter(errors: Iterable[Mapping[str, Any]]) -> InvalidRequest:
    """Return an InvalidRequest that describes the first of the errors that FastAPI or pydantic found in parameters."""
    problem = next(iter(errors))
    place = [str(part) for part in problem["loc"] if part not in _PLACES]
    text = plain_message(problem["msg"])
    if problem["type"] == "literal_error":
        text = "must be " + " or ".join(_QUOTED.findall(problem["ctx"]["expected"]))
    elif problem["type"] == "bool_parsing":
        text = "must be true or false"
    return InvalidRequest(f"{': '.join([*place, text])}.")


def _shown_name(name: str) -> str:
    """Return the name of a parameter for an error message, without characters that the caller could misuse."""
    return name if _PLAIN_NAME.fullmatch(name) else "A query parameter"
