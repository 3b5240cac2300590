"""Logins to the console at real OIDC issuers, with two workers, and logout by the issuer."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from clustercert.http.console.visits import SESSION_COOKIE
from support import chromium
from support.command_line import Operator, new_operator
from support.console import Browser
from support.issuer_login import Login
from support.operated_cluster import SERVICE_CA, tls_service, tls_settings
from support.real_issuers import OidcProvider, RealIssuer, mock_provider, oidc_provider
from support.wait import SECONDS, eventually

pytestmark = pytest.mark.slow
CLIENT, SECRET = "clustercert-console", "client/secret with+signs"
SETTINGS = """
[console]
enabled = true
[limits]
failures_per_minute = 0
[[identity.issuers]]
name = "sso"
issuer = "{issuer.url}"
audiences = ["for-the-api"]
algorithms = ["RS256", "ES256"]
ca_file = "{issuer.ca_file}"
username = "preferred_username"
groups = "groups"
domain = "Default"
roles = [{{role = "member", groups = ["team-blue"]}}]
[identity.issuers.console]
client_id = "{client}"
"""
WITH_SECRET = f'{SETTINGS}\nclient_secret_file = "{{folder}}/secret"\n'
# Each worker gets some of this many requests, however the kernel distributes the connections.
REQUESTS = 20


@contextlib.contextmanager
def console(operator: Operator, issuer: RealIssuer, settings: str) -> Iterator[str]:
    """The address of a service with two workers, at which people of the issuer log in to the console."""
    operator.configure(settings.format(issuer=issuer, client=CLIENT, folder=operator.folder))
    with tls_service(operator, "--workers", "2") as url:
        yield url


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    found = new_operator(tmp_path)
    found.output("project", "create", "eu-de")
    tls_settings(found.folder)
    secret = found.folder / "secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    return found


@pytest.fixture
def registered(operator: Operator) -> Iterator[tuple[OidcProvider, str]]:
    """oidc-provider, with a confidential client for the console, and the console's address."""
    trusted = operator.folder / SERVICE_CA
    with (
        oidc_provider(operator.folder, trusted_ca=trusted) as issuer,
        console(operator, issuer, WITH_SECRET) as url,
    ):
        issuer.register(
            {
                "client_id": CLIENT,
                "client_secret": SECRET,
                "redirect_uris": [f"{url}/console/login/callback/sso"],
                "grant_types": ["authorization_code"],
                "id_token_signed_response_alg": "ES256",
                "backchannel_logout_uri": f"{url}/console/backchannel-logout",
                "backchannel_logout_session_required": True,
            }
        )
        yield issuer, url


class Person:
    """A person with one browser, which visits the console and the issuer."""

    def __init__(self, operator: Operator, url: str, issuer: RealIssuer, account: str) -> None:
        tls = ssl.create_default_context(cafile=str(operator.folder / SERVICE_CA))
        # A new connection for each request, so that both workers get some.
        limits = httpx2.Limits(max_keepalive_connections=0)
        http = httpx2.Client(base_url=url, verify=tls, trust_env=False, timeout=SECONDS, limits=limits)
        self.browser = Browser(http)
        self.at_issuer = Login(issuer, CLIENT, redirect=f"{url}/console/login/callback/sso")
        self._account = account

    def log_in(self, query: str = "") -> httpx2.Response:
        begun = self.browser.get(f"/console/login/sso{query}")
        assert begun.status_code == 303, begun.text
        back = self.at_issuer.follow(begun.headers["location"], self._account)
        return self.browser.get(back.headers["location"])

    def statuses(self) -> set[int]:
        """The statuses of a page, asked of both workers: 200 in a session, or 303 to the login."""
        return {self.browser.get("/console/clusters").status_code for _ in range(REQUESTS)}


def test_people_log_in_with_a_secret_and_the_issuer_ends_the_session(
    operator: Operator, registered: tuple[OidcProvider, str]
) -> None:
    issuer, url = registered
    laptop, phone, other = (Person(operator, url, issuer, name) for name in ("alice", "alice", "bob"))
    for person in (laptop, phone, other):
        done = person.log_in("?next=/console/clusters")
        assert (done.status_code, done.headers["location"]) == (303, "/console/clusters"), done.text
        assert person.statuses() == {200}
    assert "sso/alice" in laptop.browser.get("/console/clusters").text
    cookie = laptop.browser.cookies[SESSION_COOKIE]
    laptop.at_issuer.log_out()
    eventually(lambda: laptop.statuses() == {303})
    assert laptop.browser.cookies[SESSION_COOKIE] == cookie
    assert (phone.statuses(), other.statuses()) == ({200}, {200})
    assert laptop.log_in().status_code == 303
    assert laptop.statuses() == {200}


def test_the_issuer_asks_for_the_password_again_if_a_login_must_be_new(
    operator: Operator, registered: tuple[OidcProvider, str]
) -> None:
    issuer, url = registered
    person = Person(operator, url, issuer, "alice")
    person.log_in()

    def page(query: str) -> str:
        """The page at which the issuer stops, or an empty text if it sends the browser back."""
        begun = person.browser.get(f"/console/login/sso{query}")
        response = person.at_issuer.http.get(begun.headers["location"])
        while response.has_redirect_location:
            if response.headers["location"].startswith(url):
                return ""
            response = person.at_issuer.http.send(response.next_request)  # type: ignore[arg-type] # there is one
        return response.text

    assert page("") == ""
    assert 'name="login"' in page("?again=1")
    assert person.log_in("?again=1&next=/console/requests").headers["location"] == "/console/requests"


def test_people_log_in_with_a_public_client(operator: Operator) -> None:
    with mock_provider(operator.folder) as issuer, console(operator, issuer, SETTINGS) as url:
        person = Person(operator, url, issuer, "alice")
        assert person.log_in().status_code == 303
        assert person.statuses() == {200}
        assert person.log_in("?again=1").status_code == 303


@pytest.mark.skipif(chromium.program() is None, reason="needs Debian's chromium")
def test_chromium_keeps_the_session_and_shows_no_cookie_to_scripts(
    registered: tuple[OidcProvider, str],
) -> None:
    _, url = registered
    with chromium.chromium() as browser:
        browser.open(f"{url}/console/login/sso?next=/console/clusters")
        browser.fill_in("My clusters", login="alice", password="any")
        assert browser.evaluate("location.href") == f"{url}/console/clusters"
        assert browser.evaluate("document.cookie") == ""
        browser.open(f"{url}/console/login/sso?again=1&next=/console/clusters%3Fpage=2")
        assert browser.fill_in("Sign-in") == "Sign-in"
        browser.fill_in("My clusters", login="alice", password="any")
        assert browser.evaluate("location.href") == f"{url}/console/clusters?page=2"
