"""Authentication with a token."""

import re
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from clustercert.client.transport import Request

_PROJECT = re.compile(r"/projects/([^/?]+)")


class TokenAuth:
    """Sends a token with each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def headers(self, request: Request) -> Mapping[str, str]:
        del request
        return {"X-Auth-Token": self._token}


class ProjectTokenAuth:
    """Sends a token for the project that the request names. Creates these tokens from the token of the login.

    So one login serves all projects of its user.

    Args:
        project_id: the scope of the token; `None` if it has none.
        rescope: returns a token for another project.
    """

    def __init__(self, token: str, project_id: str | None, rescope: Callable[[str], str]) -> None:
        self._token = token
        self._tokens = {project_id: token}
        self._rescope = rescope

    def headers(self, request: Request) -> Mapping[str, str]:
        found = _PROJECT.search(request.target)
        if found is None:
            return {"X-Auth-Token": self._token}
        project_id = unquote(found[1])
        if project_id not in self._tokens:
            self._tokens[project_id] = self._rescope(project_id)
        return {"X-Auth-Token": self._tokens[project_id]}
