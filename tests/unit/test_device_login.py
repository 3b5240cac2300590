"""The login by device code, refresh tokens, and what a service says of its issuers."""

from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

import pytest

from clustercert.client.connection import ApiResponse, ClientError, ServiceClient
from clustercert.client.oidc.issuer import (
    IssuerError,
    IssuerUnreachable,
    LoginIssuer,
    LoginOffer,
    LoginRefused,
    OAuthError,
    login_offer,
)
from clustercert.client.oidc.tokens import (
    DeviceCode,
    IssuerClient,
    OidcTokens,
    RefreshRefused,
    log_in_by_device_code,
)
from support.oauth_issuer import OAuthIssuer
from support.oidc import Response

UNREACHABLE = "https://127.0.0.1:9"
RESOURCE = "https://service.example.com"
DEVICE = b'{"device_code": "d", "user_code": "%s", "verification_uri": "%s", "interval": %s}'


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OAuthIssuer]:
    with OAuthIssuer(tmp_path).running() as running:
        yield running


@pytest.fixture
def client(issuer: OAuthIssuer) -> Iterator[IssuerClient]:
    with IssuerClient(issuer.login_issuer()) as opened:
        yield opened


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def now(self) -> float:
        return sum(self.slept)


def log_in(client: IssuerClient, clock: Clock | None = None) -> tuple[OidcTokens, DeviceCode]:
    shown: list[DeviceCode] = []
    time = clock or Clock()
    tokens = log_in_by_device_code(client, shown.append, time.sleep, time.now)
    return tokens, shown[0]


def test_a_code_is_polled_until_the_user_entered_it(issuer: OAuthIssuer, client: IssuerClient) -> None:
    issuer.behavior.device = ["authorization_pending", "slow_down", "authorization_pending"]
    clock = Clock()
    tokens, shown = log_in(client, clock)
    assert tokens.user == "alice"
    assert (shown.user_code, shown.uri) == ("WDJB-MJHT", f"{issuer.url}/enter")
    assert clock.slept == [1, 1, 6, 6]


@pytest.mark.parametrize(
    ("code", "text"), [("access_denied", "denied"), ("expired_token", "Nobody entered the code in time")]
)
def test_a_denied_or_forgotten_code(issuer: OAuthIssuer, client: IssuerClient, code: str, text: str) -> None:
    issuer.behavior.device = ["authorization_pending", code]
    with pytest.raises(LoginRefused, match=text):
        log_in(client)


def test_a_code_expires_here_too(issuer: OAuthIssuer, client: IssuerClient) -> None:
    issuer.behavior.device = ["authorization_pending"] * 10_000
    clock = Clock()
    with pytest.raises(LoginRefused, match="in time"):
        log_in(client, clock)
    assert clock.now() <= 600


def test_an_issuer_that_is_away_for_a_moment(issuer: OAuthIssuer, client: IssuerClient) -> None:
    issuer.behavior.responses["/token"] = Response(b"", 503, work=issuer.behavior.responses.clear)
    clock = Clock()
    log_in(client, clock)
    assert clock.slept == [1, 2]


def test_another_error_ends_the_log_in(issuer: OAuthIssuer, client: IssuerClient) -> None:
    issuer.behavior.device = ["unauthorized_client"]
    with pytest.raises(OAuthError, match="grants that the client may use"):
        log_in(client)


@pytest.mark.parametrize(
    ("user_code", "uri", "interval", "slept"),
    [(b"A", b"https://a.example.com", b"0", 1), (b"A", b"https://a.example.com", b"1e9", 60)],
)
def test_the_interval_is_bounded(
    issuer: OAuthIssuer, client: IssuerClient, user_code: bytes, uri: bytes, interval: bytes, slept: float
) -> None:
    issuer.behavior.responses["/device"] = Response(DEVICE % (user_code, uri, interval))
    clock = Clock()
    log_in(client, clock)
    assert clock.slept == [slept]


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        DEVICE % (b"A" * 65, b"https://a.example.com", b"1"),
        DEVICE % (b"A", b"http://a.example.com", b"1"),
        DEVICE % (b"A", b"javascript:alert(1)", b"1"),
        DEVICE % (b"A", b"https://a.example.com\\u001b[2J", b"1"),
    ],
)
def test_device_codes_that_are_not_shown(issuer: OAuthIssuer, client: IssuerClient, body: bytes) -> None:
    issuer.behavior.responses["/device"] = Response(body)
    with pytest.raises(IssuerError, match="not valid"):
        log_in(client)


def test_an_issuer_without_device_codes(issuer: OAuthIssuer, client: IssuerClient) -> None:
    issuer.publish_document(device_authorization_endpoint=None)
    with pytest.raises(IssuerError, match="without --device"):
        log_in(client)


@pytest.mark.parametrize("rotates", [True, False])
def test_a_login_is_refreshed(issuer: OAuthIssuer, client: IssuerClient, *, rotates: bool) -> None:
    issuer.behavior.rotates = rotates
    first, _ = log_in(client)
    second = client.refresh(first.refresh or "", first.subject)
    assert (second.refresh == first.refresh) is not rotates
    assert second.refresh in issuer.refresh_tokens


def test_a_used_refresh_token_is_refused(client: IssuerClient) -> None:
    first, _ = log_in(client)
    client.refresh(first.refresh or "", first.subject)
    with pytest.raises(RefreshRefused):
        client.refresh(first.refresh or "", first.subject)


def test_a_refreshed_token_is_for_the_same_user(issuer: OAuthIssuer, client: IssuerClient) -> None:
    first, _ = log_in(client)
    issuer.behavior.claims = {"sub": "mallory"}
    with pytest.raises(IssuerError, match="another user"):
        client.refresh(first.refresh or "", first.subject)


def test_a_login_is_revoked(issuer: OAuthIssuer, client: IssuerClient) -> None:
    first, _ = log_in(client)
    assert client.revoke(first.refresh or "")
    assert issuer.refresh_tokens == set()


def test_an_issuer_that_can_not_be_reached_or_trusted(issuer: OAuthIssuer) -> None:
    away = replace(issuer.login_issuer(), url=UNREACHABLE)
    with IssuerClient(away) as client, pytest.raises(IssuerUnreachable, match="can't be reached") as caught:
        client.device_code()
    assert caught.value.status == 503
    untrusted = replace(issuer.login_issuer(), ca_pem=None)
    with IssuerClient(untrusted) as client, pytest.raises(IssuerError, match="--issuer-ca-file"):
        client.device_code()


def test_no_secret_is_traced(
    issuer: OAuthIssuer, client: IssuerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(ServiceClient, "trace", lines.append)
    tokens, shown = log_in(client)
    again = client.refresh(tokens.refresh or "", tokens.subject)
    assert len(lines) == 4
    secrets = [tokens.bearer, tokens.refresh or "", again.bearer, shown.code]
    assert not any(secret in line for secret in secrets for line in lines)
    assert not any(secret in repr((tokens, shown, again)) for secret in secrets)


@pytest.fixture
def client_for_resource(client: IssuerClient) -> Iterator[IssuerClient]:
    changed = replace(client.issuer.client, bearer="access", resource=RESOURCE)
    with IssuerClient(replace(client.issuer, client=changed)) as opened:
        yield opened


def test_access_tokens_are_requested_for_the_resource(
    issuer: OAuthIssuer, client_for_resource: IssuerClient
) -> None:
    # The ID token of this issuer has the same audiences.
    issuer.behavior.claims["aud"] = ["clustercert", RESOURCE]
    tokens, _ = log_in(client_for_resource)
    client_for_resource.refresh(tokens.refresh or "", tokens.subject)
    sent = [form["resource"] for path, form in issuer.forms if path in ("/device", "/token")]
    assert sent == [RESOURCE] * 3


def test_an_access_token_for_another_resource_is_not_used(client_for_resource: IssuerClient) -> None:
    with pytest.raises(IssuerError, match=f"not for {RESOURCE}"):
        log_in(client_for_resource)


BODY: dict[str, Any] = {
    "name": "sso",
    "issuer": "https://sso.example.com",
    "client_id": "clustercert",
    "scopes": ["openid"],
    "redirect_uris": ["http://127.0.0.1/callback"],
    "token": "id",
    "parameters": {},
    "resource": None,
    "trusted_audiences": [],
    "ca_pem": None,
}


def test_an_issuer_is_saved_as_the_service_describes_it() -> None:
    assert LoginIssuer.parse(BODY).body() == BODY


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": "http://sso.example.com"},
        {"issuer": None},
        {"redirect_uris": ["https://evil.example.com/"]},
        {"redirect_uris": ["http://evil.example.com/"]},
        {"redirect_uris": []},
        {"token": "refresh"},
        {"parameters": {"redirect_uri": "https://evil.example.com"}},
        {"parameters": {"resource": "https://service.example.com"}},
        {"parameters": []},
        {"resource": ""},
        {"resource": 7},
        {"client_id": ""},
        {"name": "sso\n"},
        {"scopes": "openid"},
        {"scopes": ["s"] * 101},
    ],
)
def test_a_service_that_describes_its_issuer_wrongly(changed: dict[str, object]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        LoginIssuer.parse(BODY | changed)


def answering(body: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> ServiceClient:
    service = ServiceClient("https://service.example.com")
    monkeypatch.setattr(service, "exchange", lambda *_: ApiResponse(200, HTTPMessage(), body))
    return service


def test_the_addresses_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ["https://Service.example.com", "http://10.0.0.5:8443"]
    offer = login_offer(answering({"issuers": [BODY], "urls": urls}, monkeypatch))
    assert offer == LoginOffer((LoginIssuer.parse(BODY),), ("https://service.example.com", urls[1]))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"issuers": {}},
        {"issuers": [7]},
        {"issuers": [{}] * 101},
        *(
            {"issuers": [], "urls": urls}
            for urls in (None, [7], ["ftp://a"], ["https://a/b"], ["https://a"] * 101)
        ),
    ],
)
def test_a_service_that_answers_otherwise(body: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    service = answering({"urls": []} | body, monkeypatch)
    with pytest.raises(ClientError, match="not in this service's format"):
        login_offer(service)
