"""OAuth in the client and the service: PKCE, the authorization address, and checks of an ID token's claims."""

from urllib.parse import parse_qs, urlsplit

import pytest

from clustercert.model import oauth

ISSUER, CLIENT = "https://sso.example.com", "clustercert"
CLAIMS = {"iss": ISSUER, "aud": CLIENT, "azp": CLIENT, "nonce": "n-1"}


def wrong(claims: dict[str, object], trusted: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the claims that fail a check."""
    checks = (
        oauth.wrong_issuer(claims, ISSUER),
        oauth.wrong_audience(claims, CLIENT, trusted),
        oauth.wrong_authorized_party(claims, CLIENT),
        oauth.wrong_events(claims),
        oauth.wrong_nonce(claims, "n-1"),
    )
    return [check.name for check in checks if check is not None]


def test_the_challenge_is_that_of_the_specification() -> None:
    # Source: RFC 7636, appendix B.
    assert oauth.challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == {
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        "code_challenge_method": "S256",
    }


@pytest.mark.parametrize("endpoint", [f"{ISSUER}/auth", f"{ISSUER}/auth?tenant=acme"])
def test_further_parameters_of_an_address_replace_none_of_its_own(endpoint: str) -> None:
    address = oauth.authorization_url(
        endpoint,
        client_id=CLIENT,
        scopes=["openid", "groups"],
        redirect_uri="http://127.0.0.1/callback",
        state="s-1",
        nonce="n-1",
        verifier="v-1",
        parameters={"state": "other", "max_age": "300"},
    )
    assert address.startswith(endpoint)
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    query.pop("tenant", None)
    assert query == {
        "client_id": CLIENT,
        "scope": "openid groups",
        "response_type": "code",
        "redirect_uri": "http://127.0.0.1/callback",
        "state": "s-1",
        "nonce": "n-1",
        "max_age": "300",
        **oauth.challenge("v-1"),
    }


@pytest.mark.parametrize(
    ("methods", "supported"),
    [(None, True), (["plain", "S256"], True), (["plain"], False), ([], False), ("S256", False)],
)
def test_an_issuer_supports_pkce_unless_it_lists_other_methods(methods: object, supported: bool) -> None:
    assert oauth.supports_pkce({"code_challenge_methods_supported": methods}) is supported
    assert oauth.supports_pkce({})


@pytest.mark.parametrize(
    ("answer", "from_any", "from_announcing"),
    [
        ({}, True, False),
        ({"iss": ISSUER}, True, True),
        ({"iss": f"{ISSUER}/"}, False, False),
        ({"iss": ""}, False, False),
    ],
)
def test_an_answer_must_name_its_issuer_if_the_issuer_says_so(
    answer: dict[str, str], from_any: bool, from_announcing: bool
) -> None:
    assert oauth.is_sent_by(ISSUER, answer, sends_issuer=False) is from_any
    assert oauth.is_sent_by(ISSUER, answer, sends_issuer=True) is from_announcing


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"aud": [CLIENT]}, []),
        ({"aud": [CLIENT, "other"]}, ["aud"]),
        ({"aud": [CLIENT, 1]}, ["aud"]),
        ({"aud": "other"}, ["aud"]),
        ({"aud": None}, ["aud"]),
        ({"aud": []}, ["aud"]),
        ({"azp": "other"}, ["azp"]),
        ({"azp": None}, ["azp"]),
        ({"iss": f"{ISSUER}/"}, ["iss"]),
        ({"events": {}}, ["events"]),
        ({"nonce": "n-2"}, ["nonce"]),
        ({"nonce": "\ud800"}, ["nonce"]),
        ({"nonce": None}, ["nonce"]),
    ],
)
def test_a_claim_that_is_not_for_this_client_and_login_is_wrong(
    changed: dict[str, object], found: list[str]
) -> None:
    assert wrong(CLAIMS | changed) == found


def test_only_iss_aud_and_nonce_are_required() -> None:
    assert wrong({}) == ["iss", "aud", "nonce"]


def test_a_token_may_name_trusted_audiences_besides_the_client() -> None:
    assert wrong(CLAIMS | {"aud": [CLIENT, "api"]}, ("api",)) == []
    assert wrong(CLAIMS | {"aud": ["api"]}, ("api",)) == ["aud"]
    check = oauth.wrong_audience({"aud": "api"}, CLIENT, ("b", "api"))
    assert check == ("aud", "api", "clustercert, and besides at most api, b")


def test_an_expected_nonce_is_not_in_a_message() -> None:
    check = oauth.wrong_nonce({"nonce": "n-2"}, "n-1")
    assert check == ("nonce", None, "the nonce of this login")


@pytest.mark.parametrize("value", [True, "1", None, -1, 2**37, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="seconds since 1970"):
        oauth.claimed_time(value)
