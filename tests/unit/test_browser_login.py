"""The login in a browser: what the client accepts, and the attacks on it."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from clustercert.authn.oidc.logout_tokens import LOGOUT_EVENT
from clustercert.client.connection import ClientError
from clustercert.client.oidc.browser_login import log_in_by_browser
from clustercert.client.oidc.issuer import IssuerError, LoginRefused
from clustercert.client.oidc.tokens import IssuerClient, OidcTokens
from support.login_browser import new_browser
from support.oauth_issuer import OAuthIssuer
from support.oidc import Response, claims_of, signed

SECONDS = 300
SERVICE = "https://clustercert.example.com"
DISCOVERY = "/.well-known/openid-configuration"


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OAuthIssuer]:
    with OAuthIssuer(tmp_path).running() as running:
        yield running


@dataclass
class Login:
    """A login that runs in a thread."""

    issuer: OAuthIssuer
    result: "Future[OidcTokens]"
    start_url: str
    browser: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.browser = new_browser(self.issuer.ca_file)

    @property
    def redirect_uri(self) -> str:
        return self.issuer.logins[-1]["redirect_uri"]

    def open(self) -> httpx2.Response:
        return self.browser.get(self.start_url)

    def authorize(self) -> httpx2.Response:
        """Open the start page, and stop at the redirect back to the client."""
        first = self.browser.get(self.start_url, follow_redirects=False)
        return self.browser.get(first.headers["location"], follow_redirects=False)

    def tokens(self) -> OidcTokens:
        return self.result.result(SECONDS)

    def failure(self) -> ClientError:
        error = self.result.exception(SECONDS)
        assert isinstance(error, ClientError), error
        return error


Begin = Callable[..., Login]


@pytest.fixture
def begin(issuer: OAuthIssuer) -> Iterator[Begin]:
    """Begins logins, which end with the test."""
    with ThreadPoolExecutor(2) as pool:

        def run(seconds: float = SECONDS, **client: Any) -> Login:
            shown: Future[str] = Future()

            def log_in() -> OidcTokens:
                try:
                    with IssuerClient(issuer.login_issuer(**client)) as found:
                        return log_in_by_browser(found, shown.set_result, SERVICE, seconds)
                except BaseException as error:
                    if not shown.done():
                        shown.set_result("")
                    raise error from None

            result = pool.submit(log_in)
            return Login(issuer, result, shown.result(SECONDS))

        yield run


def test_a_log_in_with_pkce_state_and_nonce(begin: Begin, issuer: OAuthIssuer) -> None:
    login = begin()
    page = login.open()
    tokens = login.tokens()
    assert (page.status_code, "<h1>You are logged in</h1>" in page.text) == (200, True)
    assert f"<p>alice logged in at {issuer.url}, for {SERVICE}. Go back" in page.text
    assert (tokens.user, tokens.subject) == ("alice", "f3b1")
    assert tokens.refresh in issuer.refresh_tokens
    [query] = issuer.logins
    assert query["code_challenge_method"] == "S256"
    assert all(len(query[name]) >= 43 for name in ("state", "nonce", "code_challenge"))
    assert urlsplit(query["redirect_uri"]).hostname == "127.0.0.1"
    assert query["scope"] == "openid profile"
    assert not {"state", "nonce", "code_challenge"} & parse_qs(login.start_url).keys()


def test_the_page_runs_and_keeps_nothing(begin: Begin) -> None:
    login = begin()
    page = login.open()
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert (page.headers["cache-control"], page.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert "python" not in page.headers["server"].lower()
    login.tokens()


def test_parameters_of_the_operator_reach_the_issuer(begin: Begin, issuer: OAuthIssuer) -> None:
    resource = "https://service.example.com"
    issuer.behavior.claims["aud"] = ["clustercert", resource]
    login = begin(parameters={"prompt": "consent"}, resource=resource, bearer="access")
    login.open()
    assert login.tokens().bearer.count(".") == 2
    assert (issuer.logins[0]["prompt"], issuer.logins[0]["resource"]) == ("consent", resource)
    assert (issuer.forms[0][1]["prompt"], issuer.forms[0][1]["resource"]) == ("consent", resource)


@pytest.mark.parametrize("state", ["", "guessed", None])
def test_an_answer_with_another_state_is_not_used(
    begin: Begin, issuer: OAuthIssuer, state: str | None
) -> None:
    login = begin()
    back = httpx2.URL(login.authorize().headers["location"])
    forged = back.copy_remove_param("state") if state is None else back.copy_set_param("state", state)
    assert login.browser.get(forged).status_code == 400
    assert issuer.count("authorization_code") == 0
    assert login.browser.get(back).status_code == 200
    login.tokens()


def test_an_answer_from_another_browser_is_not_used(begin: Begin, issuer: OAuthIssuer) -> None:
    login = begin()
    back = login.authorize().headers["location"]
    assert new_browser(issuer.ca_file).get(back).status_code == 400
    assert login.browser.get(back).status_code == 200
    login.tokens()


def test_the_same_browser_can_begin_again(begin: Begin) -> None:
    """Somebody reloads the page."""
    login = begin()
    back = login.authorize().headers["location"]
    assert login.browser.get(login.start_url, follow_redirects=False).status_code == 303
    assert login.browser.get(back).status_code == 200
    login.tokens()


def test_a_second_browser_ends_the_log_in(begin: Begin, issuer: OAuthIssuer) -> None:
    """The first one may be that of another user of the machine, who read the address in the second one's arguments."""
    login = begin()
    login.authorize()
    second = new_browser(issuer.ca_file).get(login.start_url)
    assert (second.status_code, "already opened" in second.text) == (403, True)
    refused = login.failure()
    assert isinstance(refused, LoginRefused)
    assert "two browsers" in refused.message
    assert (len(issuer.logins), issuer.count("authorization_code")) == (1, 0)


def test_a_second_browser_counts_until_the_tokens_are_there(begin: Begin, issuer: OAuthIssuer) -> None:
    login = begin()
    back = login.authorize().headers["location"]

    def meanwhile(body: dict[str, Any]) -> dict[str, Any]:
        new_browser(issuer.ca_file).get(login.start_url)
        return body

    issuer.behavior.token = meanwhile
    assert login.browser.get(back).status_code == 400
    assert "two browsers" in login.failure().message


def test_a_code_is_exchanged_once(begin: Begin, issuer: OAuthIssuer) -> None:
    login = begin()
    back = login.authorize().headers["location"]
    waiting = threading.Event()
    arrived = threading.Event()

    def hold() -> None:
        arrived.set()
        waiting.wait(SECONDS)

    issuer.behavior.responses["/token"] = Response(b"{}", 400, work=hold)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(login.browser.get, back)
        assert arrived.wait(SECONDS)
        assert login.browser.get(back).status_code == 400
        waiting.set()
        assert first.result(SECONDS).status_code == 400
    login.failure()
    assert issuer.count("authorization_code") == 1


@pytest.mark.parametrize(
    "host", ["evil.example.com", "127.0.0.1", "localhost:{port}", "127.0.0.1:{port}.example.com"]
)
def test_another_host_name_leads_nowhere(begin: Begin, issuer: OAuthIssuer, host: str) -> None:
    login = begin()
    name = host.format(port=urlsplit(login.start_url).port)
    refused = login.browser.get(login.start_url, headers={"Host": name}, follow_redirects=False)
    assert (refused.status_code, "location" in refused.headers) == (400, False)
    login.open()
    login.tokens()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/favicon.ico", 404),
        ("GET", "/callback/x", 404),
        ("POST", "/callback", 501),
        ("GET", "/callback", 400),
        ("GET", f"/callback?state={'s' * 20_000}", 400),
        ("GET", "/callback?state=a&state=b", 400),
        ("GET", "/callback?" + "&".join(f"a{n}=b" for n in range(50)), 400),
    ],
)
def test_what_else_reaches_the_port_changes_nothing(
    begin: Begin, method: str, path: str, status: int
) -> None:
    login = begin()
    base = "http://" + urlsplit(login.start_url).netloc
    assert login.browser.request(method, base + path).status_code == status
    login.open()
    login.tokens()


@pytest.mark.parametrize("changed", [{"iss": "https://other.example.com"}, {"iss": None}])
def test_an_answer_of_another_issuer_is_not_used(
    begin: Begin, issuer: OAuthIssuer, changed: dict[str, str | None]
) -> None:
    issuer.behavior.redirect = lambda parameters: {
        name: value for name, value in (parameters | changed).items() if value is not None
    }
    login = begin()
    assert login.open().status_code == 400
    assert "is not from" in login.failure().message
    assert issuer.count("authorization_code") == 0


def test_an_issuer_that_never_sends_iss_needs_none(begin: Begin, issuer: OAuthIssuer) -> None:
    issuer.publish_document(authorization_response_iss_parameter_supported=None)
    issuer.behavior.redirect = lambda parameters: {
        name: value for name, value in parameters.items() if name != "iss"
    }
    login = begin()
    login.open()
    login.tokens()


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("nonce", "another"),
        ("nonce", None),
        ("aud", "another"),
        ("aud", ["another"]),
        ("aud", ["clustercert", "another"]),
        ("aud", ["clustercert", {"a": 1}]),
        ("aud", ["clustercert", None]),
        ("events", {LOGOUT_EVENT: {}}),
        ("iss", "https://other.example.com"),
        ("azp", "another"),
    ],
)
def test_an_id_token_of_another_log_in_is_not_used(
    begin: Begin, issuer: OAuthIssuer, claim: str, value: object
) -> None:
    def token(**claims: object) -> str:
        changed = claims | {claim: value}
        return signed(claims_of(str(changed.pop("iss", issuer.url)), **changed), issuer.keys[-1])

    issuer.token = token  # type: ignore[method-assign] # an issuer that mixes up its tokens
    login = begin()
    assert login.open().status_code == 400
    error = login.failure()
    assert isinstance(error, IssuerError)
    assert f"the claim {claim} is wrong" in error.message


@pytest.mark.parametrize(
    "changed", [{"trusted_audiences": ("another",)}, {"resource": "https://s.example.com"}]
)
def test_an_id_token_may_name_the_other_audiences_in_the_services_settings(
    begin: Begin, issuer: OAuthIssuer, changed: dict[str, Any]
) -> None:
    [other] = changed.get("trusted_audiences", [changed.get("resource")])
    issuer.behavior.claims["aud"] = ["clustercert", other]
    login = begin(**changed)
    login.open()
    assert login.tokens().user == "alice"


def test_a_denied_log_in(begin: Begin, issuer: OAuthIssuer) -> None:
    issuer.behavior.redirect = lambda parameters: {
        "error": "access_denied", "state": parameters["state"], "iss": parameters["iss"],
    }  # fmt: skip
    login = begin()
    assert "denied" in login.open().text
    error = login.failure()
    assert isinstance(error, LoginRefused)
    assert error.status == 401


def test_an_error_of_the_issuer_is_shown_as_text(begin: Begin, issuer: OAuthIssuer) -> None:
    issuer.behavior.redirect = lambda parameters: {
        "error": "invalid_scope",
        "error_description": "<script>alert(1)</script>",
        "state": parameters["state"],
        "iss": parameters["iss"],
    }
    login = begin()
    assert "<script>" not in login.open().text
    assert "scopes" in login.failure().message


def test_nobody_answers(begin: Begin) -> None:
    login = begin(seconds=0.05)
    message = login.failure().message
    assert "Run `clustercert login` again" in message
    assert f"{urlsplit(login.start_url).netloc}/callback" in message


@pytest.mark.parametrize(
    ("path", "response", "text"),
    [
        ("/token", Response(b"x" * (300 * 1024)), "larger than 256 KiB"),
        ("/token", Response(b"", 302, {"Location": "https://evil.example.com/"}), "redirects"),
        ("/token", Response(b'{"error": "invalid_client"}', 401), "client_id"),
        ("/token", Response(b"", 502), "status 502"),
        ("/token", Response(b"[]"), "sent no ID token"),
        ("/token", Response(b'{"id_token": "a.b.c"}'), "sent no ID token"),
        ("/token", Response(b'{"id_token": 7}'), "sent no ID token"),
        (DISCOVERY, Response(b"", 302, {"Location": "https://evil.example.com/"}), "redirects"),
        (DISCOVERY, Response(b"{}", 404), "no discovery document"),
        (DISCOVERY, Response(b"x" * (300 * 1024)), "larger than 256 KiB"),
        (DISCOVERY, Response(b'{"issuer": "https://evil.example.com"}'), "names a different issuer"),
    ],
)
def test_answers_that_are_not_used(
    begin: Begin, issuer: OAuthIssuer, path: str, response: Response, text: str
) -> None:
    issuer.behavior.responses[path] = response
    login = begin()
    if login.start_url:
        assert login.open().status_code == 400
    assert text in login.failure().message


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"token_endpoint": "http://127.0.0.1/token"}, "not an https URL"),
        ({"token_endpoint": None}, "no token_endpoint"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "not an https URL"),
        ({"authorization_endpoint": None}, "no login in a browser"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"code_challenge_methods_supported": "S256"}, "PKCE"),
    ],
)
def test_discovery_documents_that_are_not_used(
    begin: Begin, issuer: OAuthIssuer, changed: dict[str, object], text: str
) -> None:
    issuer.publish_document(**changed)
    assert text in begin().failure().message


def test_an_access_token_that_is_no_jwt(begin: Begin, issuer: OAuthIssuer) -> None:
    issuer.behavior.token = lambda body: body | {"access_token": "opaque"}
    login = begin(bearer="access")
    assert login.open().status_code == 400
    assert "login_token" in login.failure().message


def test_a_wrong_clock_is_named(begin: Begin, issuer: OAuthIssuer) -> None:
    issuer.behavior.claims = {"iat": 4_000_000_000, "exp": 4_000_000_300}
    login = begin()
    login.open()
    assert login.failure().message.startswith("The clock of this machine is ")


def bound_port() -> socket.socket:
    """A listening socket on a port outside the system's own range, so that the port stays free once it is closed."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", random.randrange(first // 2, first)))


def test_registered_ports_are_tried_in_order(begin: Begin) -> None:
    with bound_port() as busy, bound_port() as free:
        taken, port = busy.getsockname()[1], free.getsockname()[1]
        uris = (f"http://localhost:{taken}/", f"http://localhost:{port}/")
        assert str(taken) in begin(redirect_uris=uris).failure().message
        free.close()
        login = begin(redirect_uris=uris)
    login.open()
    login.tokens()
    assert login.redirect_uri == uris[1]
