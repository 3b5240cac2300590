"""Login to the console at an OIDC issuer, attacks on it, and logout by the issuer."""

import re
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html import unescape
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest

from clustercert.authn.oidc.issuers import derived_id
from clustercert.authn.oidc.login_attempts import LOGIN_SECONDS, LoginAttempt
from clustercert.authn.oidc.logout_tokens import LOGOUT_EVENT
from clustercert.http import middleware
from clustercert.http.console.pages.oidc_login import LOGIN_COOKIE
from clustercert.http.console.visits import SESSION_COOKIE
from support.accounts import ORIGIN
from support.console import HTML, Browser
from support.console_sessions import services_of
from support.identity_page import NAMED_PROJECT, recipe
from support.log_capture import captured_logs
from support.oauth_issuer import CLIENT_ID, OAuthIssuer
from support.oidc import claims_of, new_key, signed
from support.service import BASE_URL, Service
from support.world import World

BEGIN = "/console/login/sso"
CALLBACK = "/console/login/callback/sso"
LOGOUT = "/console/backchannel-logout"


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OAuthIssuer]:
    with OAuthIssuer(tmp_path).running() as running:
        running.behavior.claims = {"aud": CLIENT_ID, "sid": "s-1", "auth_time": int(time.time())}
        yield running


@pytest.fixture
def start(service_with: Callable[..., Service], world: World, issuer: OAuthIssuer) -> Callable[..., Service]:
    def started(**changed: Any) -> Service:
        roles = [{"role": "member", "groups": ["team-*"]}]
        known = issuer.settings(
            projects=[world.project.id], audiences=["api"], roles=roles, console={"client_id": CLIENT_ID}
        )
        other = known | {"name": "other", "issuer": f"{issuer.url}/other", "console": None}
        values = {"console": {"enabled": True}, "identity": {"issuers": [known, other]}} | changed
        return service_with(**values)

    return started


@pytest.fixture
def site(start: Callable[..., Service]) -> Service:
    return start()


@pytest.fixture
def browser(site: Service) -> Browser:
    return Browser(site.client)


def back(answer: httpx2.Response, issuer: OAuthIssuer) -> str:
    """Log in at the issuer to which a page sent the browser. Returns the address to which the issuer sends it back."""
    assert answer.status_code == 303, answer.text
    address = issuer.redirect_of(answer.headers["location"])
    assert address.startswith(f"{BASE_URL}{CALLBACK}?")
    return address.removeprefix(BASE_URL)


def log_in(browser: Browser, issuer: OAuthIssuer, query: str = "") -> httpx2.Response:
    return browser.get(back(browser.get(f"{BEGIN}{query}"), issuer))


def is_logged_in(browser: Browser) -> bool:
    return browser.get("/console/clusters").status_code == 200


def logout(site: Service, issuer: OAuthIssuer, **claims: object) -> httpx2.Response:
    token = logout_token(issuer, **claims)
    return site.client.post(LOGOUT, data={"logout_token": token})


def logout_token(issuer: OAuthIssuer, **claims: object) -> str:
    given: dict[str, object] = {"aud": CLIENT_ID, "events": {LOGOUT_EVENT: {}}, "jti": "1"} | claims
    return signed(claims_of(issuer.url, **given), issuer.keys[-1], typ="logout+jwt")


def test_a_login_at_the_issuer_is_a_session(browser: Browser, issuer: OAuthIssuer) -> None:
    answer = log_in(browser, issuer, "?next=/console/clusters?page%3D1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/clusters?page=1")
    assert browser.cookies.keys() == {SESSION_COOKIE}
    assert "sso/alice" in browser.get("/console/clusters").text


def test_the_login_page_leads_to_the_issuer_and_back(browser: Browser, issuer: OAuthIssuer) -> None:
    login = browser.follow(browser.get("/console/clusters?page=1"))
    [address] = re.findall(r'href="(/console/login/[^"]*)"', login.text)
    answer = browser.get(back(browser.get(unescape(address)), issuer))
    assert answer.headers["location"] == "/console/clusters?page=1"
    assert browser.follow(answer).status_code == 200


def test_the_settings_in_the_docs_log_people_in(
    service_with: Callable[..., Service], world: World, issuer: OAuthIssuer, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    issuer.behavior.secret = "s3cret"
    text = recipe(
        "console",
        {
            "https://sso.example.com/realms/acme": issuer.url,
            'preset = "keycloak"\n': f'preset = "keycloak"\nca_file = "{issuer.ca_file}"\n',
            '"clustercert-console"': f'"{CLIENT_ID}"',
            "/etc/clustercert/console-client-secret": str(secret),
            NAMED_PROJECT: world.project.id,
        },
    )
    site = service_with(console={"enabled": True}, **tomllib.loads(text))
    browser = Browser(site.client)
    assert log_in(browser, issuer).status_code == 303
    assert is_logged_in(browser)


def test_both_cookies_are_for_this_host_and_not_for_scripts(browser: Browser, issuer: OAuthIssuer) -> None:
    begun = browser.get(BEGIN)
    done = browser.get(back(begun, issuer))
    for answer, name, seconds in ((begun, LOGIN_COOKIE, "600"), (done, SESSION_COOKIE, "")):
        [field] = [each for each in answer.headers.get_list("set-cookie") if each.startswith(f"{name}=")]
        [morsel] = SimpleCookie(field).values()
        found = {key: morsel[key] for key in ("path", "domain", "max-age", "samesite", "secure", "httponly")}
        assert found == {
            "path": "/",
            "domain": "",
            "max-age": seconds,
            "samesite": "lax",
            "secure": True,
            "httponly": True,
        }
        assert answer.headers["cache-control"] == "no-store"
        assert len(field) < 500


def test_a_login_leads_to_no_other_site(browser: Browser, issuer: OAuthIssuer) -> None:
    answer = log_in(browser, issuer, "?next=https://evil.example.com/")
    assert answer.headers["location"] == "/console"


def test_a_login_ends_the_session_before_it(site: Service, issuer: OAuthIssuer) -> None:
    browser, earlier = Browser(site.client), Browser(site.client)
    log_in(browser, issuer)
    earlier.cookies = dict(browser.cookies)
    log_in(browser, issuer)
    assert browser.cookies[SESSION_COOKIE] != earlier.cookies[SESSION_COOKIE]
    assert (is_logged_in(browser), is_logged_in(earlier)) == (True, False)


def test_a_cookie_that_an_attacker_chose_never_becomes_a_session(
    browser: Browser, issuer: OAuthIssuer
) -> None:
    browser.cookies[SESSION_COOKIE] = "A" * 43
    log_in(browser, issuer)
    assert browser.cookies[SESSION_COOKIE] != "A" * 43


def test_a_new_login_must_be_new_at_the_issuer(browser: Browser, issuer: OAuthIssuer) -> None:
    issuer.behavior.claims |= {"auth_time": int(time.time()) - 3600}
    assert log_in(browser, issuer).status_code == 303
    answer = log_in(browser, issuer, "?again=1&next=/console/requests")
    assert answer.status_code == 401
    assert "is too old" in answer.text
    assert "/console/login?next=%2Fconsole%2Frequests&amp;again=1" in answer.text
    issuer.behavior.claims |= {"auth_time": int(time.time())}
    assert (
        log_in(browser, issuer, "?again=1&next=/console/requests").headers["location"] == "/console/requests"
    )
    assert [login.get("prompt") for login in issuer.logins] == [None, "login", "login"]


def test_an_action_that_needs_a_new_login_works_after_it(browser: Browser, issuer: OAuthIssuer) -> None:
    page, action = f"/console/requests/{'0' * 32}", f"/console/requests/{'0' * 32}/approve"
    issuer.behavior.claims |= {"auth_time": int(time.time()) - 600}
    log_in(browser, issuer)
    login = browser.follow(browser.post(action, reason="on call"))
    [address] = re.findall(r'href="(/console/login/[^"]*)"', login.text)
    issuer.behavior.claims |= {"auth_time": int(time.time())}
    answer = browser.get(back(browser.get(unescape(address)), issuer))
    assert answer.headers["location"] == page
    # There is no such request.
    assert browser.post(action, reason="on call").status_code == 404


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_attackers_answer_logs_nobody_in(site: Service, issuer: OAuthIssuer, has_begun: bool) -> None:
    """Otherwise the victim would work in the attacker's session (login CSRF)."""
    attacker, victim = Browser(site.client), Browser(site.client)
    answer = back(attacker.get(BEGIN), issuer)
    pending = back(victim.get(BEGIN), issuer) if has_begun else None
    refused = victim.get(answer)
    assert refused.status_code == 400
    assert "does not belong to a login that began in this browser" in refused.text
    assert SESSION_COOKIE not in victim.cookies
    assert issuer.forms == []
    if pending is not None:
        assert victim.get(pending).status_code == 303


def test_the_answer_of_one_issuer_is_not_taken_for_another_ones(
    browser: Browser, issuer: OAuthIssuer
) -> None:
    answer = back(browser.get(BEGIN), issuer)
    assert browser.get(answer.replace("/sso?", "/other?")).status_code == 400
    assert issuer.forms == []


def test_an_answer_works_once(browser: Browser, issuer: OAuthIssuer) -> None:
    begun = browser.get(BEGIN)
    cookie = dict(browser.cookies)
    answer = back(begun, issuer)
    assert browser.get(answer).status_code == 303
    assert browser.get(answer).status_code == 400
    browser.cookies = cookie
    repeated = browser.get(answer)
    assert repeated.status_code == 401
    assert "has expired, or was used before" in repeated.text


def test_a_late_answer_is_refused(browser: Browser, issuer: OAuthIssuer) -> None:
    late = LoginAttempt("sso", "/console", False, int(time.time()) - LOGIN_SECONDS - 1)
    browser.cookies[LOGIN_COOKIE] = late.text
    answer = browser.get(f"{CALLBACK}?{urlencode({'state': late.secret('state'), 'code': 'c'})}")
    assert answer.status_code == 400
    assert "longer than 10 minutes" in answer.text
    assert issuer.forms == []


@pytest.mark.parametrize("cookie", ["", "x", "A" * 8000, "WzEsMl0", "%00"])
def test_a_malformed_cookie_is_refused(browser: Browser, cookie: str) -> None:
    browser.cookies[LOGIN_COOKIE] = cookie
    assert browser.get(f"{CALLBACK}?code=c&state=s").status_code == 400


@pytest.mark.parametrize("name", ["missing", "other", "callback", "%2e%2e"])
def test_nobody_logs_in_at_another_issuer(browser: Browser, name: str) -> None:
    assert browser.get(f"/console/login/{name}").status_code == 404
    assert browser.cookies == {}


def test_without_issuers_nobody_logs_in_there(start: Callable[..., Service], issuer: OAuthIssuer) -> None:
    site = start(identity={})
    assert Browser(site.client).get(BEGIN).status_code == 404
    assert logout(site, issuer, sid="s-1").status_code == 400


def test_a_blocked_user_is_refused_and_the_log_says_why(
    site: Service, world: World, browser: Browser, issuer: OAuthIssuer
) -> None:
    issuer.behavior.claims |= {"sub": "blocked"}
    user_id = derived_id("user", issuer.url, "blocked")
    headers = world.people["operator"].headers
    assert site.client.post(f"/clustercert/v1/users/{user_id}/block", headers=headers).is_success
    with captured_logs(middleware) as said:
        answer = log_in(browser, issuer)
    assert answer.status_code == 401
    assert "sso logged you in, but this service does not let you in." in answer.text
    assert SESSION_COOKIE not in browser.cookies
    [line] = [each for each in said if each["event"] == "request" and each["path"] == CALLBACK]
    assert line["reason"] == "the user is blocked"


@pytest.mark.parametrize("claims", [{}, {"aud": "another"}])
def test_no_secret_of_a_login_is_in_a_page_or_in_the_log(
    browser: Browser, issuer: OAuthIssuer, claims: dict[str, object]
) -> None:
    issuer.behavior.claims |= claims
    sent: list[dict[str, Any]] = []

    def kept(body: dict[str, Any]) -> dict[str, Any]:
        sent.append(body)
        return body

    issuer.behavior.token = kept
    with captured_logs(middleware) as said:
        begun = browser.get(BEGIN)
        cookie = browser.cookies[LOGIN_COOKIE]
        address = back(begun, issuer)
        answer = browser.get(address)
    query = parse_qs(urlsplit(address).query)
    [tokens] = sent
    attempt = LoginAttempt.parse(cookie)
    secrets = [
        query["code"][0],
        query["state"][0],
        attempt.key,
        attempt.secret("verifier"),
        attempt.secret("nonce"),
        tokens["id_token"],
        tokens["access_token"],
    ]
    assert len([each for each in said if each["event"] == "request"]) == 2
    for secret in secrets:
        assert secret not in str(said)
        assert secret not in answer.text
        assert secret not in str(answer.headers)


def test_a_client_that_wants_json_gets_the_error_of_the_api(site: Service) -> None:
    answer = site.client.get(f"{CALLBACK}?code=c&state=s", headers={"Accept": "application/json"})
    assert answer.status_code == 400
    assert "Log in again." in answer.json()["error_msg"]


def test_failed_logins_count_like_other_failed_authentications(
    start: Callable[..., Service], issuer: OAuthIssuer
) -> None:
    site = start(limits={"failures_per_minute": 2})
    issuer.behavior.claims |= {"aud": "another"}
    statuses = [log_in(Browser(site.client), issuer).status_code for _ in range(3)]
    assert statuses == [401, 401, 429]
    assert len(issuer.forms) == 2


def test_an_issuer_that_is_away_is_explained(browser: Browser, issuer: OAuthIssuer) -> None:
    issuer.responses.clear()
    answer = browser.get(BEGIN)
    assert answer.status_code == 503
    assert "The identity provider sso can&#39;t be used now." in answer.text
    assert browser.cookies == {}


@pytest.mark.parametrize("claims", [{"sid": "s-1", "sub": None}, {"sid": None}, {"sid": "s-1"}])
def test_a_logout_at_the_issuer_ends_the_sessions_at_once(
    site: Service, issuer: OAuthIssuer, claims: dict[str, object]
) -> None:
    ended, other = Browser(site.client), Browser(site.client)
    log_in(ended, issuer)
    issuer.behavior.claims |= {"sub": "bob", "sid": "s-2"}
    log_in(other, issuer)
    with captured_logs(middleware) as said:
        answer = logout(site, issuer, **claims)
    assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (200, b"", "no-store")
    assert (is_logged_in(ended), is_logged_in(other)) == (False, True)
    [line] = [each for each in said if each["event"] == "request" and each["path"] == LOGOUT]
    assert (line["issuer"], line["ended_sessions"]) == ("sso", 1)
    # A repeated token ends nothing else.
    assert logout(site, issuer, **claims).status_code == 200
    assert is_logged_in(other)


@pytest.mark.parametrize(
    ("claims", "auth_time", "is_kept"),
    [
        ({"sid": None}, 0, True),
        ({"sid": None}, -31, False),
        ({"sid": None}, None, False),
        ({"sid": "s-1"}, 0, False),
    ],
)
def test_a_repeated_logout_token_of_a_user_ends_no_later_login(
    site: Service,
    browser: Browser,
    issuer: OAuthIssuer,
    claims: dict[str, object],
    auth_time: int | None,
    is_kept: bool,
) -> None:
    """`auth_time`: seconds from now, or None for an ID token without this claim. The logout was 30 seconds ago."""
    now = int(time.time())
    issuer.behavior.claims |= {"auth_time": None if auth_time is None else now + auth_time}
    log_in(browser, issuer)
    for _ in range(2):
        assert logout(site, issuer, iat=now - 30, **claims).status_code == 200
        assert is_logged_in(browser) is is_kept


@pytest.mark.parametrize(
    ("claims", "check"),
    [
        ({"sid": "s-1", "aud": "api"}, "aud"),
        ({"sid": "s-1", "aud": [CLIENT_ID, "api"]}, "aud"),
        ({"sid": "s-1", "jti": None}, "jti"),
        ({"sid": "s-1", "nonce": "n"}, "nonce"),
        ({"sid": "s-1", "events": {}}, "events"),
        ({"sid": "s-1", "exp": 1}, "exp"),
        ({"sub": None}, "sid"),
        ({"iss": "https://unknown.example.com", "sid": "s-1"}, "iss"),
    ],
)
def test_a_logout_token_that_is_not_valid_ends_nothing(
    site: Service, browser: Browser, issuer: OAuthIssuer, claims: dict[str, object], check: str
) -> None:
    log_in(browser, issuer)
    with captured_logs(middleware) as said:
        answer = logout(site, issuer, **claims)
    assert answer.status_code == 400
    assert answer.json()["error_msg"] == "The logout token is not accepted. The log of this service says why."
    [line] = [each for each in said if each["event"] == "request" and each["path"] == LOGOUT]
    assert line["reason"].startswith(f"{check}: ")
    assert is_logged_in(browser)


def test_a_logout_token_of_an_unknown_key_can_be_sent_again(
    site: Service, browser: Browser, issuer: OAuthIssuer
) -> None:
    """The issuer may have published the key after the last fetch of the keys, and a logout must not get lost."""
    log_in(browser, issuer)
    claims = claims_of(issuer.url, aud=CLIENT_ID, events={LOGOUT_EVENT: {}}, sid="s-1", jti="1")
    token = {"logout_token": signed(claims, new_key("unknown"), typ="logout+jwt")}
    # The first of them causes a fetch, which does not find the key. The next fetch is allowed after half a minute.
    answers = [site.client.post(LOGOUT, data=token) for _ in range(3)]
    assert [each.status_code for each in answers] == [400, 503, 503]
    assert 1 <= int(answers[1].headers["retry-after"]) <= 30
    assert is_logged_in(browser)


def test_only_a_signed_logout_token_ends_sessions(
    site: Service, browser: Browser, issuer: OAuthIssuer
) -> None:
    log_in(browser, issuer)
    claims = claims_of(issuer.url, aud=CLIENT_ID, events={LOGOUT_EVENT: {}}, sid="s-1", jti="1")
    id_token = issuer.token(**issuer.behavior.claims)
    for body in (
        {"logout_token": signed(claims, new_key("first"), typ="logout+jwt")},
        {"logout_token": id_token},
        {"logout_token": ""},
        {"token": logout_token(issuer, sid="s-1")},
        {},
    ):
        assert site.client.post(LOGOUT, data=body).status_code == 400
    as_json = {"logout_token": logout_token(issuer, sid="s-1")}
    assert site.client.post(LOGOUT, json=as_json).status_code == 400
    long = urlencode({"logout_token": "a" * 20 * 1024})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = site.client.post(LOGOUT, content=long, headers=form | HTML)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/json")
    assert is_logged_in(browser)


def test_a_session_keeps_the_time_of_the_login_at_the_issuer(
    site: Service, browser: Browser, issuer: OAuthIssuer
) -> None:
    at = int(time.time()) - 600
    issuer.behavior.claims |= {"auth_time": at, "sub": "carol"}
    log_in(browser, issuer)
    sessions = services_of(site).sessions
    session, caller = site.run(sessions.find(browser.cookies[SESSION_COOKIE], ORIGIN))
    assert session.authenticated_at == datetime.fromtimestamp(at, UTC)
    assert (session.sid, session.sub, caller.method) == ("s-1", "carol", "oidc")
