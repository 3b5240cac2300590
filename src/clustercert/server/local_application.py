"""The API as an application without a server, for commands that work on the store."""

import functools
import secrets
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from fastapi import FastAPI
from starlette.types import Message, Scope

from clustercert.authn.credentials import UnverifiedCredential
from clustercert.http import responses
from clustercert.http.app import new_app
from clustercert.http.context import RequestContext, attach
from clustercert.model import Actor, Caller, Domain, UnverifiedRequest, User
from clustercert.model.errors import ClustercertError, Unauthenticated
from clustercert.model.identity import BUILT_IN
from clustercert.policy.roles import OPERATOR
from clustercert.server.application import services_of
from clustercert.wiring import Components

# A report of this size takes about a minute. Only the command waits for it.
MAX_REPORTED = 500_000


@functools.cache
def _routes() -> FastAPI:
    """Return the application without services. Built once, since the framework never frees an application's routes."""
    return new_app("api")


class LocalApplication:
    """Answers the requests of an operator who has access to the store. A process uses one at a time."""

    def __init__(self, parts: Components, actor: Actor, domain: Domain | None) -> None:
        """`domain` is where names without a domain are looked up; `None` if each request has to name one."""
        self._operator = _LocalOperator(actor, domain)
        self._app = _routes()
        services = services_of(parts, "api")
        inventory = replace(services.inventory, max_reported=MAX_REPORTED)
        self._app.state.services = replace(services, authenticator=self._operator, inventory=inventory)

    async def answer(
        self, method: str, target: str, headers: Mapping[str, str], content: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, the headers and the body of the response."""
        scope = self._scope(method, target, headers)
        messages: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            messages.append(message)

        try:
            await self._app(scope, receive, send)
        except ClustercertError as failure:
            request_id = self._operator.actor.origin.request_id
            await responses.error(failure, scope["path"], request_id)(scope, receive, send)
        start, *rest = messages
        answered = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        return start["status"], answered, b"".join(message.get("body", b"") for message in rest)

    def _scope(self, method: str, target: str, headers: Mapping[str, str]) -> Scope:
        parts = urlsplit(target)
        sent = {**headers, "X-Auth-Token": self._operator.token}
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(parts.path),
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
        }
        attach(scope, RequestContext(self._operator.actor.origin, extend_deadline=lambda: None))
        return scope


class _LocalOperator:
    """Authenticates this process alone, as an operator. Its events have the actor of the command."""

    def __init__(self, actor: Actor, domain: Domain | None) -> None:
        self.actor = actor
        self.token = secrets.token_urlsafe(32)
        self._user = User(id=actor.id, name=actor.id, domain=domain or Domain(id="", name=""))
        self._issuer = BUILT_IN if domain is not None else "local"

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return credential.text == self.token

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        if not self.accepts(credential):
            raise Unauthenticated("not the credential of this process")
        return Caller(
            self._user,
            roles={},
            method="cli",
            origin=request.origin,
            service_roles=(OPERATOR,),
            issuer=self._issuer,
        )
