"""Tokens of a Keystone: what its users may do, and what they may not."""

import base64
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from cryptography.x509.oid import NameOID

from clustercert.http import middleware
from clustercert.model import Actor, Origin
from support import world as worlds
from support.keystone_double import DOMAIN, KeystoneDouble, rfc3339
from support.keystone_site import RULES, Site, groups, names, running
from support.log_capture import captured_logs
from support.service import Service
from support.wait import eventually
from support.world import World

ACTOR = Actor("cli:test", Origin("local", "0" * 32))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("keystone")) as found:
        yield found


@pytest.mark.parametrize("header", ["X-Auth-Token", "Authorization"])
def test_a_token_gets_a_certificate_for_the_users_roles_and_groups(site: Site, header: str) -> None:
    user_id = site.user("member", groups=("team-blue", "others"))
    response = site.post(site.token(user_id), header=header)
    assert names(response, NameOID.COMMON_NAME) == [user_id]
    assert groups(response) == ["clustercert:members", "team:keystone/acme/team-blue"]


def test_the_ledger_and_the_audit_log_name_the_authenticator(site: Site) -> None:
    user_id = site.user("member")
    assert site.post(site.token(user_id)).status_code == 200
    [event] = site.events(user_id, "certificate.issued")
    caller = event["detail"]["caller"]
    assert (caller["issuer"], caller["auth_method"]) == (site.keystone.url, "keystone")
    assert caller["domain_name"] == "keystone"
    assert caller["name"].startswith("keystone/acme/user-")


def test_a_user_from_ldap_has_an_id_of_64_digits(site: Site) -> None:
    user_id = site.keystone.add_user("ldap", secrets.token_hex(32))
    site.keystone.roles[user_id, site.world.project.id] = ["member"]
    assert names(site.post(site.token(user_id)), NameOID.COMMON_NAME) == [user_id]


def test_a_long_token_with_the_members_that_open_telekom_cloud_documents(site: Site) -> None:
    """Source: IAM API reference, "Verifying a Token and Returning a Valid Token"."""
    user_id = site.user()
    roles = [{"id": "0", "name": "op_gated_x"}, {"id": "5", "name": "member"}]
    body = site.keystone.tokens[site.token(user_id, roles=roles, catalog=[], mfa_authn_at="", assumed_by={})]
    body["user"]["password_expires_at"] = "2016-11-06T15:32:17.000000"
    text = "MIIatAYJKoZIhvcNAQcCoIIapTCCGqEC" + "Qx+/" * 2250
    site.keystone.tokens[text] = body
    assert names(site.post(text), NameOID.COMMON_NAME) == [user_id]
    asked = [each for each in site.keystone.requests if each.headers.get("x-subject-token") == text]
    assert [each.query for each in asked] == [{"nocatalog": ["true"]}]


def test_a_user_of_keystone_is_not_the_built_in_one_of_that_name(site: Site) -> None:
    user_id = site.keystone.add_user("alice")
    site.keystone.roles[user_id, site.world.project.id] = ["member"]
    assert groups(site.post(site.token(user_id))) == ["clustercert:members"]


def test_a_user_of_keystone_cannot_have_the_id_of_a_built_in_one(site: Site) -> None:
    user_id = site.keystone.add_user("twin", site.world.people["admin"].user.id)
    site.keystone.roles[user_id, site.world.project.id] = ["admin"]
    assert site.post(site.token(user_id)).status_code == 401


@pytest.mark.usefixtures("quick_propagation")
def test_a_user_who_logs_out_everywhere_needs_a_newer_token(site: Site) -> None:
    user_id = site.user("member")
    old, other = site.token(user_id), site.token(site.user("member"))
    assert (site.post(old).status_code, site.post(other).status_code) == (200, 200)
    said = site.client.post("/clustercert/v1/caller/logout", headers={"X-Auth-Token": old}).json()
    assert (said["issuer"], said["renewals_end"]) == (site.keystone.url, False)
    assert (site.post(old).status_code, site.post(other).status_code) == (401, 200)
    # Keystone's clock may be ahead by a minute.
    soon = site.token(user_id, issued_at=rfc3339(datetime.now(UTC) + timedelta(seconds=30)))
    assert site.post(soon).status_code == 401
    later = site.token(user_id, issued_at=rfc3339(datetime.now(UTC) + timedelta(seconds=61)))
    assert site.post(later).status_code == 200


@pytest.mark.parametrize(
    "scope",
    [
        {"project": None, "roles": None},
        {"project": None, "domain": DOMAIN},
        {"project": None, "system": {"all": True}},
        {"project": {"id": "f" * 32, "name": "eu-de", "domain": DOMAIN}},
    ],
)
def test_a_token_without_a_project_or_for_another_one_has_no_role_here(
    site: Site, scope: dict[str, object]
) -> None:
    token = site.token(site.user("member"), **scope)
    assert site.post(token).status_code == 404


def test_a_project_that_keystone_is_not_bound_to_is_out_of_reach(site: Site) -> None:
    user_id = site.user("admin", project=site.world.other_project.id)
    token = site.keystone.add_token(user_id, site.world.other_project.id)
    assert site.post(token, "foreign").status_code == 404
    assert site.post(token).status_code == 404


@pytest.mark.parametrize(("roles", "status"), [(["admin"], 200), (["reader"], 403), (["operator"], 403)])
def test_only_a_mapped_role_in_the_scope_system_gives_a_service_role(
    site: Site, roles: list[str], status: int
) -> None:
    listed = [{"id": "1" * 32, "name": role} for role in roles]
    token = site.token(site.user(), project=None, system={"all": True}, roles=listed)
    headers = {"X-Auth-Token": token}
    assert site.client.get("/clustercert/v1/events", headers=headers).status_code == status


@pytest.mark.parametrize("scope", [{}, {"project": None, "domain": DOMAIN}, {"system": {"all": True}}])
def test_an_admin_of_a_project_or_domain_is_no_operator(site: Site, scope: dict[str, object]) -> None:
    token = site.token(site.user("admin"), is_admin_project=True, **scope)
    response = site.client.get("/clustercert/v1/events", headers={"X-Auth-Token": token})
    assert response.status_code == 403


def test_an_application_credential_has_only_its_roles(site: Site) -> None:
    user_id = site.user("admin", "member")
    restricted = {
        "methods": ["application_credential"],
        "roles": [{"id": "2" * 32, "name": "member"}],
        "application_credential": {"id": "b" * 32, "name": "ci", "restricted": True},
    }
    assert groups(site.post(site.token(user_id, **restricted))) == ["apps", "clustercert:members"]
    assert groups(site.post(site.token(user_id))) == ["clustercert:admins", "clustercert:members"]


@pytest.mark.parametrize(
    "delegation",
    [
        {"OS-TRUST:trust": {"id": "1", "impersonation": True}},
        {"OS-OAUTH1": {"access_token_id": "1", "consumer_id": "2"}},
        {"oauth2_credential": {"x5t#S256": "abc"}},
        {"application_credential": {"id": "1", "name": "x", "restricted": True, "access_rules": []}},
        {"application_credential": {"id": "1", "name": "x", "access_rules": [{"path": "/v2.1/servers"}]}},
    ],
)
def test_a_token_with_limits_that_a_certificate_cannot_have_is_refused(
    site: Site, delegation: dict[str, object]
) -> None:
    assert site.post(site.token(site.user("member"), **delegation)).status_code == 401


@pytest.mark.parametrize(
    "text", ["gAAAAAnobody", "x-y", "MIIKZ" + "+/" * 3000, "g" * 16384, "g" * 16385, "g\tA"]
)
def test_an_unknown_token_is_a_mute_401(site: Site, text: str) -> None:
    with captured_logs(middleware) as said:
        response = site.post(text)
    assert response.status_code == 401, response.text
    assert response.json()["errorMessage"] == "Authorization failed."
    assert text not in str(said)


@pytest.mark.parametrize(
    "text",
    ["A" * 43, "a_-9" + "A" * 39, "x" * 43],
)
def test_a_token_of_the_built_in_form_never_reaches_keystone(site: Site, text: str) -> None:
    before = len(site.keystone.requests)
    assert site.post(text).status_code == 401
    assert len(site.keystone.requests) == before


def test_a_jwt_of_keystone_reaches_it_and_others_do_not(site: Site) -> None:
    def jwt(payload: bytes) -> str:
        parts = (b'{"alg":"ES256"}', payload, b"signature")
        return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts)

    user_id = site.user("member")
    text = jwt(b'{"sub":"x","openstack_audit_ids":["a"]}')
    site.keystone.tokens[text] = site.keystone.tokens[site.token(user_id)]
    assert names(site.post(text), NameOID.COMMON_NAME) == [user_id]
    before = len(site.keystone.requests)
    for other in (jwt(b'{"iss":"https://sso.example.com"}'), "a.b", "a.!!!.c", "a..c", "a.b.c.d"):
        assert site.post(other).status_code == 401
    assert len(site.keystone.requests) == before


def test_a_token_that_expires_between_two_requests_is_refused(site: Site) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    token = site.token(site.user("member"), expires_at=rfc3339(soon))
    site.post(token)
    eventually(lambda: datetime.now(UTC) > soon)
    assert site.post(token).status_code == 401


@pytest.mark.parametrize("seconds", [-1, -300, -90000])
def test_a_token_that_has_expired_by_our_clock_is_refused(site: Site, seconds: int) -> None:
    then = datetime.now(UTC) + timedelta(seconds=seconds)
    assert site.post(site.token(site.user("member"), expires_at=rfc3339(then))).status_code == 401


def test_a_blocked_user_is_out_and_their_certificates_are_revoked(site: Site) -> None:
    user_id = site.user("member")
    token = site.token(user_id)
    assert site.post(token).status_code == 200
    federation = site.operator.identity.federation
    site.service.run(federation.block(user_id, actor=ACTOR))
    eventually(lambda: site.post(token).status_code == 401)
    assert site.events(user_id, "user.revoked")
    site.service.run(federation.unblock(user_id, actor=ACTOR))
    eventually(lambda: site.post(token).status_code == 200)


def test_users_may_revoke_their_own_certificates_by_their_id(site: Site) -> None:
    user_id, other = site.user("member"), site.user("member")
    token = site.token(user_id)
    assert site.post(token).status_code == 200
    path = site.world.path(tail="/clustercertrevoke")
    for revoked, status in ((other, 403), (user_id, 200)):
        response = site.client.post(path, json={"userId": revoked}, headers={"X-Auth-Token": token})
        assert response.status_code == status, response.text


def test_a_user_of_keystone_gets_no_access_key_and_no_built_in_token(site: Site) -> None:
    token = site.token(site.user("admin"))
    temporary = {"auth": {"identity": {"methods": ["token"], "token": {"id": token}}}}
    path = "/v3.0/OS-CREDENTIAL/securitytokens"
    response = site.client.post(path, json=temporary, headers={"X-Auth-Token": token})
    assert response.status_code in (401, 403)
    assert site.client.post("/v3/auth/tokens", json=temporary).status_code == 401


def test_settings_narrow_users_and_rename_roles(service_with: Callable[..., Service], world: World) -> None:
    with KeystoneDouble().running() as keystone:
        user_id = keystone.add_user("alice", groups=("team-blue",))
        keystone.roles[user_id, world.project.id] = ["te_admin", "member"]

        def post(**changed: object) -> httpx2.Response:
            own = keystone.settings(projects=[world.project.id], **changed)
            settings = {"identity": {"region": worlds.REGION, "keystone": own}, "policy": {"rules": RULES}}
            client = service_with(**settings).client
            token = keystone.add_token(user_id, world.project.id)
            return client.post(world.path(), json={"duration": 1}, headers={"X-Auth-Token": token})

        assert groups(post(roles={"te_admin": "admin"})) == [
            "clustercert:admins",
            "team:keystone/acme/team-blue",
        ]
        assert groups(post(groups=False)) == ["clustercert:members"]
        assert groups(post(prefix_names=False)) == ["built-in-alice", "clustercert:members"]
        assert post(user_domains=["other"]).status_code == 401
        assert post(user_domains=[DOMAIN["id"]]).status_code == 200


def test_without_the_built_in_identity_its_credentials_and_paths_are_gone(
    service_with: Callable[..., Service], world: World
) -> None:
    with KeystoneDouble().running() as keystone:
        user_id = keystone.add_user("alice")
        keystone.roles[user_id, world.project.id] = ["member"]
        own = keystone.settings(projects=[world.project.id])
        client = service_with(
            identity={"region": worlds.REGION, "keystone": own, "built_in": False}, policy={"rules": RULES}
        ).client
        token = {"X-Auth-Token": keystone.add_token(user_id, world.project.id)}
        assert client.post(world.path(), json={"duration": 1}, headers=token).status_code == 200
        caller = client.get("/clustercert/v1/caller", headers=token).json()
        assert (caller["id"], caller["method"], caller["issuer"]) == (user_id, "keystone", keystone.url)
        assert [project["id"] for project in caller["projects"]] == [world.project.id]
        built_in = world.people["admin"].headers
        assert client.post(world.path(), json={"duration": 1}, headers=built_in).status_code == 401
        for path in ("/v3", "/v3/auth/tokens", "/v3/projects", "/v3/auth/catalog", "/"):
            assert client.get(path, headers=token).status_code == 404, path
        assert client.post("/v3/auth/tokens", json={}).status_code == 404
        # The versions of CCE are still there.
        assert client.get("/", headers={"User-Agent": "huaweicloud-usdk-go/3.0"}).status_code == 200
        assert not [path for path in client.get("/openapi.json").json()["paths"] if path.startswith("/v3")]


def test_an_admin_assigns_no_higher_role_by_its_id(site: Site) -> None:
    """Keystone can call a role like the id of another one here."""
    operator = site.world.people["operator"].headers
    role = site.client.put("/clustercert/v1/roles/deployer", headers=operator).raise_for_status().json()
    headers = {"X-Auth-Token": site.token(site.user("admin", role["id"]))}
    reader, project = site.world.people["reader"].user.id, site.world.project.id
    path = f"/clustercert/v1/projects/{project}/assignments"
    assert site.client.put(f"{path}/member/users/{reader}", headers=headers).status_code == 201
    assert site.client.put(f"{path}/{role['id']}/users/{reader}", headers=headers).status_code == 403
    found = site.client.get(path, headers=headers).json()["assignments"]
    assert "deployer" not in {each["role"] for each in found}
