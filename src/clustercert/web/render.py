"""Answers: errors in the form of the API that was asked, credentials that no cache keeps."""

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from starlette.responses import Response

from clustercert.errors import ClustercertError, MethodNotAllowed, Unavailable
from clustercert.model import JsonObject

NO_STORE = {"Cache-Control": "no-store"}
JSON = ((b"content-type", b"application/json"),)
# Keystone's subset answers in Keystone's form: its clients read nothing else.
KEYSTONE_PREFIXES = ("/v3/", "/v3.0/")


def json_response(body: JsonObject, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer, fields in the given order."""
    return Response(
        json.dumps(body, ensure_ascii=True).encode(), status, headers, media_type="application/json"
    )


class Rendered(Response):
    """An answer of which all is bytes already: the framework's own encodes each header anew."""

    def __init__(self, body: bytes, headers: Iterable[tuple[bytes, bytes]], status: int = 200) -> None:
        self.status_code = status
        self.body = body
        self.raw_headers = [*headers, (b"content-length", b"%d" % len(body))]
        self.background = None


def error(failure: ClustercertError, path: str, request_id: str) -> Response:
    """The answer to a failure.

    One body for all clients: each reads another of these fields. Source: CONTRACT section 6.
    """
    headers: dict[str, str] = {}
    if isinstance(failure, Unavailable) and failure.retry_after is not None:
        headers["Retry-After"] = str(failure.retry_after)
    if isinstance(failure, MethodNotAllowed):
        headers["Allow"] = ", ".join(failure.allow)
    # The message of a bare ClustercertError or of anything at 500 may tell of our insides.
    message = failure.message if failure.status != HTTPStatus.INTERNAL_SERVER_ERROR else "Internal error."
    if f"{path}/".startswith(KEYSTONE_PREFIXES):
        return json_response(keystone_error(failure.status, message), failure.status, headers)
    body: JsonObject = {
        "errorCode": failure.code,
        "errorMessage": message,
        "error_code": failure.code,
        "error_msg": message,
        "message": message,
        "request_id": request_id,
    }
    return json_response(body, failure.status, headers)


def keystone_error(status: int, message: str) -> JsonObject:
    """An error in Keystone's form. A 401 says the same for every cause."""
    if status == HTTPStatus.UNAUTHORIZED:
        message = "The request you have made requires authentication."
    return {"error": {"code": status, "message": message, "title": HTTPStatus(status).phrase}}
