"""Tokens from random changes: nothing but the signed text is accepted, and nothing but a refusal is raised."""

import asyncio
import base64
import json
import string
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.keys import IssuerKeys, UnusableKeySet, parse_key_set
from clustercert.authn.oidc.mapping import federated_user
from clustercert.authn.oidc.tokens import MAX_DEPTH, parse_token
from clustercert.authn.oidc.verification import Verifier
from support.oidc import AUDIENCE, URL, claims_of, key_set, new_key, signed

KEY = new_key("first")
# Used until the end of a long run of tests.
TOKEN = signed(claims_of(exp=4_000_000_000), KEY)
ISSUER = OidcIssuer.model_validate(
    {
        "name": "sso",
        "issuer": URL,
        "audiences": [AUDIENCE],
        "projects": ["a" * 32],
        "username": "preferred_username",
        "groups": "groups",
        "roles": [{"role": "member", "claims": {"acr": ["gold"]}}],
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["aud", "exp", "nbf", "iat", "sub", "preferred_username", "groups", "acr", "x"])


def accepted(text: str) -> bool:
    """Whether the token logs somebody in. Any error but a refusal fails the test."""

    async def fetch() -> Any:
        return parse_key_set(key_set(KEY))

    async def log_in() -> None:
        verifier = Verifier({URL: ISSUER}, {URL: IssuerKeys("sso", fetch)}, lambda: datetime.now(UTC))
        federated_user(*await verifier.verify(text))

    try:
        asyncio.run(log_in())
    except TokenRefused:
        return False
    return True


def test_the_token_is_accepted() -> None:
    assert accepted(TOKEN)


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from(string.printable + "\0\u00e9\ud800"))
def test_a_token_with_another_character_is_refused(place: int, character: str) -> None:
    changed = TOKEN[:place] + character + TOKEN[place + 1 :]
    assert accepted(changed) is (changed == TOKEN)


@given(
    st.text(alphabet="ey.-_A{}\"'\0\ud800 ") | st.text() | st.binary().map(lambda raw: raw.decode("latin-1"))
)
def test_any_text_is_refused(text: str) -> None:
    for each in (text, f"{text}.{text}.{text}"):
        try:
            parse_token(each)
        except TokenRefused:
            continue
        raise AssertionError(each)


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_claims_of_any_type_are_accepted_or_refused(changed: dict[str, Any]) -> None:
    accepted(signed(claims_of() | changed, KEY))


@given(st.lists(st.sampled_from(["list", '[{"', "\\", '"]}']), max_size=40))
def test_claims_may_be_nested_32_deep_whatever_strings_are_in_them(names: list[str]) -> None:
    nested: object = "[[["
    for name in names:
        nested = [name, nested, []] if name == "list" else {name: nested, "x": {}}
    # The payload is an object, and the innermost value may have an empty list or object beside it.
    depth = len(names) + (2 if names else 1)
    assert accepted(signed(claims_of() | {"nested": nested}, KEY)) is (depth <= MAX_DEPTH)


@given(
    st.lists(st.dictionaries(st.sampled_from(["kty", "kid", "use", "alg", "crv", "x", "y", "n", "e"]), JSON))
)
def test_any_key_set_is_read_or_refused(entries: list[Any]) -> None:
    content = json.dumps({"keys": entries}).encode()
    for each in (content, base64.b64encode(content)):
        try:
            parse_key_set(each)
        except UnusableKeySet:
            continue
