"""Reads and parses request bodies: size and time limits, strict JSON, and validation against a model."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import NoReturn, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.config import JsonDict
from starlette.requests import Request
from starlette.types import Message

from clustercert.http.context import context_of
from clustercert.model import JsonObject
from clustercert.model.errors import (
    InvalidRequest,
    RequestTimeout,
    TooLarge,
    UnsupportedEncoding,
    UnsupportedMedia,
)
from clustercert.policy.lifetime import MAX_LIFETIME, MIN_LIFETIME, lifetime_text

M = TypeVar("M", bound=BaseModel)

_LEAST, _MOST = int(MIN_LIFETIME.total_seconds()), int(MAX_LIFETIME.total_seconds())
LIFETIME_LIMITS: JsonDict = {"minimum": _LEAST, "maximum": _MOST}
"""For the JSON schema of a field with a lifetime in seconds; `bounded_lifetime` checks the field."""

# The maximum number of digits accepted in a Content-Length. Python refuses to parse numbers with thousands of digits.
MAX_DIGITS = 18


# Error messages for a field, by the type of pydantic's error. pydantic's own messages name Python types and classes.
_OBJECT = "must be a JSON object"
_PROBLEMS = {
    "missing": "this field is required",
    "extra_forbidden": "unknown field. Remove it",
    "int_type": "must be a whole number, without quotes or a decimal point",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "none_required": "leave this field out",
    "string_unicode": "must be valid Unicode text",
}
# The parts of pydantic's other messages that name Python's types.
_SUBJECT = re.compile(r"^\w+ should ")
_COUNTED = re.compile(r" after validation, not .*$")

# Tags of unions begin with this text, so that names of fields in error messages leave the tags out.
TAG = "union:"


class RequestBody(BaseModel):
    """A JSON request body. Types are strict; null counts as absent; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


async def received(request: Request, seconds: float, limit: int) -> bytes:
    """Read the whole body.

    Raises TooLarge if the body has more than `limit` bytes, RequestTimeout if reading takes longer than `seconds`, and
    UnsupportedEncoding if the body is compressed.
    """
    for name, declared in request.scope["headers"]:
        if name != b"content-length" or not declared.isdigit():
            continue
        if len(declared) > MAX_DIGITS or int(declared) > limit:
            raise _too_large(limit)
    body = await beginning(request, seconds, limit)
    if len(body) > limit:
        raise _too_large(limit)
    if body:
        _refuse_content_coding(request)
    return body


def _refuse_content_coding(request: Request) -> None:
    """Raise UnsupportedEncoding if the body has a content coding. Source: RFC 9110, sections 8.4 and 15.5.16."""
    sent = [value.strip().lower() for name, value in request.scope["headers"] if name == b"content-encoding"]
    if sent not in ([], [b"identity"], [b""]):
        raise UnsupportedEncoding(
            "The request's body has a Content-Encoding, such as gzip, which this service does not support."
            " Send the body without this header."
        )


async def beginning(request: Request, seconds: float, limit: int) -> bytes:
    """Read the body, but stop as soon as more than `limit` bytes have arrived.

    Raises RequestTimeout if reading takes longer than `seconds`.
    """
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(seconds):
            while more and len(body) <= limit:
                message = await request.receive()
                body += _chunk(message)
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise RequestTimeout("The request's body did not arrive in time. Send the request again.") from error
    return bytes(body)


async def chunks(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """Yield the body's chunks, for routes without a size limit. Each chunk extends the request's deadline.

    Raises RequestTimeout if a chunk takes longer than `seconds`.
    """
    context, more = context_of(request), True
    while more:
        try:
            async with asyncio.timeout(seconds):
                message = await request.receive()
        except TimeoutError as error:
            raise RequestTimeout(
                f"No part of the request's body arrived for {seconds:g} seconds. Send the request again."
            ) from error
        chunk = _chunk(message)
        context.extend_deadline()
        yield chunk
        more = message.get("more_body", False)


def _chunk(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise RequestTimeout("The connection was closed before the whole request body arrived.")
    return cast("bytes", message.get("body", b""))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request's body is larger than {limit} bytes. Send less.")


def require_json(request: Request) -> None:
    """Raise UnsupportedMedia unless the Content-Type is application/json, with or without charset=utf-8."""
    values = [value for name, value in request.scope["headers"] if name == b"content-type"]
    if values == [b"application/json"]:
        return
    media_type, *parameters = (part.strip().lower() for part in b"".join(values[:1]).split(b";"))
    charset = [parameter.replace(b'"', b"") for parameter in parameters if parameter]
    if len(values) != 1 or media_type != b"application/json" or charset not in ([], [b"charset=utf-8"]):
        raise UnsupportedMedia(
            "Content type not supported. Send application/json or application/json;charset=utf-8."
        )


def parsed(raw: bytes, shape: type[M]) -> M:
    """Parse a JSON body and validate it against its model. Raises InvalidRequest, which names the invalid field."""
    return validated(json_object(raw), shape)


def validated(value: JsonObject, shape: type[M]) -> M:
    """Validate a JSON object against its model. Raises InvalidRequest, which names the invalid field."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
        path = (str(part) for part in problem["loc"])
        field = ".".join(part for part in path if not part.startswith(TAG))
        wrong = _PROBLEMS.get(problem["type"]) or plain_message(problem["msg"])
        raise InvalidRequest(f"{field}: {wrong}." if field else f"The body {wrong}.") from error


def plain_message(message: str) -> str:
    """Return one of pydantic's messages without Python's types."""
    return _COUNTED.sub("", _SUBJECT.sub("must ", message.removeprefix("Value error, ")))


def json_object(raw: bytes) -> JsonObject:
    """Parse a JSON object: UTF-8, no duplicate keys, no NaN or Infinity. Raises InvalidRequest."""
    if not raw.strip():
        raise InvalidRequest("The body is empty. Send a JSON object.")
    try:
        value = _STRICT.decode(raw.decode("utf-8"))
    except RecursionError as error:
        raise InvalidRequest("The JSON is nested too deeply.") from error
    except ValueError as error:
        raise InvalidRequest("The body is not valid JSON in UTF-8.") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return cast("JsonObject", value)


def _without_duplicates(pairs: list[tuple[str, object]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidRequest("The JSON object has a duplicate key. Send each key only once.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"{name} is not a JSON number. Send finite numbers.")


_STRICT = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)


def bounded_lifetime(field: str, seconds: int) -> timedelta:
    """Return a lifetime of 5 minutes to 1825 days. Raises InvalidRequest, which names the field."""
    if not _LEAST <= seconds <= _MOST:
        raise InvalidRequest(
            f"{field}: must be {_LEAST} ({lifetime_text(MIN_LIFETIME)}) to {_MOST}"
            f" ({lifetime_text(MAX_LIFETIME)}) seconds."
        )
    return timedelta(seconds=seconds)
