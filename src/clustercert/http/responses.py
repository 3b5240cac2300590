"""Responses: JSON, pre-rendered bytes, and errors in the format of each API."""

import asyncio
import contextlib
import json
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from clustercert.model import JsonObject, rfc3339
from clustercert.model.errors import (
    ClustercertError,
    MethodNotAllowed,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsignedBody,
    UnsupportedEncoding,
)

NO_STORE = {"Cache-Control": "no-store"}
JSON = ((b"content-type", b"application/json"),)
# Every response has this Content-Security-Policy. The only HTML page is `/docs`: Swagger UI, which loads its own files
# and sends requests to this service. Its style sheet contains images as data URLs.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BROWSER_RULES = (
    (b"content-security-policy", _CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
# Keystone clients read only errors in Keystone's format.
KEYSTONE_PREFIXES = ("/v3/", "/v3.0/")


def _rfc3339(value: object) -> object:
    return rfc3339(value) if isinstance(value, datetime) else value


def _hex(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


Time = Annotated[str, BeforeValidator(_rfc3339)]
"""The type of a response's field that contains a time in the format of RFC 3339."""
Hex = Annotated[str, BeforeValidator(_hex)]
"""The type of a response's field that contains bytes in lower-case hex."""
SortedStrings = Annotated[dict[str, str], AfterValidator(lambda value: dict(sorted(value.items())))]
"""The type of a response's field that contains an object, such as labels, sorted by name."""


class ResponseBody(BaseModel):
    """Base class for response bodies and their parts.

    The method `read` takes each field from the attribute of the same name of another object.
    """

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def read(cls, source: Any, **others: object) -> Self:
        """Return the body with the attributes of `source`. `others` has the fields that `source` does not have."""
        return cls.model_validate(_WithOthers(source, others) if others else source)

    @classmethod
    def render(cls, source: Any, **others: object) -> JsonObject:
        """Return the body as a JSON object. See `read` for the parameters."""
        return cls.read(source, **others).model_dump()


class _WithOthers:
    """Wraps an object and adds attributes, which take precedence over the object's own attributes."""

    def __init__(self, source: object, others: Mapping[str, object]) -> None:
        self._source = source
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def json_response(body: JsonObject, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response with the fields in the given order."""
    return Response(to_json(body).encode(), status, headers, media_type="application/json")


def to_json(body: JsonObject) -> str:
    return json.dumps(body, ensure_ascii=True)


def private(body: JsonObject) -> Response:
    """Return a JSON response that must not be cached."""
    return json_response(body, headers=NO_STORE)


class Rendered(Response):
    """A response whose body and headers are already bytes. Skips the framework's encoding, to be faster."""

    def __init__(self, body: bytes, headers: Iterable[tuple[bytes, bytes]], status: int = 200) -> None:
        self.status_code = status
        self.body = body
        self.raw_headers = [*headers, (b"content-length", b"%d" % len(body))]
        self.background = None


# Not Basic, or browsers would ask for a password. Source: RFC 9110 section 11.6.1, RFC 6750 section 3.
_CHALLENGE = 'Bearer realm="clustercert"'


def error_headers(failure: ClustercertError) -> dict[str, str]:
    """Return the header fields of the response to a failure, besides its content."""
    headers: dict[str, str] = {}
    if isinstance(failure, Unavailable | TooManyRequests) and failure.retry_after is not None:
        headers["Retry-After"] = str(failure.retry_after)
    if isinstance(failure, MethodNotAllowed):
        headers["Allow"] = ", ".join(failure.allow)
    if isinstance(failure, UnsupportedEncoding):
        headers["Accept-Encoding"] = "identity"
    if isinstance(failure, Unauthenticated):
        headers["WWW-Authenticate"] = _CHALLENGE
    return headers


def keystone_challenge(base_url: str) -> dict[str, str]:
    """Return the challenge of a 401 of the Keystone subset, which replaces the challenge of `error_headers`.

    Source: Keystone's own answers.
    """
    return {"WWW-Authenticate": f'Keystone uri="{base_url}/v3"'}


def error_message(failure: ClustercertError) -> str:
    """Return the sentence for the caller. Messages of errors with status 500 may contain internal details."""
    return failure.message if failure.status != HTTPStatus.INTERNAL_SERVER_ERROR else "Internal error."


def is_of_keystone(path: str) -> bool:
    """Whether errors of this path are in Keystone's format."""
    return f"{path}/".startswith(KEYSTONE_PREFIXES)


def error(
    failure: ClustercertError,
    path: str,
    request_id: str,
    more_headers: Mapping[str, str] | None = None,
    *,
    for_huawei_sdk: bool = False,
) -> Response:
    """Return the response to a failure. The message is in several fields, because clients read different fields.

    `for_huawei_sdk`: whether one of Huawei Cloud's SDKs sent the request. The SDK for Java shows the fields `error_msg`
    and `message` together, so that people would read the same message twice.
    """
    headers, message = error_headers(failure) | dict(more_headers or {}), error_message(failure)
    if is_of_keystone(path):
        # The message of a 401 is the same for every cause but one.
        if isinstance(failure, Unauthenticated) and not isinstance(failure, UnsignedBody):
            message = "The request you have made requires authentication."
        title = HTTPStatus(failure.status).phrase
        detail = {"code": failure.status, "message": message, "title": title}
        # Huawei Cloud's SDKs read `error_code` and `error_msg`.
        named = {"error_code": failure.code, "error_msg": message}
        return json_response({"error": detail, **named}, failure.status, headers)
    body: JsonObject = {
        "errorCode": failure.code,
        "errorMessage": message,
        "error_code": failure.code,
        "error_msg": message,
        **({} if for_huawei_sdk else {"message": message}),
        "request_id": request_id,
    }
    return json_response(body, failure.status, headers)


_JSON = frozenset({"application/json", "application/*", "*/*"})
# A weight has up to three decimals. Source: RFC 9110, section 12.4.2.
_NOT_ACCEPTED = frozenset({"q=0", "q=0.", "q=0.0", "q=0.00", "q=0.000"})


def prefers(request: Request, media_types: Collection[str]) -> bool:
    """Whether the Accept header lists one of these media types before JSON. Weights (`q`) are ignored, except zero."""
    accepted = b",".join([value for name, value in request.scope["headers"] if name == b"accept"])
    if accepted in (b"", b"*/*"):
        return False
    for media_range in accepted.decode("latin-1").lower().split(","):
        media_type, *parameters = (part.strip() for part in media_range.split(";"))
        if not _NOT_ACCEPTED.isdisjoint(parameters):
            continue
        if media_type in media_types:
            return True
        if media_type in _JSON:
            return False
    return False


def without_range(scope: Scope) -> Scope:
    """Return the scope without the header Range: the framework answers an invalid range with plain text, not JSON."""
    return {**scope, "headers": [field for field in scope["headers"] if field[0] != b"range"]}


class WholeFile(FileResponse):
    """A response with a whole file. Ignores the header Range."""

    def __init__(
        self, path: Path, headers: Mapping[str, str] | None = None, media_type: str | None = None
    ) -> None:
        super().__init__(path, headers=headers, media_type=media_type)
        # The framework announces ranges, but this response ignores them.
        del self.headers["accept-ranges"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(without_range(scope), receive, send)


# No API server sends a review larger than this limit. An API server copies up to 1 MB of header fields into a review,
# where these fields take 33 times as much space.
MAX_DISCARDED = 64 * 1024 * 1024


class EarlyResponse(Rendered):
    """Sends the response at once, then discards the rest of the request's body, and closes the connection.

    Some clients send the whole body before they read the response. If the server closed the connection earlier, the
    unread data would reset the connection, and these clients would never see the response.

    Attributes:
        seconds: time limit for the rest of the body. After this time, or after `MAX_DISCARDED` bytes, the connection is
            closed.
    """

    def __init__(self, body: bytes, headers: Iterable[tuple[bytes, bytes]], seconds: float) -> None:
        super().__init__(body, [*headers, (b"connection", b"close")])
        self.seconds = seconds

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # Receiving the end of the body raises Unavailable if too many requests are in progress.
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(self.seconds):
                await _discard(receive)
        await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    length, more = 0, True
    while more and length <= MAX_DISCARDED:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
