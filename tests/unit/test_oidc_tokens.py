"""Attacks on tokens: each is refused by the check that is meant for it."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.errors import SecurityWarning
from joserfc.jwk import OKPKey

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.issuers import OidcIssuer, derived_id
from clustercert.authn.oidc.keys import IssuerKeys, parse_key_set
from clustercert.authn.oidc.mapping import federated_user
from clustercert.authn.oidc.verification import Verifier
from clustercert.model import User
from support.oidc import AUDIENCE, URL, Key, claims_of, key_set, new_key, signed

KEY, RSA, OTHER = new_key("first"), new_key("rsa", "RSA"), new_key("first")
PROJECT = "a" * 32


def configured(**changed: object) -> OidcIssuer:
    values = {"name": "sso", "issuer": URL, "audiences": [AUDIENCE], "projects": [PROJECT]} | changed
    return OidcIssuer.model_validate(values)


def verifier(issuer: OidcIssuer, *keys: Key) -> Verifier:
    async def fetch() -> Any:
        return parse_key_set(key_set(*(keys or (KEY, RSA))))

    return Verifier(
        {issuer.url: issuer}, {issuer.url: IssuerKeys(issuer.name, fetch)}, lambda: datetime.now(UTC)
    )


async def refusal(text: str, issuer: OidcIssuer | None = None) -> TokenRefused:
    with pytest.raises(TokenRefused) as caught:
        await verifier(issuer or configured()).verify(text)
    assert str(caught.value) == "Authorization failed."
    assert text not in caught.value.reason
    return caught.value


def encoded(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# Cases are made when pytest starts, and run much later.
DAY = 24 * 3600


def in_seconds(seconds: float) -> int:
    return int(time.time() + seconds)


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521", "RSA", "Ed25519"])
async def test_a_right_token_is_accepted(curve: str) -> None:
    key = new_key("k", curve)
    algorithms = ["ES256", "ES384", "ES512", "RS256", "Ed25519"]
    issuer, token = await verifier(configured(algorithms=algorithms), key).verify(signed(claims_of(), key))
    assert (issuer.name, token.claims["sub"]) == ("sso", "f3b1")


@pytest.mark.parametrize("declared", [{}, {"alg": "EdDSA"}])
async def test_the_older_name_of_ed25519_is_accepted_if_it_is_allowed(declared: dict[str, Any]) -> None:
    key = OKPKey.import_key({**new_key("k", "Ed25519").as_dict(private=True), **declared})
    with pytest.warns(SecurityWarning):
        text = signed(claims_of(), key, alg="EdDSA")
    await verifier(configured(algorithms=["EdDSA"]), key).verify(text)
    with pytest.raises(TokenRefused) as refused:
        await verifier(configured(algorithms=["Ed25519"]), key).verify(text)
    assert refused.value.check == "alg"
    altered = f"{text[:-4]}{'AAAA' if text[-4:] != 'AAAA' else 'BBBB'}"
    with pytest.raises(TokenRefused) as refused:
        await verifier(configured(algorithms=["EdDSA"]), key).verify(altered)
    assert refused.value.check == "signature"


@pytest.mark.parametrize(
    ("header", "check"),
    [
        ({"jwk": OTHER.as_dict(private=False)}, "header"),
        ({"jku": "https://attacker.example/keys"}, "header"),
        ({"x5u": "https://attacker.example/chain"}, "header"),
        ({"crit": ["exp"]}, "header"),
        ({"crit": ["clustercert"], "clustercert": 1}, "header"),
        ({"typ": "logout+jwt"}, "typ"),
        ({"typ": "dpop+jwt"}, "typ"),
        ({"kid": "unknown"}, "kid"),
        ({"kid": "../../dev/null"}, "kid"),
        ({"kid": "' OR 1=1 --"}, "kid"),
        ({"kid": ""}, "kid"),
        ({"kid": "k" * 513}, "kid"),
        ({"kid": "rsa"}, "kid"),
    ],
)
async def test_a_header_that_names_another_key_or_use_is_refused(
    header: dict[str, object], check: str
) -> None:
    # A library would refuse to write some of these headers, so they are put together here.
    text = f"{encoded({'alg': 'ES256', 'kid': 'first'} | header)}.{encoded(claims_of())}.{'A' * 86}"
    assert (await refusal(text)).check == check


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "HS512", "ES384", "RS1", "", "es256"])
async def test_an_algorithm_outside_the_list_is_refused(algorithm: str) -> None:
    text = f"{encoded({'alg': algorithm, 'kid': 'first'})}.{encoded(claims_of())}.{'A' * 86}"
    assert (await refusal(text)).check == "alg"


async def test_a_token_without_signature_is_refused() -> None:
    header, payload, _ = signed(claims_of(), KEY).split(".")
    assert (await refusal(f"{header}.{payload}.")).check == "signature"
    assert (await refusal(f"{encoded({'alg': 'none'})}.{payload}.")).check == "signature"


async def test_the_public_key_is_no_secret_of_an_hmac() -> None:
    signed_part = f"{encoded({'alg': 'HS256', 'kid': 'rsa'})}.{encoded(claims_of())}"
    mac = hmac.digest(RSA.as_pem(private=False), signed_part.encode(), "sha256")
    assert (await refusal(f"{signed_part}.{encoded(mac)}")).check == "alg"


async def test_a_key_counts_for_its_own_algorithm_only() -> None:
    text = signed(claims_of(), KEY)
    forged = f"{encoded({'alg': 'RS256', 'kid': 'first'})}.{text.split('.', 1)[1]}"
    assert (await refusal(forged)).check == "kid"


async def test_a_key_declared_for_one_algorithm_counts_for_no_other() -> None:
    document = {"keys": [RSA.as_dict(private=False) | {"alg": "RS512"}]}
    (key,) = parse_key_set(json.dumps(document).encode())
    assert key.algorithms == {"RS512"}


async def test_a_key_of_somebody_else_with_the_same_id_is_refused() -> None:
    assert (await refusal(signed(claims_of(), OTHER))).check == "signature"


async def test_a_changed_payload_is_refused() -> None:
    header, _, signature = signed(claims_of(), KEY).split(".")
    assert (await refusal(f"{header}.{encoded(claims_of(sub='root'))}.{signature}")).check == "signature"


async def test_a_certificate_in_the_header_is_no_key() -> None:
    text = signed(claims_of(), OTHER, x5c=["MIIB"])
    assert (await refusal(text)).check == "signature"


async def test_without_a_key_id_the_key_must_be_the_only_one() -> None:
    text = signed(claims_of(), KEY, kid=None)
    await verifier(configured(), KEY, RSA).verify(text)
    with pytest.raises(TokenRefused) as caught:
        await verifier(configured(), KEY, new_key("second")).verify(text)
    assert caught.value.check == "kid"


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda text: text + "." + "A" * 16_384, "size"),
        (lambda text: text + ".", "form"),
        (lambda text: text.replace(".", "..", 1), "form"),
        (lambda text: text.rsplit(".", 1)[0], "form"),
        (lambda text: text + "=", "signature"),
        (lambda text: text + "\n", "signature"),
        (lambda text: text.replace(".", " .", 1), "header"),
        (lambda text: "." + text.split(".", 1)[1], "header"),
        (lambda text: text + "ß", "signature"),
    ],
)
async def test_another_spelling_of_a_token_is_refused(spoil: Callable[[str], str], check: str) -> None:
    assert (await refusal(spoil(signed(claims_of(), KEY)))).check == check


async def test_unused_bits_of_base64_must_be_zero() -> None:
    text = signed(claims_of(), KEY)
    # 64 bytes leave four unused bits in the last character.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    changed = text[:-1] + alphabet[alphabet.index(text[-1]) + 1]
    assert (await refusal(changed)).check == "signature"


@pytest.mark.parametrize(
    "payload",
    [
        b'{"iss":"https://sso.example.com/realms/acme","iss":"https://attacker.example"}',
        b'{"iss":"https://sso.example.com/realms/acme","a":{"b":1,"b":2}}',
        b'{"iss":"https://sso.example.com/realms/acme","exp":NaN}',
        b'{"iss":"https://sso.example.com/realms/acme","exp":Infinity}',
        b'{"iss":"https://sso.example.com/realms/acme","exp":1e999}',
        b'{"iss":"https://sso.example.com/realms/acme","exp":' + b"9" * 5000 + b"}",
        b"[" * 8000,
        b'{"iss":"https://sso.example.com/realms/acme","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"iss":"https://sso.example.com/realms/acme","x":' + b'{"a":' * 32 + b"1" + b"}" * 32 + b"}",
        b'{"iss":"https://sso.example.com/realms/acme","x":"' + b'\\"' * 5000 + b"\\",
        b'"text"',
        b"[]",
        b"\xff\xfe",
        b'{"iss":"https://sso.example.com/realms/acme"} ,',
    ],
)
async def test_a_payload_that_parsers_read_differently_is_refused(payload: bytes) -> None:
    assert (await refusal(signed(payload, KEY))).check == "payload"


async def test_nesting_of_32_is_accepted_and_brackets_in_strings_are_no_nesting() -> None:
    nested: object = "[[[[" * 100
    for _ in range(31):
        nested = [nested, '\\"{']
    await verifier(configured()).verify(signed(claims_of(nested=nested), KEY))


@pytest.mark.parametrize(
    "issuer",
    [URL + "/", URL.upper(), URL.replace("https", "http"), "https://attacker.example", "", 7, [URL], None],
)
async def test_an_issuer_that_is_not_spelled_exactly_alike_is_refused(issuer: object) -> None:
    claims = claims_of() | {"iss": issuer}
    assert (await refusal(signed(claims, KEY))).check == "iss"


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"aud": None}, "aud"),
        ({"aud": "other"}, "aud"),
        ({"aud": "clustercert "}, "aud"),
        ({"aud": []}, "aud"),
        ({"aud": {"clustercert": True}}, "aud"),
        ({"aud": ["clustercert", 1]}, "aud"),
        ({"exp": None}, "exp"),
        ({"exp": in_seconds(-61)}, "exp"),
        ({"exp": "9999999999"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": -1}, "exp"),
        ({"exp": 10**18}, "exp"),
        ({"nbf": in_seconds(DAY)}, "nbf"),
        ({"nbf": "soon"}, "nbf"),
        ({"iat": None}, "iat"),
        ({"iat": in_seconds(DAY)}, "iat"),
        ({"iat": in_seconds(-25 * 3600)}, "iat"),
    ],
)
async def test_claims_that_every_token_needs(changed: dict[str, object], check: str) -> None:
    found = await refusal(signed(claims_of(**changed), KEY))
    assert (found.check, bool(found.expected)) == (check, True)


@pytest.mark.parametrize("audience", [["another", AUDIENCE], [AUDIENCE, "another"]])
async def test_a_token_for_the_api_may_name_other_audiences(audience: list[str]) -> None:
    await verifier(configured()).verify(signed(claims_of(aud=audience), KEY))
    await verifier(configured(audiences=["third", AUDIENCE])).verify(signed(claims_of(aud=audience), KEY))


async def test_the_clocks_may_differ_by_the_leeway() -> None:
    late = signed(claims_of(exp=in_seconds(-30), nbf=in_seconds(30), iat=in_seconds(-300)), KEY)
    await verifier(configured()).verify(late)
    assert (await refusal(late, configured(leeway="0s"))).check == "exp"


@pytest.mark.parametrize(
    ("claims", "wanted", "accepted"),
    [
        ({"ref": "refs/heads/main"}, {"ref": ["refs/heads/main"]}, True),
        ({"ref": "refs/heads/main2"}, {"ref": ["refs/heads/main"]}, False),
        ({"ref": "refs/tags/v1"}, {"ref": ["refs/heads/*", "refs/tags/v*"]}, True),
        ({"email_verified": False}, {"email_verified": ["true"]}, False),
        ({"email_verified": True}, {"email_verified": ["true"]}, True),
        ({"tid": 7}, {"tid": ["7"]}, True),
        ({"tid": [6, 7]}, {"tid": ["7"]}, True),
        ({"tid": {"7": 7}}, {"tid": ["*"]}, False),
        ({"tid": None}, {"tid": ["*"]}, False),
        ({"a": {"b/c": "d"}}, {"/a/b~1c": ["d"]}, True),
        ({"a": "d"}, {"/a/b": ["*"]}, False),
        ({"ref": "r" * 1024}, {"ref": ["r*"]}, True),
        ({"ref": "r" * 1025}, {"ref": ["*"]}, False),
        ({"ref": ["main", "r" * 1025]}, {"ref": ["main"]}, False),
        ({"https://example.com/role": "x"}, {"https://example.com/role": ["x"]}, True),
    ],
)
async def test_claims_that_the_settings_demand(
    claims: dict[str, object], wanted: dict[str, list[str]], *, accepted: bool
) -> None:
    text = signed(claims_of(**claims), KEY)
    if accepted:
        await verifier(configured(claims=wanted)).verify(text)
    else:
        assert (await refusal(text, configured(claims=wanted))).check in wanted


def test_a_user_id_is_the_hash_of_issuer_and_subject() -> None:
    # printf '["user","%s","%s"]' https://sso.example.com/realms/acme f3b1 | sha256sum | cut -c 1-32
    assert derived_id("user", URL, "f3b1") == "0c218e17cc08e7c1e2619df66c86ddbc"


SUBJECTS = st.lists(
    st.sampled_from(["a", "b", "ab", '"', '","', "\\", "/", "group", "é"]), min_size=1, max_size=3
)


@given(SUBJECTS, SUBJECTS)
def test_two_subjects_never_have_one_id(one: list[str], other: list[str]) -> None:
    assert (derived_id("user", URL, *one) == derived_id("user", URL, *other)) is (one == other)
    assert derived_id("user", URL, *one) != derived_id("group", URL, *other)


async def mapped(issuer: OidcIssuer, **claims: object) -> User:
    _, token = await verifier(issuer).verify(signed(claims_of(**claims), KEY))
    return federated_user(issuer, token).user


async def test_a_sub_of_255_characters_is_accepted() -> None:
    users = [await mapped(configured(), sub="s" * length) for length in (200, 201, 255)]
    assert [each.id for each in users] == [
        derived_id("user", URL, "s" * length) for length in (200, 201, 255)
    ]
    assert [each.name for each in users] == [f"sso/{'s' * 200}", *(f"sso/id:{each.id}" for each in users[1:])]
    # Nobody else has this name.
    assert (await mapped(configured(), sub=users[1].name.removeprefix("sso/"))).name != users[1].name
    with pytest.raises(TokenRefused) as caught:
        await mapped(configured(), sub="s" * 256)
    assert caught.value.check == "sub"


async def test_names_keep_their_limit() -> None:
    for claims, check in (({"a": "n" * 201, "b": "b"}, "a"), ({"a": "n" * 150, "b": "n" * 50}, "username")):
        with pytest.raises(TokenRefused) as caught:
            await mapped(configured(username=["a", "b"]), **claims)
        assert caught.value.check == check


async def test_a_number_in_the_subject_is_its_digits() -> None:
    users = [await mapped(configured(), sub=sub) for sub in (1, "1")]
    assert [each.id for each in users] == [derived_id("user", URL, "1")] * 2


async def test_a_sub_that_nothing_uses_may_be_missing() -> None:
    issuer = configured(subject=["pipeline"], username="pipeline")
    for sub in (None, "", 7, "s" * 1000):
        assert (await mapped(issuer, sub=sub, pipeline="p")).name == "sso/p"


async def test_the_name_is_the_subject_if_the_settings_name_no_claim() -> None:
    assert (
        await mapped(configured(subject=["tenant", "login"]), tenant="a", login="b/c")
    ).name == "sso/a/b/c"


@pytest.mark.parametrize("names", [{"username": ["tenant", "login"]}, {"subject": ["tenant", "login"]}])
async def test_two_users_never_have_one_joined_name(names: dict[str, object]) -> None:
    assert (await mapped(configured(**names), tenant="a", login="b/c")).name == "sso/a/b/c"
    with pytest.raises(TokenRefused) as caught:
        await mapped(configured(**names), tenant="a/b", login="c")
    assert (caught.value.check, caught.value.came) == ("tenant", "'a/b'")


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"sub": "group\0team-blue"}, "sub"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": []}, "sub"),
        ({"sub": "s" * 256}, "sub"),
        ({"sub": True}, "sub"),
        ({"sub": 1.0}, "sub"),
        ({"preferred_username": False}, "preferred_username"),
        ({"preferred_username": "ali\u202ece"}, "preferred_username"),
        ({"preferred_username": "ali\nce"}, "preferred_username"),
        ({"preferred_username": "\ud800"}, "preferred_username"),
        ({"preferred_username": " alice"}, "preferred_username"),
        ({"preferred_username": ""}, "preferred_username"),
        ({"preferred_username": ["alice"]}, "preferred_username"),
        ({"preferred_username": None}, "preferred_username"),
        ({"groups": {"admins": True}}, "groups"),
        ({"groups": [["admins"]]}, "groups"),
        ({"groups": ["ad\u200bmins"]}, "groups"),
        ({"groups": ["a" * 201]}, "groups"),
        ({"groups": [str(number) for number in range(501)]}, "groups"),
        ({"preferred_username": "\u212aate"}, "preferred_username"),
        ({"preferred_username": "Rene\u0301"}, "preferred_username"),
        ({"groups": ["\u212a8s-admins"]}, "groups"),
        ({"groups": None, "_claim_names": {"groups": "src1"}}, "groups"),
        ({"groups": None, "hasgroups": True}, "groups"),
        ({"groups": None, "hasgroups": "true"}, "groups"),
    ],
)
@pytest.mark.parametrize("groups", ["groups", "/groups"])
async def test_claims_that_can_be_no_user_or_group(
    changed: dict[str, object], check: str, groups: str
) -> None:
    issuer = configured(username="preferred_username", groups=groups)
    _, token = await verifier(issuer).verify(signed(claims_of(**changed), KEY))
    with pytest.raises(TokenRefused) as caught:
        federated_user(issuer, token)
    assert caught.value.check == check


async def test_subjects_that_differ_in_unicode_normalization_are_different_users() -> None:
    issuer, users = configured(username="preferred_username"), []
    for subject in ("Kate", "\u212aate"):
        _, token = await verifier(issuer).verify(signed(claims_of(sub=subject), KEY))
        users.append(federated_user(issuer, token).user.id)
    assert users == [derived_id("user", URL, subject) for subject in ("Kate", "\u212aate")]


async def test_names_begin_with_the_issuers_name() -> None:
    issuer = configured(username="preferred_username", groups="groups")
    _, token = await verifier(issuer).verify(signed(claims_of(groups=["b", "a", "a"]), KEY))
    user = federated_user(issuer, token)
    assert (user.user.id, *user.user.qualified_names) == (derived_id("user", URL, "f3b1"), "sso/alice")
    assert [group.qualified_names for group in user.groups] == [("sso/a",), ("sso/b",)]


async def test_names_without_the_issuers_name_if_the_operator_wants() -> None:
    issuer = configured(username="preferred_username", prefix_names=False)
    _, token = await verifier(issuer).verify(signed(claims_of(), KEY))
    assert federated_user(issuer, token).user.qualified_names == ("alice", "sso/alice")


async def test_an_expression_gives_the_groups() -> None:
    issuer = configured(groups_cel='claims.groups.filter(g, g.startsWith("team-"))')
    _, token = await verifier(issuer).verify(signed(claims_of(groups=["team-a", "b"]), KEY))
    assert [group.name for group in federated_user(issuer, token).groups] == ["sso/team-a"]


async def test_an_expression_reads_no_token_with_a_very_long_list() -> None:
    issuer = configured(groups_cel="claims.teams.map(t, t.name)")
    long = {"deep": [{"list": ["x"] * 501}]}
    _, token = await verifier(issuer).verify(signed(claims_of(teams=[{"name": "a"}], other=long), KEY))
    with pytest.raises(TokenRefused) as caught:
        federated_user(issuer, token)
    assert (caught.value.check, caught.value.expected[:26]) == ("groups_cel", "lists of at most 500 entri")


@pytest.mark.parametrize("value", ["admin", None, 5, {"admin": True}, ["a", 5], [None], [["a"]], True])
async def test_an_expression_for_groups_must_give_a_list_of_strings(value: object) -> None:
    issuer = configured(groups_cel="claims.box.value")
    _, token = await verifier(issuer).verify(signed(claims_of(box={"value": value}), KEY))
    with pytest.raises(TokenRefused) as caught:
        federated_user(issuer, token)
    assert caught.value.check == "groups_cel"
    assert "claims.box.value" in caught.value.expected


@pytest.mark.parametrize(
    ("teams", "expected"),
    [
        (None, "the claim or member 'teams', which the expression reads: claims.teams"),
        ([{}], "the claim or member 'name', which the expression reads: claims.teams"),
        ("x", "claims for which the expression has a value (No such overload"),
    ],
)
async def test_an_expression_that_fails_refuses_the_token_and_says_why(teams: object, expected: str) -> None:
    issuer = configured(groups_cel="claims.teams.map(t, t.name)")
    _, token = await verifier(issuer).verify(signed(claims_of(teams=teams), KEY))
    with pytest.raises(TokenRefused) as caught:
        federated_user(issuer, token)
    assert (caught.value.check, "'preferred_username'" in caught.value.came) == ("groups_cel", True)
    assert caught.value.expected.startswith(expected)
