"""Responses: JSON, pre-rendered bytes, and errors in the format of each API."""

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from starlette.responses import Response

from clustercert.model import JsonObject
from clustercert.model.errors import ClustercertError, MethodNotAllowed, TooManyRequests, Unavailable

NO_STORE = {"Cache-Control": "no-store"}
JSON = ((b"content-type", b"application/json"),)
# Every response has these. Only `/docs` is a page: Swagger UI, which loads its own files and sends requests to this
# service. Its style sheet has images as data.
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


def json_response(body: JsonObject, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response with the fields in the given order."""
    return Response(to_json(body).encode(), status, headers, media_type="application/json")


def to_json(body: JsonObject) -> str:
    return json.dumps(body, ensure_ascii=True)


def private(body: JsonObject) -> Response:
    """Return a JSON response that must not be cached."""
    return json_response(body, headers=NO_STORE)


class Rendered(Response):
    """A response from bytes. Skips the framework's encoding of headers, to be faster."""

    def __init__(self, body: bytes, headers: Iterable[tuple[bytes, bytes]], status: int = 200) -> None:
        self.status_code = status
        self.body = body
        self.raw_headers = [*headers, (b"content-length", b"%d" % len(body))]
        self.background = None


def error(failure: ClustercertError, path: str, request_id: str) -> Response:
    """Return the response to a failure. The message is in several fields, because clients read different ones."""
    headers: dict[str, str] = {}
    if isinstance(failure, Unavailable | TooManyRequests) and failure.retry_after is not None:
        headers["Retry-After"] = str(failure.retry_after)
    if isinstance(failure, MethodNotAllowed):
        headers["Allow"] = ", ".join(failure.allow)
    # Messages of errors with status 500 may contain internal details, so they are replaced.
    message = failure.message if failure.status != HTTPStatus.INTERNAL_SERVER_ERROR else "Internal error."
    if f"{path}/".startswith(KEYSTONE_PREFIXES):
        # The message of a 401 is the same for every cause.
        if failure.status == HTTPStatus.UNAUTHORIZED:
            message = "The request you have made requires authentication."
        title = HTTPStatus(failure.status).phrase
        detail = {"code": failure.status, "message": message, "title": title}
        # Huawei Cloud's SDKs read the other two.
        named = {"error_code": failure.code, "error_msg": message}
        return json_response({"error": detail, **named}, failure.status, headers)
    body: JsonObject = {
        "errorCode": failure.code,
        "errorMessage": message,
        "error_code": failure.code,
        "error_msg": message,
        "message": message,
        "request_id": request_id,
    }
    return json_response(body, failure.status, headers)
