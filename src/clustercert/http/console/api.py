"""Sends requests to this service's own API, in the same process, as the person who is logged in to the console.

So the console has exactly the rights, limits, audit events and messages of the API.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode

from starlette.types import ASGIApp, Message, Scope

from clustercert.audit.refusals import DenialAudit
from clustercert.authn.sessions import session_credential
from clustercert.http.context import RequestContext, attach
from clustercert.http.middleware import record_denial
from clustercert.model.errors import ClustercertError

Parameters = Mapping[str, str | int | None]
JSON = "application/json"


def path(*parts: str) -> str:
    """Return a path of the API, with each part encoded: `path("projects", id)` is `/clustercert/v1/projects/ID`."""
    return "/clustercert/v1/" + "/".join(quote(part, safe="") for part in parts)


class Answer:
    """A successful answer of the API.

    Attributes:
        status: below 400.
        headers: names in lower case.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Api:
    """The API, called with the credential of one session.

    Args:
        context: the context of the request to the console, whose source address, deadline and log line are used for
            these requests, too.
    """

    def __init__(self, app: ASGIApp, denials: DenialAudit, context: RequestContext, cookie: str) -> None:
        self._app = app
        self._denials = denials
        self._context = context
        self._credential = session_credential(cookie)

    async def get(self, target: str, **parameters: str | int | None) -> Any:
        """Return the JSON of a GET request. Parameters that are None are left out. Raises ClustercertError."""
        return (await self.send("GET", target, parameters)).json

    async def post(self, target: str, body: object = None, **parameters: str | int | None) -> Any:
        """Return the JSON of a POST request; None if the answer has no content. Raises ClustercertError."""
        answer = await self.send("POST", target, parameters, body)
        return answer.json if answer.body else None

    async def send(
        self,
        method: str,
        target: str,
        parameters: Parameters | None = None,
        body: object = None,
        accept: str = JSON,
    ) -> Answer:
        """Send a request, and return the answer. Raises the ClustercertError that the API would answer with.

        A denial is recorded in the audit log like a denial of the API.
        """
        content = b"" if body is None else json.dumps(body).encode()
        scope = self._scope(method, target, parameters or {}, content, accept)
        messages: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            messages.append(message)

        try:
            await self._app(scope, receive, send)
        except ClustercertError as failure:
            await record_denial(self._denials, scope, failure)
            raise
        start, *rest = messages
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], headers, b"".join(message.get("body", b"") for message in rest))

    def _scope(self, method: str, target: str, parameters: Parameters, content: bytes, accept: str) -> Scope:
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        headers = [(b"accept", accept.encode())]
        if content:
            headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(target),
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
        }
        context = RequestContext(
            self._context.origin,
            self._context.extend_deadline,
            credential=self._credential,
            log_fields=self._context.log_fields,
        )
        attach(scope, context)
        return scope
