"""Login with a password, and logout. `oidc_login` has the logins at OIDC issuers."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.responses import Response

from clustercert.authn.federated import KeystonePassword
from clustercert.http.console.visits import (
    LOGIN,
    SESSION_COOKIE,
    Pages,
    Visit,
    end_session_cookie,
    safe_next,
    set_cookie,
    with_query,
)
from clustercert.http.context import context_of, log_caller
from clustercert.http.responses import error_headers
from clustercert.identity.sessions import NewSession
from clustercert.identity.tokens import ByPassword
from clustercert.model import User
from clustercert.model.errors import ClustercertError, CredentialUnverified, Unauthenticated
from clustercert.model.identity import BUILT_IN, DEFAULT_DOMAIN
from clustercert.model.requests import is_loopback
from clustercert.observability import tracing
from clustercert.store.identity.entities import Reference

pages = Pages()

KEYSTONE = "keystone"
_WRONG = "Wrong user name or password."
_OTHER_DOMAIN = " If your account is in another domain, write the name of the domain."


@dataclass(frozen=True, slots=True)
class _IssuerLink:
    """A link to the login at an OIDC issuer."""

    name: str
    address: str


@pages.get("/login", public=True)
async def show_login(visit: Visit) -> Response:
    """Show the ways to log in. The parameters are `next` and `again`: see `login_address`."""
    next_page, again = safe_next(visit.query.get("next", "")), "again" in visit.query
    if visit.visitor is not None and not again:
        return visit.redirect(next_page)
    return _login_page(visit, next_page, again=again)


@pages.post_public("/login")
async def log_in(visit: Visit) -> Response:
    """Log in with a password.

    The limits, and the time that a failure takes, are the same as for POST /v3/auth/tokens.
    """
    context, sessions = context_of(visit.request), visit.services.sessions
    next_page, before = safe_next(visit.value("next")), visit.request.cookies.get(SESSION_COOKIE)
    visit.show_on_failure(lambda failure: _failed(visit, next_page, failure))
    visit.services.failure_limit.check(context.origin)
    if visit.value("system") == KEYSTONE:
        new = await _log_in_at_keystone(visit, before)
    else:
        user = Reference(name=visit.value("user"), domain_name=visit.value("domain") or DEFAULT_DOMAIN)
        login = ByPassword(user, visit.form.get("password", ""))
        with tracing.span("authenticate"):
            new = await sessions.log_in(login, context.origin, before)
    log_caller(new.user)
    response = visit.redirect(next_page)
    set_cookie(response, SESSION_COOKIE, new.cookie)
    return response


@pages.post_public("/logout")
async def log_out(visit: Visit) -> Response:
    """End the session, if there is one, and show the login page."""
    if (cookie := visit.request.cookies.get(SESSION_COOKIE)) is not None:
        await visit.services.sessions.end(cookie, context_of(visit.request).origin)
    response = visit.redirect(LOGIN, _after_logout(visit))
    end_session_cookie(response)
    return response


def _after_logout(visit: Visit) -> str:
    """Return what to tell a person who has logged out."""
    issuer = visit.visitor.session.issuer if visit.visitor is not None else ""
    for each in visit.services.oidc.issuers if visit.services.oidc is not None else ():
        if each.url == issuer:
            return f"You are logged out here, but maybe not at {each.name}: log out there, too."
    return "You are logged out."


async def _log_in_at_keystone(visit: Visit, before: str | None) -> NewSession:
    login = KeystonePassword(
        user=visit.value("user"),
        domain=visit.value("domain") or DEFAULT_DOMAIN,
        password=visit.form.get("password", ""),
        project=visit.value("project"),
        in_system="in_system" in visit.form,
    )
    origin = context_of(visit.request).origin
    try:
        return await visit.services.sessions.log_in_at_keystone(login, origin, before)
    except CredentialUnverified:
        # As in the API: while Keystone can't be reached, invented logins cause this error, too.
        visit.services.failure_limit.count(origin)
        raise


def _failed(visit: Visit, next_page: str, failure: ClustercertError) -> Response:
    """Show the form again, with what is wrong. Every failed login has the same text."""
    message = failure.message
    if isinstance(failure, Unauthenticated):
        is_default = visit.value("domain") in ("", DEFAULT_DOMAIN)
        message = _WRONG + (_OTHER_DOMAIN if is_default else "")
    page = _login_page(visit, next_page, again="again" in visit.form, status=failure.status, message=message)
    page.headers.update(error_headers(failure))
    return page


def _login_page(
    visit: Visit, next_page: str, *, again: bool, status: int = 200, message: str = ""
) -> Response:
    """Return the page with all ways to log in; for a login again, with the ways of the visitor's identity system."""
    services, visitor = visit.services, visit.visitor if again else None
    own = visitor.session.issuer if visitor is not None else None
    keystone = services.sessions.keystone
    parameters = {"next": next_page} | ({"again": "1"} if again else {})
    issuers = [
        _IssuerLink(name, with_query(f"{LOGIN}/{name}", parameters))
        for name, login in (services.oidc.logins.items() if services.oidc is not None else ())
        if own in (None, login.issuer.url)
    ]
    if visitor is not None and not visitor.session.method.startswith(KEYSTONE):
        keystone = None
    has_built_in = services.sessions.has_built_in and own in (None, BUILT_IN)
    user, domain = _names(visitor.caller.user) if visitor is not None else ("", DEFAULT_DOMAIN)
    first = KEYSTONE if keystone is not None else BUILT_IN
    service = urlsplit(visit.service_url)
    return visit.render(
        "login.html",
        status=status,
        next_page=next_page,
        again=again,
        message=message,
        issuers=issuers,
        has_built_in=has_built_in,
        keystone=keystone,
        is_only=not issuers and (keystone is None or not has_built_in),
        # The open form: the form that was sent or, without links to issuers, the first form.
        opened=visit.value("system", first if not issuers else ""),
        user=visit.value("user", user),
        domain=visit.value("domain", domain),
        default_domain=DEFAULT_DOMAIN,
        project=visit.value("project"),
        in_system="in_system" in visit.form,
        # Over plain HTTP, browsers drop the session's cookie.
        unprotected=service.scheme == "http" and not is_loopback(service.hostname or ""),
    )


def _names(user: User) -> tuple[str, str]:
    """Return the user's name and domain as the user writes them. Names from Keystone may be KEYSTONE/DOMAIN/NAME."""
    *prefix, name = user.name.split("/")
    return name, prefix[-1] if prefix else user.domain.name
