"""Logins in a browser at an issuer on loopback: the requests to the issuer, and answers that must be refused."""

import base64
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.issuers import ConsoleClient, OidcIssuer
from clustercert.authn.oidc.keys import IssuerKeys, fetch_keys
from clustercert.authn.oidc.login_attempts import LOGIN_SECONDS, LoginAttempt, LoginRefused
from clustercert.authn.oidc.logout_tokens import LOGOUT_EVENT
from clustercert.authn.oidc.verification import Verifier
from clustercert.authn.oidc.web_login import IssuerLogins, WebLogin
from clustercert.model.errors import ClustercertError, InvalidRequest, RemoteFailed, Unavailable
from support.oauth_issuer import CLIENT_ID, Form, OAuthIssuer
from support.oidc import Response, claims_of, new_key, signed

REDIRECT = "https://clustercert.example.com/console/login/callback/sso"


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OAuthIssuer]:
    with OAuthIssuer(tmp_path).running() as running:
        running.behavior.claims = {"auth_time": int(time.time()), "sid": "s-1"}
        yield running


def logins_at(
    issuer: OAuthIssuer,
    console: dict[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **changed: Any,
) -> IssuerLogins:
    client = ConsoleClient.model_validate({"client_id": CLIENT_ID} | (console or {}))
    values = issuer.settings(projects=["1" * 32], audiences=["api"], console=client) | changed
    settings = OidcIssuer.model_validate(values)
    keys = IssuerKeys("sso", functools.partial(fetch_keys, settings))
    verifier = Verifier({issuer.url: settings}, {issuer.url: keys}, lambda: datetime.now(UTC))
    return IssuerLogins(settings, client, verifier, clock)


def attempt(*, again: bool = False) -> LoginAttempt:
    return LoginAttempt("sso", "/console", again, int(time.time()))


def answer(issuer: OAuthIssuer, address: str) -> Form:
    """Return the parameters with which the issuer sends the browser back."""
    location = issuer.redirect_of(address)
    assert location.startswith(f"{REDIRECT}?")
    return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}


async def log_in(
    issuer: OAuthIssuer, logins: IssuerLogins | None = None, begun: LoginAttempt | None = None
) -> WebLogin:
    logins, begun = logins or logins_at(issuer), begun or attempt()
    got = answer(issuer, await logins.address(begun, REDIRECT))
    assert begun.is_answered_by(got["state"], datetime.now(UTC))
    return await logins.complete(begun, got, REDIRECT)


async def refused(
    issuer: OAuthIssuer,
    kind: type[ClustercertError] = LoginRefused,
    logins: IssuerLogins | None = None,
    begun: LoginAttempt | None = None,
) -> str:
    """Try a login that must fail. Returns the reason for the log, or else the message."""
    with pytest.raises(kind) as caught:
        await log_in(issuer, logins, begun)
    assert type(caught.value) is kind
    return str(getattr(caught.value, "reason", caught.value.message))


async def test_a_login_gives_the_claims_of_the_id_token(issuer: OAuthIssuer) -> None:
    login = await log_in(issuer)
    claims = {name: login.claims[name] for name in ("sub", "sid", "preferred_username", "groups")}
    assert claims == {"sub": "f3b1", "sid": "s-1", "preferred_username": "alice", "groups": ["team-blue"]}
    assert login.authenticated_at == datetime.fromtimestamp(int(str(login.claims["auth_time"])), UTC)


async def test_the_request_binds_the_answer_to_this_login(issuer: OAuthIssuer) -> None:
    begun = attempt()
    await log_in(issuer, begun=begun)
    [request] = issuer.logins
    secrets = {begun.secret("state"), begun.secret("nonce"), begun.secret("verifier")}
    assert len(secrets) == 3
    assert {request["state"], request["nonce"]} < secrets
    assert begun.secret("verifier") not in request.values()
    assert {name: request[name] for name in request.keys() - {"state", "nonce", "code_challenge"}} == {
        "client_id": CLIENT_ID,
        "scope": "openid profile groups",
        "response_type": "code",
        "response_mode": "query",
        "redirect_uri": REDIRECT,
        "code_challenge_method": "S256",
        "max_age": "43200",
    }


async def test_a_new_login_is_requested_for_an_action_that_needs_it(issuer: OAuthIssuer) -> None:
    await log_in(issuer, begun=attempt(again=True))
    [request] = issuer.logins
    assert (request["prompt"], request["max_age"]) == ("login", "300")


async def test_the_clients_own_parameters_and_scopes_are_sent_but_replace_none(issuer: OAuthIssuer) -> None:
    console = {"parameters": {"domain_hint": "acme", "max_age": "999999"}, "scopes": ["openid", "email"]}
    await log_in(issuer, logins_at(issuer, console))
    [request] = issuer.logins
    assert (request["domain_hint"], request["max_age"]) == ("acme", "43200")
    assert request["scope"] == "openid email"


async def test_no_refresh_token_is_requested(issuer: OAuthIssuer) -> None:
    await log_in(issuer, logins_at(issuer, preset="dex"))
    assert issuer.logins[0]["scope"] == "openid profile groups"


@pytest.mark.parametrize(
    ("methods", "by_header"),
    [(None, True), (["client_secret_basic", "client_secret_post"], True), (["client_secret_post"], False)],
)
async def test_a_client_with_a_secret_sends_it_as_the_issuer_wants(
    issuer: OAuthIssuer, tmp_path: Path, methods: list[str] | None, by_header: bool
) -> None:
    issuer.publish_document(token_endpoint_auth_methods_supported=methods)
    issuer.behavior.secret = "s:cret %+/ä"
    file = tmp_path / "secret"
    file.write_text("s:cret %+/ä\nanother line\n")
    file.chmod(0o600)
    logins = logins_at(issuer, {"client_secret_file": file})
    assert (await log_in(issuer, logins)).claims["sub"] == "f3b1"
    [(_, form)] = issuer.forms
    assert ("by" in form) is by_header
    # The file is read for each login.
    file.write_text("wrong")
    message = await refused(issuer, RemoteFailed, logins)
    assert "(invalid_client)" in message
    assert "wrong" not in message


@pytest.mark.parametrize("content", [b"", b"\nsecret", b"\x00\x01", b"a" * 5000])
async def test_a_file_without_a_secret_is_an_error_of_this_service(
    issuer: OAuthIssuer, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    file.chmod(0o600)
    message = await refused(issuer, RemoteFailed, logins_at(issuer, {"client_secret_file": file}))
    assert "can't read its secret" in message
    assert issuer.forms == []


async def test_a_secret_that_others_can_read_is_not_used(issuer: OAuthIssuer, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("secret")
    file.chmod(0o644)
    await refused(issuer, RemoteFailed, logins_at(issuer, {"client_secret_file": file}))
    assert issuer.forms == []


@pytest.mark.parametrize(
    ("claims", "check"),
    [
        ({"aud": "api"}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": [CLIENT_ID, "another"]}, "aud"),
        # Tokens for the API may name this audience, tokens for the console's client may not.
        ({"aud": [CLIENT_ID, "api"]}, "aud"),
        ({"aud": [CLIENT_ID, "another"], "azp": CLIENT_ID}, "aud"),
        ({"aud": [CLIENT_ID, {"a": 1}]}, "aud"),
        ({"azp": "another"}, "azp"),
        ({"events": {LOGOUT_EVENT: {}}}, "events"),
        ({"events": {}}, "events"),
        # Computed when the tests are collected: a day is longer than they run.
        ({"auth_time": int(time.time()) + 86400}, "auth_time"),
        ({"auth_time": str(int(time.time()))}, "auth_time"),
        ({"auth_time": "2026-12-02T09:00:00Z"}, "auth_time"),
        ({"auth_time": True}, "auth_time"),
        ({"auth_time": -1}, "auth_time"),
        ({"auth_time": [1]}, "auth_time"),
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": ["a"]}, "nonce"),
        ({"nonce": "\ud800"}, "nonce"),
        ({"iss": "https://another.example.com"}, "iss"),
        ({"exp": int(time.time()) - 3600}, "exp"),
        ({"iat": int(time.time()) - 2 * 86400}, "iat"),
        ({"sid": 5}, "sid"),
        ({"sid": "\ud800"}, "sid"),
        ({"sid": "s" * 256}, "sid"),
        ({"sub": ["f3b1"]}, "sub"),
    ],
)
async def test_an_id_token_with_a_wrong_claim_is_refused(
    issuer: OAuthIssuer, claims: dict[str, object], check: str
) -> None:
    issuer.behavior.token = lambda body: (
        body
        | {
            "id_token": issuer.token(
                **{"nonce": issuer.logins[-1]["nonce"], **issuer.behavior.claims, **claims}
            )
        }
    )
    for again in (False, True):
        reason = await refused(issuer, TokenRefused, begun=attempt(again=again))
        assert reason.startswith(f"{check}: ")


async def test_an_id_token_may_name_the_other_audiences_in_the_settings(issuer: OAuthIssuer) -> None:
    issuer.behavior.claims |= {"aud": ["another", CLIENT_ID, "third"]}
    for trusted, is_accepted in ((["another", "third"], True), (["another"], False), (["*"], False)):
        logins = logins_at(issuer, trusted_audiences=trusted)
        if is_accepted:
            assert (await log_in(issuer, logins)).claims["sub"] == "f3b1"
        else:
            assert (await refused(issuer, TokenRefused, logins)).startswith("aud: ")
    # A token that does not name the client is not for the client.
    issuer.behavior.claims |= {"aud": "another"}
    logins = logins_at(issuer, trusted_audiences=["another"])
    assert (await refused(issuer, TokenRefused, logins)).startswith("aud: ")


async def test_the_clock_of_the_issuer_may_be_ahead_by_the_leeway(issuer: OAuthIssuer) -> None:
    issuer.behavior.claims |= {"auth_time": int(time.time()) + 200}
    before = datetime.now(UTC)
    login = await log_in(issuer, logins_at(issuer, leeway="5m"), attempt(again=True))
    assert login.authenticated_at is not None
    # The login is not later than the token.
    assert before - timedelta(seconds=2) <= login.authenticated_at <= datetime.now(UTC)
    assert (await refused(issuer, TokenRefused)).startswith("auth_time: ")


async def test_an_id_token_with_a_foreign_signature_is_refused(issuer: OAuthIssuer) -> None:
    def foreign(body: dict[str, Any]) -> dict[str, Any]:
        claims = claims_of(issuer.url, nonce=issuer.logins[-1]["nonce"], **issuer.behavior.claims)
        return body | {"id_token": signed(claims, new_key("first"))}

    issuer.behavior.token = foreign
    assert (await refused(issuer, TokenRefused)).startswith("signature: ")


@pytest.mark.parametrize("kind", ["logout+jwt", "secevent+jwt", "at+jwt", "application/at+jwt"])
async def test_a_token_of_another_type_is_no_id_token(issuer: OAuthIssuer, kind: str) -> None:
    def typed(body: dict[str, Any]) -> dict[str, Any]:
        claims = claims_of(issuer.url, nonce=issuer.logins[-1]["nonce"], **issuer.behavior.claims)
        return body | {"id_token": signed(claims, issuer.keys[-1], typ=kind)}

    issuer.behavior.token = typed
    assert (await refused(issuer, TokenRefused)).startswith("typ: ")


async def test_conditions_of_the_settings_hold_for_id_tokens(issuer: OAuthIssuer) -> None:
    logins = logins_at(issuer, claims={"hd": ["example.com"]})
    assert (await refused(issuer, TokenRefused, logins)).startswith("hd: ")
    issuer.behavior.claims |= {"hd": "example.com"}
    assert (await log_in(issuer, logins)).claims["sub"] == "f3b1"


async def test_a_login_that_is_too_old_is_refused(issuer: OAuthIssuer) -> None:
    issuer.behavior.claims |= {"auth_time": int(time.time()) - 13 * 3600}
    assert (await refused(issuer)).startswith("auth_time: ")
    issuer.behavior.claims |= {"auth_time": int(time.time()) - 600}
    assert (await log_in(issuer)).claims["sub"] == "f3b1"
    assert (await refused(issuer, begun=attempt(again=True))).startswith("auth_time: ")


async def test_without_auth_time_no_login_counts_as_new(issuer: OAuthIssuer) -> None:
    del issuer.behavior.claims["auth_time"]
    login = await log_in(issuer)
    assert login.authenticated_at is None
    assert "nothing" in await refused(issuer, begun=attempt(again=True))


async def test_the_time_of_the_token_counts_if_the_settings_say_so(issuer: OAuthIssuer) -> None:
    del issuer.behavior.claims["auth_time"]
    logins = logins_at(issuer, {"login_time": "iat"})
    login = await log_in(issuer, logins, attempt(again=True))
    assert login.authenticated_at == datetime.fromtimestamp(int(str(login.claims["iat"])), UTC)


@pytest.mark.parametrize("sender", ["https://attacker.example.com", ""])
async def test_an_answer_of_another_issuer_is_refused_before_its_code_is_sent(
    issuer: OAuthIssuer, sender: str
) -> None:
    issuer.behavior.redirect = lambda parameters: parameters | {"iss": sender}
    assert (await refused(issuer)).startswith("iss: ")
    assert issuer.forms == []


async def test_an_issuer_that_names_itself_must_always_do_so(issuer: OAuthIssuer) -> None:
    issuer.behavior.redirect = lambda parameters: {
        name: value for name, value in parameters.items() if name != "iss"
    }
    assert (await refused(issuer)).startswith("iss: ")
    assert issuer.forms == []
    issuer.publish_document(authorization_response_iss_parameter_supported=None)
    assert (await log_in(issuer)).claims["sub"] == "f3b1"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ("access_denied", LoginRefused, "access_denied"),
        ("login_required", LoginRefused, "login_required"),
        ("invalid_scope", RemoteFailed, "(invalid_scope)"),
        ("unauthorized_client", RemoteFailed, "(unauthorized_client)"),
        ("server_error", Unavailable, "(server_error)"),
        ("<script>alert(1)</script>", RemoteFailed, "(an unknown error)"),
    ],
)
async def test_an_error_of_the_issuer_is_explained(
    issuer: OAuthIssuer, error: str, kind: type[ClustercertError], words: str
) -> None:
    issuer.behavior.redirect = lambda parameters: {
        "error": error,
        "error_description": "<b>secret</b>",
        "state": parameters["state"],
        "iss": issuer.url,
    }
    message = await refused(issuer, kind)
    assert words in message
    assert "<" not in message


async def test_an_answer_without_a_code_is_refused(issuer: OAuthIssuer) -> None:
    issuer.behavior.redirect = lambda parameters: {"state": parameters["state"], "iss": issuer.url}
    assert "no authorization code" in await refused(issuer, InvalidRequest)


async def test_a_code_works_once(issuer: OAuthIssuer) -> None:
    logins, begun = logins_at(issuer), attempt()
    got = answer(issuer, await logins.address(begun, REDIRECT))
    await logins.complete(begun, got, REDIRECT)
    with pytest.raises(LoginRefused, match="Authorization"):
        await logins.complete(begun, got, REDIRECT)


async def test_a_code_of_another_login_is_refused_by_the_issuer(issuer: OAuthIssuer) -> None:
    """The verifier of another login does not fit, so a stolen code is useless."""
    logins = logins_at(issuer)
    stolen = answer(issuer, await logins.address(attempt(), REDIRECT))
    with pytest.raises(LoginRefused):
        await logins.complete(attempt(), stolen, REDIRECT)


@pytest.mark.parametrize(
    "response",
    [
        Response(b"", 500),
        Response(b"not json", 200),
        Response(b"[]", 200),
        Response(b'{"id_token": 5}', 200),
        Response(b"[" * 100_000, 200),
        Response(b"{}", 400),
        Response(b"", 302, {"Location": "https://attacker.example.com"}),
        Response(b" " * 1_000_000, 200),
    ],
)
async def test_a_broken_token_endpoint_makes_logins_unavailable(
    issuer: OAuthIssuer, response: Response
) -> None:
    issuer.behavior.responses["/token"] = response
    assert "can't be used now" in await refused(issuer, Unavailable)


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": "https://another.example.com"},
        {"authorization_endpoint": None},
        {"authorization_endpoint": "http://127.0.0.1/authorize"},
        {"token_endpoint": "javascript:alert(1)"},
        {"code_challenge_methods_supported": ["plain"]},
    ],
)
async def test_a_discovery_document_that_does_not_fit_makes_logins_unavailable(
    issuer: OAuthIssuer, changed: dict[str, object]
) -> None:
    issuer.publish_document(**changed)
    assert "can't be used now" in await refused(issuer, Unavailable)
    assert issuer.logins == []


async def test_the_discovery_document_is_cached_and_failures_are_repeated_later(issuer: OAuthIssuer) -> None:
    now = 1000.0
    logins = logins_at(issuer, clock=lambda: now)
    issuer.publish_document(token_endpoint=None)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await logins.address(attempt(), REDIRECT)
    assert len(issuer.requests) == 1
    issuer.publish_document()
    now += 5
    for _ in range(3):
        await logins.address(attempt(), REDIRECT)
    assert len(issuer.requests) == 2
    now += 300
    await logins.address(attempt(), REDIRECT)
    assert len(issuer.requests) == 3


def test_an_answer_must_come_in_time() -> None:
    begun = attempt()
    state, started = begun.secret("state"), datetime.fromtimestamp(begun.started_at, UTC)
    assert begun.is_answered_by(state, started)
    assert begun.is_answered_by(state, started + timedelta(seconds=LOGIN_SECONDS))
    assert not begun.is_answered_by(state, started + timedelta(seconds=LOGIN_SECONDS + 1))
    assert not begun.is_answered_by(state, started - timedelta(seconds=1))
    assert not begun.is_answered_by("", started)


def test_each_field_of_the_cookie_is_protected_by_the_state() -> None:
    begun = attempt()
    now, state = datetime.fromtimestamp(begun.started_at, UTC), begun.secret("state")
    for changed in (
        {"issuer": "other"},
        {"next_page": "/console/audit"},
        {"again": True},
        {"started_at": begun.started_at - 1},
        {"key": "another"},
    ):
        assert not replace(begun, **changed).is_answered_by(state, now)


@given(st.text(max_size=40), st.text(max_size=40), st.booleans(), st.integers())
def test_a_cookie_is_read_as_it_was_written(issuer: str, page: str, again: bool, started_at: int) -> None:
    begun = LoginAttempt(issuer, page, again, started_at)
    assert LoginAttempt.parse(begun.text) == begun


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@given(
    st.one_of(
        st.text(),
        st.binary().map(lambda content: base64.urlsafe_b64encode(content).decode()),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8).map(
            encoded
        ),
        st.sampled_from(
            ["", "A" * 5000, encoded(["a", "b", True, 10**3000, "c"]), "W" * 4000, "a", "====", "é"]
        ),
    )
)
def test_any_cookie_is_a_login_that_no_state_fits_or_a_value_error(text: str) -> None:
    try:
        begun = LoginAttempt.parse(text)
    except ValueError:
        return
    assert not begun.is_answered_by("state", datetime.now(UTC))
