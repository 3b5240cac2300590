"""Authentication of the client with a token or an access key."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from urllib.parse import unquote

from clustercert.client.connection import HttpRequest
from clustercert.pki.request_signature import (
    TIMESTAMP_FORMAT,
    SignatureCredential,
    SignedParts,
    payload_hash,
    sign,
)

# Requests for tokens are sent with the login's token.
_TOKENS = "/v3/auth/tokens"
_PROJECT = re.compile(r"/projects/([^/?]+)")


class TokenAuth:
    """Sends a token with each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def headers(self, request: HttpRequest) -> Mapping[str, str]:
        del request
        return {"X-Auth-Token": self._token}


class ProjectTokenAuth:
    """Sends a token for the project in the path of the request.

    Creates a token for each project from the login's token. One login therefore serves all projects of the user.

    Args:
        project_id: the project of the login's token; `None` if the token has no project.
        rescope: returns a token for the given project.

    Attributes:
        default_project: the project for requests whose path names no project. If `None`, these requests have the
            login's token.
    """

    def __init__(self, token: str, project_id: str | None, rescope: Callable[[str], str]) -> None:
        self.default_project: str | None = None
        self._token = token
        self._tokens = {project_id: token}
        self._rescope = rescope

    def headers(self, request: HttpRequest) -> Mapping[str, str]:
        found = _PROJECT.search(request.target)
        project_id = unquote(found[1]) if found is not None else self.default_project
        if project_id is None or request.target.startswith(_TOKENS):
            return {"X-Auth-Token": self._token}
        if project_id not in self._tokens:
            self._tokens[project_id] = self._rescope(project_id)
        return {"X-Auth-Token": self._tokens[project_id]}


_SIGNED = frozenset({"content-type", "host", "x-sdk-date"})


class AccessKeyAuth:
    """Signs each request with an access key, like Huawei Cloud's SDKs."""

    def __init__(self, access_key: str, secret_key: str, now: Callable[[], datetime] | None = None) -> None:
        self._credential = SignatureCredential("flat", access_key)
        self._secret = secret_key.encode()
        self._now = now or (lambda: datetime.now(UTC))

    def headers(self, request: HttpRequest) -> Mapping[str, str]:
        date = self._now().strftime(TIMESTAMP_FORMAT)
        headers = {name.lower(): value for name, value in request.headers.items()} | {"x-sdk-date": date}
        signed = tuple((name.encode(), headers[name].encode()) for name in sorted(_SIGNED & headers.keys()))
        path, _, query = request.target.partition("?")
        parts = SignedParts(request.method, path, query, signed, payload_hash(request.content))
        return {"X-Sdk-Date": date, "Authorization": sign(parts, self._credential, self._secret)}
