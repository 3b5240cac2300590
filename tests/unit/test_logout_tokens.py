"""Logout tokens: which are accepted, and which token is refused by which check."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.keys import IssuerKeys, parse_key_set
from clustercert.authn.oidc.logout_tokens import LOGOUT_EVENT, IssuerLogout, verified_logout
from clustercert.authn.oidc.tokens import MAX_TOKEN_BYTES
from clustercert.authn.oidc.verification import Verifier
from support.oidc import URL, claims_of, key_set, new_key, signed

KEY = new_key("first")
CLIENT = "console"
API = "https://api-only.example.com"
LOGOUT: dict[str, object] = {"aud": CLIENT, "events": {LOGOUT_EVENT: {}}, "sid": "s-1", "jti": "1"}


def configured(url: str = URL, **changed: object) -> OidcIssuer:
    values = {"name": "sso", "issuer": url, "audiences": ["api"], "domain": "Default"} | changed
    return OidcIssuer.model_validate(values)


async def published_keys() -> Any:
    return parse_key_set(key_set(KEY))


def verifier(*issuers: OidcIssuer) -> Verifier:
    keys = {issuer.url: IssuerKeys(issuer.name, published_keys) for issuer in issuers}
    return Verifier({issuer.url: issuer for issuer in issuers}, keys, lambda: datetime.now(UTC))


async def logout(text: str) -> IssuerLogout:
    return await verified_logout(verifier(configured(console={"client_id": CLIENT}), configured(API)), text)


def token(issuer: str = URL, typ: str | None = "logout+jwt", **changed: object) -> str:
    return signed(claims_of(issuer, **{**LOGOUT, **changed}), KEY, typ=typ)


@pytest.mark.parametrize("typ", ["logout+jwt", "application/logout+jwt", "Logout+JWT", "JWT", None])
async def test_a_logout_token_names_the_session_and_the_user(typ: str | None) -> None:
    found = await logout(token(typ=typ))
    assert (found.issuer.url, found.sid, found.sub) == (URL, "s-1", "f3b1")


@pytest.mark.parametrize(
    ("claims", "sid", "sub"), [({"sub": None}, "s-1", None), ({"sid": None}, None, "f3b1")]
)
async def test_the_session_or_the_user_may_be_missing(
    claims: dict[str, Any], sid: str | None, sub: str | None
) -> None:
    found = await logout(token(**claims))
    assert (found.sid, found.sub) == (sid, sub)


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"aud": "api"}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": [CLIENT, "api"]}, "aud"),
        ({"jti": None}, "jti"),
        ({"jti": ""}, "jti"),
        ({"jti": 1}, "jti"),
        ({"exp": int(time.time()) - 3600}, "exp"),
        ({"exp": None}, "exp"),
        ({"iat": None}, "iat"),
        ({"iat": int(time.time()) - 2 * 86400}, "iat"),
        # Computed when the tests are collected: a day is longer than they run.
        ({"iat": int(time.time()) + 86400}, "iat"),
        ({"events": None}, "events"),
        ({"events": LOGOUT_EVENT}, "events"),
        ({"events": {"http://schemas.openid.net/event/other": {}}}, "events"),
        ({"events": {LOGOUT_EVENT: None}}, "events"),
        ({"nonce": "n"}, "nonce"),
        ({"sid": None, "sub": None}, "sid"),
        ({"sid": ""}, "sid"),
        ({"sid": 5}, "sid"),
        ({"sid": "s" * 256}, "sid"),
        ({"sub": ["f3b1"]}, "sub"),
        ({"sub": "\ud800"}, "sub"),
        ({"typ": "at+jwt"}, "typ"),
        ({"typ": "secevent+jwt"}, "typ"),
        ({"issuer": "https://unknown.example.com"}, "iss"),
        ({"issuer": API}, "iss"),
    ],
)
async def test_another_token_is_refused(changed: dict[str, Any], check: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        await logout(token(**changed))
    assert caught.value.check == check


@pytest.mark.parametrize(
    ("text", "check"),
    [
        (signed(claims_of(**LOGOUT), new_key("first"), typ="logout+jwt"), "signature"),
        ("", "form"),
        ("a.b", "form"),
        ("a" * (MAX_TOKEN_BYTES + 1), "size"),
    ],
)
async def test_a_forged_or_malformed_token_is_refused(text: str, check: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        await logout(text)
    assert caught.value.check == check


@pytest.mark.parametrize(("typ", "check"), [("logout+jwt", "typ"), ("JWT", "events"), (None, "events")])
async def test_a_logout_token_is_no_access_token(typ: str | None, check: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        await verifier(configured(audiences=[CLIENT])).verify(token(typ=typ))
    assert caught.value.check == check


async def test_a_logout_token_may_name_the_other_audiences_in_the_settings() -> None:
    issuer = configured(console={"client_id": CLIENT}, trusted_audiences=["api"])
    assert (await verified_logout(verifier(issuer), token(aud=[CLIENT, "api"]))).sid == "s-1"
