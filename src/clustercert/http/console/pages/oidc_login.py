"""Login at OIDC issuers, and logout by the issuers."""

from typing import TYPE_CHECKING, cast

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.login_attempts import LOGIN_SECONDS, LoginAttempt, LoginRefused
from clustercert.http.console import forms
from clustercert.http.console.visits import (
    LOGIN,
    PREFIX,
    SESSION_COOKIE,
    PageRoute,
    Pages,
    Visit,
    answer_as_api,
    delete_cookie,
    error_page,
    login_address,
    safe_next,
    set_cookie,
)
from clustercert.http.context import context_of, log_caller
from clustercert.http.dependencies import Services
from clustercert.http.responses import NO_STORE
from clustercert.model import utc_now
from clustercert.model.errors import ClustercertError, InvalidRequest, NoSuchRoute, Unauthenticated

if TYPE_CHECKING:
    from clustercert.authn.oidc.web_login import IssuerLogins

pages = Pages()

LOGIN_COOKIE = "__Host-clustercert-login"
_MAX_LOGOUT = 20 * 1024
"""A form with a logout token, which has at most 16 KiB."""


@pages.get("/login/{issuer}", public=True)
async def begin(visit: Visit) -> Response:
    """Send the browser to the issuer. The parameters are `next`, and `again` as in `login_address`."""
    name = visit.part("issuer")
    attempt = LoginAttempt(
        issuer=name,
        next_page=safe_next(visit.query.get("next", "")),
        again="again" in visit.query,
        started_at=int(utc_now().timestamp()),
    )
    address = await _logins(visit.services, name).address(attempt, _redirect_uri(visit, name))
    response = RedirectResponse(address, 303, NO_STORE)
    set_cookie(response, LOGIN_COOKIE, attempt.text, LOGIN_SECONDS)
    return response


# The address contains the issuer's name, so that a dishonest issuer can't get the code of an honest one (mix-up
# attack). Source: RFC 9700 section 4.4.2.2.
@pages.get("/login/callback/{issuer}", public=True)
async def finish(visit: Visit) -> Response:
    """Begin a session with the issuer's answer, which the browser brings."""
    services, origin, name = visit.services, context_of(visit.request).origin, visit.part("issuer")
    attempt = _answered_attempt(visit)
    _lead_back_to_login(visit, attempt)
    if attempt is None or attempt.issuer != name:
        raise InvalidRequest(
            "This answer does not belong to a login that began in this browser, or the login took longer than"
            f" {LOGIN_SECONDS // 60} minutes. Log in again."
        )
    logins = _logins(services, name)
    services.failure_limit.check(origin)
    try:
        login = await logins.complete(attempt, visit.query, _redirect_uri(visit, name))
        new = await services.sessions.begin_by_claims(
            logins.issuer.url,
            login.claims,
            authenticated_at=login.authenticated_at,
            origin=origin,
            before=visit.request.cookies.get(SESSION_COOKIE),
        )
    except LoginRefused:
        raise
    except Unauthenticated as failure:
        raise LoginRefused(
            f"{name} logged you in, but this service does not let you in. Ask an operator of this service to look up"
            " the reason in its log, by the id of this request.",
            failure.reason,
            known=failure.known,
        ) from None
    log_caller(new.user)
    response = visit.redirect(attempt.next_page)
    set_cookie(response, SESSION_COOKIE, new.cookie)
    delete_cookie(response, LOGIN_COOKIE)
    return response


def _logins(services: Services, issuer: str) -> "IssuerLogins":
    found = services.oidc.logins.get(issuer) if services.oidc is not None else None
    if found is None:
        raise NoSuchRoute(f"Nobody can log in at an identity provider {issuer} here. Begin at {LOGIN}.")
    return found


def _redirect_uri(visit: Visit, issuer: str) -> str:
    return f"{visit.service_url}{LOGIN}/callback/{issuer}"


def _answered_attempt(visit: Visit) -> LoginAttempt | None:
    """Return the login that began in this browser, or None if the answer does not belong to this login."""
    try:
        attempt = LoginAttempt.parse(visit.request.cookies.get(LOGIN_COOKIE, ""))
    except ValueError:
        return None
    return attempt if attempt.is_answered_by(visit.query.get("state", ""), utc_now()) else None


def _lead_back_to_login(visit: Visit, attempt: LoginAttempt | None) -> None:
    """Let the page for a failure lead to a new login. The address of this request must not occur in the page."""
    next_page, again = (attempt.next_page, attempt.again) if attempt is not None else (PREFIX, False)

    def page(failure: ClustercertError) -> Response:
        response = error_page(
            visit.request, failure, "The login failed", login_address(next_page, again=again)
        )
        if attempt is not None:
            # An answer that does not belong to the login must not end the login.
            delete_cookie(response, LOGIN_COOKIE)
        return response

    visit.show_on_failure(page)


class _LogoutRefused(InvalidRequest):
    """A logout token is not accepted.

    Attributes:
        reason: what is wrong, for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("The logout token is not accepted. The log of this service says why.")
        self.reason = reason


async def _logout_by_issuer(request: Request) -> Response:
    """End the sessions that a logout token names.

    Source: OpenID Connect Back-Channel Logout 1.0, sections 2.5 to 2.8.
    """
    services, context = cast("Services", request.app.state.services), context_of(request)
    answer_as_api(request)
    token = (await forms.received_form(request, services, _MAX_LOGOUT)).get("logout_token", "")
    if services.oidc is None:
        raise _LogoutRefused("the settings have no OIDC issuer")
    try:
        logout = await services.oidc.verified_logout(token)
    except TokenRefused as refusal:
        raise _LogoutRefused(refusal.reason) from None
    context.log_fields["issuer"] = logout.issuer.name
    context.log_fields["ended_sessions"] = await services.sessions.end_by_issuer(
        logout.issuer.url, sid=logout.sid, sub=logout.sub, at=logout.at, origin=context.origin
    )
    return Response(headers=NO_STORE)


# The issuer sends this form, not a page of the console. The signature of the token proves this.
pages.routes.append(
    PageRoute(f"{PREFIX}/backchannel-logout", _logout_by_issuer, methods=["POST"], include_in_schema=False)
)
