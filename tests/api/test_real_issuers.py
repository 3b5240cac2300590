"""Tokens of real OIDC issuers: a login there gives a certificate here."""

import base64
from collections.abc import Iterator

import httpx2
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.authn.oidc.issuers import derived_id
from clustercert.http import middleware
from support import world as worlds
from support.issuer_login import Login
from support.log_capture import captured_logs
from support.real_issuers import OTHER_CLIENT_ID, RealIssuer, mock_provider, oidc_provider
from support.service import Service
from support.world import World

pytestmark = [pytest.mark.slow, pytest.mark.full]

RULES = [{"name": "teams", "when": {"groups": ["sso/team-*"]}, "grant": {"groups": ["team:{group}"]}}]


@pytest.fixture(scope="module", params=["oidc-provider", "mock"])
def issuer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealIssuer]:
    provider = {"oidc-provider": oidc_provider, "mock": mock_provider}[request.param]
    with provider(tmp_path_factory.mktemp("issuer")) as running:
        yield running


@pytest.fixture(scope="module")
def service(world: World, issuer: RealIssuer) -> Iterator[Service]:
    roles = [{"role": "member", "groups": ["team-*"]}]
    configured = issuer.settings(projects=[world.project.id], roles=roles)
    identity = {"region": worlds.REGION, "issuers": [configured]}
    with Service(world.settings(identity=identity, policy={"rules": RULES})).running() as running:
        yield running


def post(world: World, service: Service, token: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return service.client.post(world.path(), json={"duration": 1}, headers=headers)


def names(response: httpx2.Response) -> tuple[str, list[str]]:
    """The common name and the groups of an issued certificate."""
    assert response.status_code == 200, response.text
    pem = base64.b64decode(response.json()["users"][0]["user"]["client-certificate-data"])
    subject = x509.load_pem_x509_certificate(pem).subject
    [common_name] = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    groups = [str(each.value) for each in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    return str(common_name.value), [each for each in groups if not each.startswith("clustercert:")]


def test_a_log_in_by_code_gives_a_certificate_for_the_mapped_groups(
    world: World, service: Service, issuer: RealIssuer
) -> None:
    token = Login(issuer).by_code("alice")["id_token"]
    assert names(post(world, service, token)) == (
        derived_id("user", issuer.url, "alice"),
        ["team:sso/team-blue"],
    )


def test_a_refreshed_token_is_the_same_user(world: World, service: Service, issuer: RealIssuer) -> None:
    login = Login(issuer)
    first = login.by_code("bob")
    second = login.tokens(grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert second["access_token"] != first["access_token"]
    assert names(post(world, service, second["id_token"])) == (
        derived_id("user", issuer.url, "bob"),
        ["team:sso/team-red"],
    )


def test_a_token_for_another_client_is_refused(world: World, service: Service, issuer: RealIssuer) -> None:
    token = Login(issuer, OTHER_CLIENT_ID).by_code("alice")["id_token"]
    with captured_logs(middleware) as said:
        assert post(world, service, token).status_code == 401
    [line] = [each for each in said if each["event"] == "request"]
    assert line["reason"].startswith("aud: the token has ")
    assert f"'{OTHER_CLIENT_ID}'" in line["reason"]


def test_somebody_without_a_group_has_no_role(world: World, service: Service, issuer: RealIssuer) -> None:
    assert post(world, service, Login(issuer).by_code("carol")["id_token"]).status_code == 404


@pytest.mark.parametrize("issuer", ["oidc-provider"], indirect=True)
def test_a_log_in_by_device_code_gives_a_certificate(
    world: World, service: Service, issuer: RealIssuer
) -> None:
    token = Login(issuer).by_device("bob")["id_token"]
    assert names(post(world, service, token)) == (
        derived_id("user", issuer.url, "bob"),
        ["team:sso/team-red"],
    )
