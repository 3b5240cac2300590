"""Sessions of the console, on accounts in a database and in a running application."""

import json
from typing import TYPE_CHECKING, Any, cast

import httpx2

from clustercert.authn.oidc.authenticator import OidcAuthenticator
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.verification import Verifier
from clustercert.authn.sessions import session_credential
from clustercert.http.context import RequestContext, attach
from clustercert.identity.service import Identity
from clustercert.identity.tokens import ByPassword
from clustercert.model import Caller, User
from clustercert.store.identity.entities import Reference
from support.accounts import ORIGIN, PASSWORD, Accounts
from support.oidc import AUDIENCE, URL
from support.service import Service, exchange, scope_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.routing import Router

    from clustercert.http.dependencies import Services
    from clustercert.http.middleware import RequestMiddleware


async def log_in(identity: Identity, user: User, before: str | None = None) -> str:
    """Log in with the password. Returns the cookie."""
    login = ByPassword(Reference(id=user.id), PASSWORD)
    return (await identity.sessions.log_in(login, ORIGIN, before)).cookie


async def caller_of_session(identity: Identity, cookie: str) -> Caller:
    return (await identity.sessions.find(cookie, ORIGIN))[1]


def use_issuer(accounts: Accounts, identity: Identity, **changed: Any) -> None:
    """Give the sessions an issuer with these settings, whose members of `team-blue` are members of the project."""
    issuer = OidcIssuer.model_validate(
        {
            "name": "sso",
            "issuer": URL,
            "audiences": ["for-the-api"],
            "console": {"client_id": AUDIENCE},
            "username": "preferred_username",
            "groups": "groups",
            "projects": [accounts.project.id],
            "roles": [{"role": "member", "groups": ["team-blue"]}],
        }
        | changed
    )
    verifier = Verifier({issuer.url: issuer}, {}, accounts.clock)
    identity.sessions.use_issuers(OidcAuthenticator(identity.federation, verifier))


async def log_in_by_claims(accounts: Accounts, identity: Identity, claims: dict[str, object]) -> str:
    """Log in with the claims of an ID token. Returns the cookie."""
    new = await identity.sessions.begin_by_claims(
        URL, claims, authenticated_at=accounts.clock(), origin=ORIGIN, before=None
    )
    return new.cookie


def services_of(service: Service) -> "Services":
    """The services of a running application."""
    middleware = cast("RequestMiddleware", service.app)
    application = cast("FastAPI", cast("Router", middleware.app).default)
    return cast("Services", application.state.services)


def ask(service: Service, cookie: str, method: str, path: str, body: object = None) -> httpx2.Response:
    """Send a request to the application in its own process, with a session as its credential. A refusal raises."""
    scope = scope_of(method, path, [(b"host", b"clustercert.test"), (b"content-type", b"application/json")])
    context = RequestContext(ORIGIN, lambda: None, credential=session_credential(cookie))
    attach(scope, context)
    inner = cast("RequestMiddleware", service.app).app
    return service.run(exchange(inner, scope, [json.dumps(body).encode() if body is not None else b""]))
