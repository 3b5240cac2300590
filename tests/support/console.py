"""A browser for tests of the console: keeps cookies, sends what browsers send, and reads pages."""

import re
from html import unescape
from http.cookies import SimpleCookie
from typing import Self

import httpx2

from clustercert.http.console.forms import CSRF_FIELD, csrf_token
from clustercert.http.console.visits import SESSION_COOKIE
from clustercert.identity.tokens import ByPassword
from clustercert.model import Origin
from clustercert.model.identity import BUILT_IN
from clustercert.store.identity.entities import Reference
from support.console_sessions import services_of
from support.service import Service
from support.stores import execute
from support.world import Person, World

# What browsers say of a form that a page of the same site sends.
OWN_PAGE = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"}
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def page_text(page: str) -> str:
    """The text of a page in one line, with a space for each tag. The parts of a cluster's full name stay together."""
    joined = page.replace("</bdi>/<bdi>", "/")
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", joined).split()))


class Browser:
    """One person's browser. It follows no redirects, and keeps cookies although the address begins with `http`."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client
        self.cookies: dict[str, str] = {}

    @classmethod
    def logged_in(cls, client: httpx2.Client, person: Person) -> Self:
        """Return a browser in which a user of the built-in identity service has logged in."""
        browser = cls(client)
        answer = browser.log_in(person)
        assert answer.status_code == 303, answer.text
        return browser

    @classmethod
    def in_session(cls, site: Service, person: Person) -> Self:
        """Return a browser with a new session of a user of the built-in identity service, without the login page."""
        login = ByPassword(Reference(id=person.user.id), person.password)
        new = site.run(services_of(site).sessions.log_in(login, Origin("192.0.2.9", "5" * 32), None))
        browser = cls(site.client)
        browser.cookies[SESSION_COOKIE] = new.cookie
        return browser

    def log_in(self, person: Person, **fields: str) -> httpx2.Response:
        user = {
            "system": BUILT_IN,
            "user": person.user.name,
            "domain": person.user.domain.name,
            "password": person.password,
        }
        return self.post("/console/login", None, **(user | fields))

    def get(self, address: str, headers: dict[str, str] | None = None) -> httpx2.Response:
        return self._send(self._client.build_request("GET", address, headers=HTML | (headers or {})))

    def post(self, address: str, headers: dict[str, str] | None = None, **fields: str) -> httpx2.Response:
        """Send a form with the session's token, as a page of the console does."""
        session = self.cookies.get(SESSION_COOKIE)
        token = {CSRF_FIELD: csrf_token(session)} if session else {}
        return self.post_exactly(address, HTML | OWN_PAGE | (headers or {}), token | fields)

    def post_exactly(self, address: str, headers: dict[str, str], fields: dict[str, str]) -> httpx2.Response:
        """Send a form with these header fields and form fields only."""
        return self._send(self._client.build_request("POST", address, headers=headers, data=fields))

    def follow(self, answer: httpx2.Response) -> httpx2.Response:
        """Open the page that a form's answer names."""
        assert answer.status_code == 303, answer.text
        return self.get(answer.headers["location"])

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        if self.cookies:
            request.headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = self._client.send(request, follow_redirects=False)
        for field in answer.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(field).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value
        return answer


def make_logins_old(world: World, who: str) -> None:
    """Make all logins of a person so far too old for actions that need a recent login.

    Call it before the sessions are used, because the service caches them.
    """
    execute(
        world.database,
        "UPDATE console_session SET authenticated_at = '2026-01-01 00:00:00.000000' WHERE user_id = ?",
        world.people[who].user.id,
    )
