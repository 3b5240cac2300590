"""Handles requests to the console: session, form checks, errors as pages. Pages are registered with `Pages`."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote, unquote, urlencode, urlsplit

from fastapi import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from clustercert.http.console import forms, rendering, typed_fields
from clustercert.http.console.api import Api, path
from clustercert.http.context import context_of, log_caller
from clustercert.http.dependencies import Services, base_url
from clustercert.http.responses import NO_STORE, error, error_headers, error_message, prefers
from clustercert.model import Caller, utc_now
from clustercert.model.errors import (
    ClustercertError,
    CredentialUnverified,
    NoCredential,
    NoSuchRoute,
    Unauthenticated,
)
from clustercert.model.rights import administered_projects, operates, reads_everything
from clustercert.model.sessions import Session

PREFIX = "/console"
LOGIN = f"{PREFIX}/login"
# `__Host-`: only for this host, over TLS (or loopback), with Path=/. Source: RFC 6265bis, section 4.1.3.2.
SESSION_COOKIE = "__Host-clustercert"
NOTICE_COOKIE = "__Host-clustercert-notice"
MAX_NEXT = 1024
MAX_DIGITS = 9
_MAX_NOTICE = 1000
# Of so many of the newest undecided requests, the navigation counts those that wait for the visitor.
_MAX_WAITING = 100

Handler = Callable[["Visit"], Awaitable[Response]]
# Returns the page to go back to after a new login, or None if this visitor needs no new login for the action.
PageOfAction = Callable[["Visit"], str | None]


@dataclass(frozen=True, slots=True)
class NavigationEntry:
    """An entry of the navigation. `shown` says for which callers it is shown; None stands for all of them."""

    path: str
    title: str
    shown: Callable[[Caller], bool] | None = None


def sees_others(caller: Caller) -> bool:
    """Whether the caller sees more than their own access: an operator, an auditor, or an admin of a project."""
    return reads_everything(caller) or bool(administered_projects(caller))


NAVIGATION = (
    NavigationEntry(PREFIX, "Now", sees_others),
    NavigationEntry(f"{PREFIX}/clusters", "My clusters"),
    NavigationEntry(f"{PREFIX}/requests", "Requests"),
    NavigationEntry(f"{PREFIX}/fleet", "Fleet", sees_others),
    NavigationEntry(f"{PREFIX}/certificates", "Certificates", sees_others),
    NavigationEntry(f"{PREFIX}/audit", "Audit", sees_others),
)


@dataclass(frozen=True, slots=True)
class Visitor:
    """The person who is logged in, with their roles in all projects. `cookie` is the secret of the session."""

    cookie: str = field(repr=False)
    session: Session
    caller: Caller


@dataclass(frozen=True, slots=True)
class Visit:
    """One request to the console.

    Attributes:
        visitor: None on pages that need no login.
        form: the fields of a POST request; for GET, what the visitor typed on this page before a login.
        waiting: how many access requests wait for the visitor's decision, as text; empty for none.
    """

    request: Request
    services: Services
    visitor: Visitor | None
    form: Mapping[str, str]
    waiting: str = ""

    @property
    def me(self) -> Visitor:
        """The visitor of a page that needs a login. Raises NoCredential without a login."""
        if self.visitor is None:
            raise NoCredential("the request has no session")
        return self.visitor

    @property
    def api(self) -> Api:
        """The API, called as the visitor."""
        return Api(self.request.app, self.services.denials, context_of(self.request), self.me.cookie)

    @property
    def is_operator(self) -> bool:
        return operates(self.me.caller)

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters. The middleware refuses repeated parameters."""
        return self.request.query_params

    def part(self, name: str) -> str:
        """Return a part of the path, decoded."""
        return str(self.request.path_params[name])

    def value(self, name: str, default: str = "") -> str:
        """Return a form field without leading and trailing spaces. Don't use this for passwords."""
        return self.form.get(name, default).strip()

    def number(self, name: str) -> int | None:
        """Return a form field that is a number of at most nine digits; None for anything else."""
        text = self.value(name)
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else None

    @property
    def address(self) -> str:
        """Path and query of this page."""
        return _address(self.request)

    @property
    def address_for_operators(self) -> str | None:
        """Path and query of this page for an operator, else None: nobody else needs a new login for its form."""
        return self.address if self.is_operator else None

    @property
    def service_url(self) -> str:
        """The URL of this service without a final slash."""
        return base_url(self.request)

    def render(
        self,
        template: str,
        *,
        status: int = HTTPStatus.OK,
        failure: ClustercertError | None = None,
        live: bool = False,
        **values: object,
    ) -> Response:
        """Return a page with the values, and with what every template has (see `base.html`).

        Args:
            status: the status of the answer, unless `failure` is given.
            failure: why the API refused what a form asked for. The template gets its message.
            live: whether the page has a part that updates itself.
        """
        nonce = secrets.token_urlsafe(16) if live else None
        context_of(self.request).browser_rules = rendering.browser_rules(nonce)
        # An update shows only a part of the page, so the notice waits for a whole page.
        cookie = "" if _is_update(self.request) else self.request.cookies.get(NOTICE_COOKIE, "")
        notice = unquote(cookie)[:_MAX_NOTICE]
        shared = self._shared(nonce, notice) | {"message": failure.message if failure is not None else ""}
        response = rendering.page_response(
            template, shared | values, failure.status if failure is not None else status
        )
        if notice:
            delete_cookie(response, NOTICE_COOKIE)
        if self.form and self.request.method == "GET":
            delete_cookie(response, typed_fields.COOKIE)
        return response

    def _shared(self, nonce: str | None, notice: str) -> dict[str, Any]:
        visitor = self.visitor
        entries = [
            entry
            for entry in NAVIGATION
            if visitor is not None and (entry.shown is None or entry.shown(visitor.caller))
        ]
        return {
            "visitor": visitor,
            "navigation": entries,
            "waiting": self.waiting,
            "path": self.request.url.path,
            "address": self.address,
            "owner_field": typed_fields.OWNER_FIELD,
            "form_token": forms.csrf_token(visitor.cookie) if visitor is not None else "",
            "notice": notice,
            "nonce": nonce,
            "now": utc_now(),
            "service_url": self.service_url,
        }

    def show_on_failure(self, page: Callable[[ClustercertError], Response]) -> None:
        """Answer with this page if the request fails. The middleware counts and records the failure first.

        Clients that want JSON get the error of the API.
        """
        if wants_page(self.request):
            context_of(self.request).error_page = page

    def redirect(self, path: str, notice: str = "") -> Response:
        """Answer a POST with the page to show next. `notice`: a sentence that this page shows once."""
        response = RedirectResponse(path, HTTPStatus.SEE_OTHER, NO_STORE)
        if notice:
            set_cookie(response, NOTICE_COOKIE, quote(notice), seconds=60)
        return response


def set_cookie(response: Response, name: str, value: str, seconds: int | None = None) -> None:
    """Set a cookie that only this host receives, and that scripts can't read. Default: for the browser's session."""
    response.set_cookie(name, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="lax")


def delete_cookie(response: Response, name: str) -> None:
    """Make the browser forget a cookie that `set_cookie` set."""
    response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="lax")


def end_session_cookie(response: Response) -> None:
    """Make the browser forget the session, and what was typed in it."""
    delete_cookie(response, SESSION_COOKIE)
    delete_cookie(response, typed_fields.COOKIE)


def safe_next(text: str) -> str:
    """Return the address if it is a page of the console, else the console's first page.

    A browser must never follow an address from a query parameter to another site.
    """
    inside = text == PREFIX or text.startswith((f"{PREFIX}/", f"{PREFIX}?"))
    plain = text.isascii() and text.isprintable() and "\\" not in text and " " not in text
    path = unquote(text.partition("?")[0])
    # Browsers resolve `..` before they send a request.
    stays = "//" not in path and not {".", ".."} & {*path.split("/")}
    return text if inside and plain and stays and len(text) <= MAX_NEXT else PREFIX


def with_query(address: str, query: Mapping[str, str]) -> str:
    """Return an address with query parameters, if there are any."""
    return f"{address}?{urlencode(query)}" if query else address


def login_address(next_page: str, *, again: bool = False) -> str:
    """Return the address of the login page. `again`: ask a person who is logged in to prove who they are."""
    return with_query(LOGIN, {"next": next_page} | ({"again": "1"} if again else {}))


class PageRoute(Route):
    """A route of the console. Metrics count requests under the route's path. FastAPI names only its own routes."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self}


class Pages:
    """The pages of one module, and what their forms do.

    A handler gets a `Visit`, and returns `visit.render(…)` or `visit.redirect(…)`. It may raise any ClustercertError.
    """

    def __init__(self) -> None:
        self.routes: list[PageRoute] = []

    def get(
        self, path: str, *, public: bool = False, fresh: PageOfAction | None = None
    ) -> Callable[[Handler], Handler]:
        """Register a page below `/console`.

        Args:
            public: the page needs no login.
            fresh: for pages with a form that needs a login of the last five minutes.
        """
        return self._register(path, "GET", public=public, fresh=fresh)

    def post(
        self,
        path: str,
        *,
        fresh: PageOfAction | None = None,
        limit: int = forms.MAX_FORM,
        keep: bool = False,
    ) -> Callable[[Handler], Handler]:
        """Register what a form does.

        Args:
            fresh: for actions that need a login of the last five minutes.
            limit: the maximum size of the form in bytes.
            keep: whether to keep what was typed if the session has ended. Not for passwords. With `fresh`, what was
                typed is always kept.
        """
        keep = keep or fresh is not None
        return self._register(path, "POST", public=False, fresh=fresh, limit=limit, keep=keep)

    def post_public(self, path: str) -> Callable[[Handler], Handler]:
        """Register a form that needs no login. The form must come from a page of this service."""
        return self._register(path, "POST", public=True, fresh=None)

    def _register(
        self,
        path: str,
        method: str,
        *,
        public: bool,
        fresh: PageOfAction | None,
        limit: int = forms.MAX_FORM,
        keep: bool = False,
    ) -> Callable[[Handler], Handler]:
        def register(handler: Handler) -> Handler:
            async def endpoint(request: Request) -> Response:
                return await _handle(request, handler, public=public, fresh=fresh, limit=limit, keep=keep)

            self.routes.append(PageRoute(PREFIX + path, endpoint, methods=[method], include_in_schema=False))
            return handler

        return register


async def _handle(
    request: Request, handler: Handler, *, public: bool, fresh: PageOfAction | None, limit: int, keep: bool
) -> Response:
    services = cast("Services", request.app.state.services)
    visitor = await _visitor(request, services, public=public)
    if visitor is None and not public:
        if request.method == "POST":
            if keep:
                await _keep_form(request, services, limit)
            raise _SessionEnded
        return Visit(request, services, None, {}).redirect(login_address(_address(request)))
    fields: Mapping[str, str] = {}
    if request.method == "POST":
        fields = await _checked_form(request, services, visitor, limit)
    elif visitor is not None and not _is_update(request):
        cookie = request.cookies.get(typed_fields.COOKIE, "")
        fields = typed_fields.restored(cookie, _address(request), visitor.caller.user.id)
    visit = Visit(request, services, visitor, fields)
    if not public and wants_page(request) and not _is_update(request):
        visit = replace(visit, waiting=await _waiting(visit))
    if fresh is not None and not visit.me.session.has_recent_login(utc_now()) and (page := fresh(visit)):
        login = login_address(page, again=True)
        if request.method == "GET":
            return visit.redirect(login, "This page needs a login of the last five minutes. Log in again.")
        response = visit.redirect(
            login, "This needs a login of the last five minutes. Log in again, then send the form again."
        )
        _keep(response, page, {**fields, typed_fields.OWNER_FIELD: visit.me.caller.user.id})
        return response
    return await handler(visit)


async def _keep_form(request: Request, services: Services, limit: int) -> None:
    """Let the page for the ended session keep what was typed, unless the form is malformed or of another site."""
    try:
        forms.require_own_page(request, services.options.urls)
        fields = await forms.received_form(request, services, limit)
    except ClustercertError:
        return

    def page(failure: ClustercertError) -> Response:
        response = error_page(request, failure)
        _keep(response, _page_of_form(request), fields)
        return response

    Visit(request, services, None, {}).show_on_failure(page)


def _keep(response: Response, page: str, fields: Mapping[str, str]) -> None:
    if (cookie := typed_fields.kept(page, fields)) is not None:
        set_cookie(response, typed_fields.COOKIE, cookie, typed_fields.SECONDS)


async def _waiting(visit: Visit) -> str:
    """Return how many open access requests wait for the visitor's decision, as text; empty for none."""
    found = await visit.api.get(path("access-requests"), to_decide="true", state="open", limit=_MAX_WAITING)
    number = len(found["access_requests"])
    return f"{number}{'+' if found['next'] is not None else ''}" if number else ""


def answer_as_console(scope: Scope) -> None:
    """Set the header fields of an answer below `/console`, and how a failure is answered.

    The middleware calls this function before each request, so the fields are also set for failures that reach no page.
    """
    if scope["path"] != PREFIX and not scope["path"].startswith(f"{PREFIX}/"):
        return
    request, context = Request(scope), context_of(scope)
    context.browser_rules = rendering.browser_rules(None)
    if wants_page(request):
        context.error_page = lambda failure: error_page(request, failure)
    else:
        answer_as_api(request)


def answer_as_api(request: Request) -> None:
    """Answer a failure of the request like the API, with JSON, but so that no cache keeps it."""
    context = context_of(request)
    context.error_page = lambda failure: error(failure, request.url.path, context.origin.request_id, NO_STORE)


def wants_page(request: Request) -> bool:
    """Whether the client is a browser that shows a page, and not a program that reads JSON."""
    return prefers(request, ("text/html",))


def raise_fault(failure: ClustercertError) -> None:
    """Raise a failure again if the service is its cause. A page shows other failures beside its form."""
    if failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise failure


class _SessionEnded(NoCredential):
    """A form was sent without a session, for example because the session has ended."""

    def __init__(self) -> None:
        super().__init__("the request has no session")
        self.message = (
            "You are not logged in any more, so nothing was changed. Log in, then send the form again."
        )


def _address(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _page_of_form(request: Request) -> str:
    """Return the address of the page that sent a form; the console's first page if the browser does not say."""
    try:
        page = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return PREFIX
    return safe_next(page.path + (f"?{page.query}" if page.query else ""))


def _is_update(request: Request) -> bool:
    """Whether a live part of a page, not a person, sent the request."""
    return "live-update" in request.headers


async def _visitor(request: Request, services: Services, *, public: bool) -> Visitor | None:
    """Return who is logged in, or None. A cookie of a session that has ended counts as no cookie.

    On a public page, such as the login, a cookie also counts as no cookie if its user can't be verified now, because
    Keystone is away.
    """
    cookie = request.cookies.get(SESSION_COOKIE)
    if not cookie:
        return None
    try:
        # The updates of a page's live parts must not keep a session open whose user has gone.
        session, caller = await services.sessions.find(
            cookie, context_of(request).origin, extend=not _is_update(request)
        )
    except Unauthenticated:
        return None
    except CredentialUnverified:
        if public:
            return None
        raise
    log_caller(caller.user)
    return Visitor(cookie, session, caller)


async def _checked_form(
    request: Request, services: Services, visitor: Visitor | None, limit: int
) -> Mapping[str, str]:
    """Return the form's fields. Raises Forbidden, which is recorded in the audit log if somebody is logged in."""
    if visitor is not None:
        context_of(request).caller = visitor.caller
    forms.require_own_page(request, services.options.urls)
    fields = await forms.received_form(request, services, limit)
    if visitor is not None:
        forms.require_csrf_token(fields, visitor.cookie)
        # From here on, the API records what it denies.
        context_of(request).caller = None
    return fields


def error_page(
    request: Request, failure: ClustercertError, title: str | None = None, login: str | None = None
) -> Response:
    """Return the page for a failure, in the words of the API.

    `login`: the address of a login that may help. By default, a failed authentication leads to a login and back here.
    """
    if login is None and isinstance(failure, Unauthenticated):
        login = login_address(_address(request) if request.method == "GET" else _page_of_form(request))
    context = context_of(request)
    message = error_message(failure)
    if type(failure) in (Unauthenticated, NoCredential):
        message = "You are not logged in any more. Log in again."
    context.browser_rules = rendering.browser_rules(None)
    values = {
        "status": failure.status,
        "title": title or HTTPStatus(failure.status).phrase,
        "message": message,
        "request_id": context.origin.request_id,
        "login": login,
    }
    return rendering.page_response("error.html", values, failure.status, error_headers(failure))


async def no_such_page(visit: Visit) -> Response:
    """The page for unknown addresses below `/console`. A slash at the end leads to the page without the slash."""
    path = visit.request.url.path
    if visit.request.method == "GET" and path.endswith("/"):
        return visit.redirect(safe_next(path.rstrip("/")))
    raise NoSuchRoute(f"The console has no page {path}. Begin at {PREFIX}.")
