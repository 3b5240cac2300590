"""Tokens from an OIDC issuer: what its users may do, and what they may not."""

import base64
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.authn.oidc import explanation
from clustercert.authn.oidc.issuers import derived_id
from clustercert.http import middleware
from clustercert.identity.tokens import ByPassword, ProjectScope
from clustercert.model import Actor, Origin
from clustercert.store.identity.entities import Reference
from clustercert.wiring import Components, open_components
from support import world as worlds
from support.accounts import enable
from support.log_capture import captured_logs
from support.oidc import IssuerServer, claims_of, new_key, signed
from support.service import Service
from support.wait import eventually
from support.world import World

ACTOR = Actor("cli:test", Origin("local", "0" * 32))
RULES = [
    {"name": "teams", "when": {"groups": ["sso/team-*"]}, "grant": {"groups": ["team:{group}"]}},
    {"name": "alice", "when": {"users": ["alice"]}, "grant": {"groups": ["built-in-alice"]}},
    {"name": "frozen", "when": {"groups": ["sso/frozen"]}, "deny": "Frozen."},
    {"name": "named", "when": {"groups": ["sso/named"]}, "grant": {"groups": ["n"]}},
    {"name": "admin", "when": {"roles": ["admin"]}, "grant": {"groups": ["clustercert:admins"]}},
]


@dataclass
class Site:
    """A service with one issuer, and an operator's access to its store."""

    world: World
    issuer: IssuerServer
    service: Service
    operator: Components

    @property
    def client(self) -> httpx2.Client:
        return self.service.client

    def bearer(self, **claims: object) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.issuer.token(**claims)}"}

    def user_id(self, subject: str) -> str:
        return derived_id("user", self.issuer.url, subject)

    def post(self, tail: str = "/clustercert", cluster: str = "plain", **claims: object) -> httpx2.Response:
        body = {"duration": 1}
        return self.client.post(self.world.path(cluster, tail), json=body, headers=self.bearer(**claims))

    def events(self, subject: str, *kinds: str) -> list[dict[str, Any]]:
        """The events of these kinds, by or about a user, once there are some of each kind."""

        def found() -> list[dict[str, Any]]:
            events = [each for each in self._events() if subject in (each["subject"], each["actor"])]
            return events if {each["kind"] for each in events} >= set(kinds) else []

        return [event for event in eventually(found) if event["kind"] in kinds]

    def _events(self) -> list[dict[str, Any]]:
        headers = self.world.people["operator"].headers
        found = self.client.get("/clustercert/v1/events", params={"limit": 500}, headers=headers).json()
        return cast("list[dict[str, Any]]", found["events"])


def issuers(world: World, issuer: IssuerServer) -> list[dict[str, Any]]:
    roles = [
        {"role": "member", "groups": ["team-*", "named"]},
        {"role": "admin", "claims": {"acr": ["gold"]}},
        {"role": "operator", "service": True, "groups": ["operators"]},
    ]
    return [issuer.settings(projects=[world.project.id], roles=roles)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    world = worlds.make(tmp_path_factory.mktemp("oidc"))
    with IssuerServer(world.folder).running() as issuer:
        identity = {"region": worlds.REGION, "issuers": issuers(world, issuer)}
        settings = world.settings(identity=identity, policy={"rules": RULES})
        with Service(settings).running() as service:
            opened = open_components(settings)
            yield Site(world, issuer, service, service.run(opened.__aenter__()))
            service.run(opened.__aexit__(None, None, None))


def certificate(response: httpx2.Response) -> x509.Certificate:
    assert response.status_code == 200, response.text
    pem = base64.b64decode(response.json()["users"][0]["user"]["client-certificate-data"])
    return x509.load_pem_x509_certificate(pem)


def names(found: x509.Certificate, kind: x509.ObjectIdentifier) -> list[str]:
    values = [str(each.value) for each in found.subject.get_attributes_for_oid(kind)]
    return [value for value in values if not value.startswith("clustercert:credential:")]


def test_a_token_gets_a_certificate_for_the_users_groups(site: Site) -> None:
    found = certificate(site.post(groups=["team-blue", "team-red", "others"]))
    assert names(found, NameOID.COMMON_NAME) == [site.user_id("f3b1")]
    assert names(found, NameOID.ORGANIZATION_NAME) == ["team:sso/team-blue", "team:sso/team-red"]


def test_the_token_is_also_accepted_as_x_auth_token(site: Site) -> None:
    headers = {"X-Auth-Token": site.issuer.token()}
    response = site.client.post(site.world.path(), json={"duration": 1}, headers=headers)
    assert names(certificate(response), NameOID.COMMON_NAME) == [site.user_id("f3b1")]


def test_the_audit_log_names_issuer_and_method(site: Site) -> None:
    certificate(site.post(sub="audited"))
    [event] = site.events(site.user_id("audited"), "certificate.issued")
    said = event["detail"]["caller"]
    assert (said["issuer"], said["auth_method"], said["name"]) == (site.issuer.url, "oidc", "sso/alice")
    assert (said["domain_name"], said["groups"][0]["name"]) == ("sso", "sso/team-blue")
    assert (said["domain_id"], len(said["credential_id"])) == (derived_id("domain", site.issuer.url), 64)


def test_a_failed_log_in_is_mute_and_its_reason_is_in_the_log(site: Site) -> None:
    text = signed(claims_of(site.issuer.url, aud="other"), site.issuer.keys[-1])
    with captured_logs(middleware) as said:
        response = site.client.post(site.world.path(), headers={"Authorization": f"Bearer {text}"})
    unknown = site.client.post(site.world.path(), headers={"X-Auth-Token": "x" * 43})
    assert response.status_code == 401
    assert response.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    [line] = [each for each in said if each["event"] == "request"]
    assert line["reason"] == "aud: the token has 'other'; expected: clustercert"
    assert text not in str(said)


def test_a_user_without_a_role_sees_nothing(site: Site) -> None:
    assert site.post(groups=[]).status_code == 404
    assert site.post(cluster="foreign", acr="gold").status_code == 404


def test_an_issuer_gives_roles_in_its_projects_only(site: Site) -> None:
    response = site.client.get("/v3/projects", headers=site.bearer(acr="gold"))
    assert [project["id"] for project in response.json()["projects"]] == [site.world.project.id]
    other = site.client.get(f"/v3/projects/{site.world.other_project.id}", headers=site.bearer(acr="gold"))
    own = site.client.get(f"/v3/projects/{site.world.project.id}", headers=site.bearer(acr="gold"))
    assert (other.status_code, own.status_code) == (404, 200)


def test_a_service_role_needs_its_condition(site: Site) -> None:
    for groups, status in ((["operators"], 200), (["Operators"], 403), (["team-blue"], 403)):
        headers = site.bearer(groups=groups)
        assert site.client.get("/clustercert/v1/events", headers=headers).status_code == status


def test_a_user_of_an_issuer_is_not_the_built_in_one_of_that_name(site: Site) -> None:
    found = certificate(site.post(preferred_username="alice", groups=["team-blue"]))
    assert names(found, NameOID.ORGANIZATION_NAME) == ["team:sso/team-blue"]
    admin = site.world.people["admin"].user
    for claims in ({"sub": admin.id}, {"preferred_username": admin.id}, {"preferred_username": admin.name}):
        assert names(certificate(site.post(**claims)), NameOID.COMMON_NAME) != [admin.id]


def test_two_users_of_an_issuer_with_one_name_differ_in_their_last_login(site: Site) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    for subject in ("repository-old", "repository-new"):
        certificate(site.post(sub=subject, preferred_username="group/project"))
    operator = site.world.people["operator"].headers
    found = site.client.get(
        "/clustercert/v1/users-by-name", params={"name": "sso/group/project"}, headers=operator
    ).json()["users"]
    assert {each["id"] for each in found} == {site.user_id("repository-old"), site.user_id("repository-new")}
    for each in found:
        assert before <= datetime.fromisoformat(each["last_login_at"]) <= datetime.now(UTC)


def test_a_claimed_role_or_project_is_no_role(site: Site) -> None:
    claimed: dict[str, Any] = {
        "roles": ["admin", "operator"],
        "project": site.world.other_project.id,
        "service_roles": ["operator"],
    }
    assert site.post(cluster="foreign", **claimed).status_code == 404
    assert site.client.get("/clustercert/v1/events", headers=site.bearer(**claimed)).status_code == 403


def test_a_user_of_an_issuer_gets_no_access_key_and_no_token(site: Site) -> None:
    body: dict[str, Any] = {"auth": {"identity": {"methods": ["token"]}}}
    response = site.client.post("/v3.0/OS-CREDENTIAL/securitytokens", json=body, headers=site.bearer())
    assert response.status_code == 403
    body["auth"]["identity"]["token"] = {"id": site.issuer.token()}
    assert site.client.post("/v3/auth/tokens", json=body).status_code == 401


def test_clustercertrevoke_takes_the_user_id_and_the_common_name(site: Site) -> None:
    identity = {"region": worlds.REGION, "issuers": issuers(site.world, site.issuer)}
    policy = {"rules": RULES, "username": "{user.name}"}
    with Service(site.world.settings(identity=identity, policy=policy)).running() as service:
        _revoke_by_id_and_by_name(replace(site, service=service))


def _revoke_by_id_and_by_name(site: Site) -> None:
    for sub, by_name in (("by-id", False), ("by-name", True)):
        changed: dict[str, Any] = {"sub": sub, "preferred_username": sub, "groups": ["named"]}
        found = certificate(site.post(**changed))
        [common_name] = names(found, NameOID.COMMON_NAME)
        assert common_name == f"sso/{sub}"
        user_id = common_name if by_name else site.user_id(sub)
        path = site.world.path("plain", "/clustercertrevoke")
        response = site.client.post(path, json={"userId": user_id}, headers=site.bearer(**changed))
        assert response.status_code == 200
        [event] = site.events(site.user_id(sub), "user.revoked")
        assert event["detail"]["user_id"] == site.user_id(sub)


def test_a_user_revokes_only_their_own_certificates(site: Site) -> None:
    path = site.world.path("plain", "/clustercertrevoke")
    response = site.client.post(path, json={"userId": site.user_id("other")}, headers=site.bearer())
    assert response.status_code == 403


def test_a_blocked_user_is_out_and_their_certificates_are_revoked(site: Site) -> None:
    claims = {"sub": "mallory"}
    certificate(site.post(**claims))
    user_id, federation = site.user_id("mallory"), site.operator.identity.federation
    site.service.run(federation.block(user_id, actor=ACTOR))
    eventually(lambda: site.post(**claims).status_code == 401)
    assert len(site.events(user_id, "user.blocked", "user.revoked")) == 2
    headers = site.world.people["operator"].headers
    path = f"/clustercert/v1/projects/{site.world.project.id}/certificates"
    listed = site.client.get(path, params={"user": user_id}, headers=headers).json()["certificates"]
    assert [each["state"] for each in listed] == ["revoked"]
    site.service.run(federation.unblock(user_id, actor=ACTOR))
    eventually(lambda: site.post(**claims).status_code == 200)


def test_a_disabled_project_ends_the_roles_of_federated_users(site: Site) -> None:
    directory = site.operator.identity.directory
    certificate(site.post())
    site.service.run(enable(directory, site.world.project, enabled=False, actor=ACTOR))
    eventually(lambda: site.post().status_code == 404)
    site.service.run(enable(directory, site.world.project, enabled=True, actor=ACTOR))
    eventually(lambda: site.post().status_code == 200)


def test_an_issuer_with_the_name_of_a_domain_is_out(
    service_with: Callable[..., Service], world: World, tmp_path: Path
) -> None:
    name = world.project.domain.name
    with IssuerServer(tmp_path).running() as issuer:
        identity = {"region": worlds.REGION, "issuers": [issuer.settings(name=name, domain=name)]}
        client = service_with(identity=identity).client
        headers = {"Authorization": f"Bearer {issuer.token()}"}
        assert client.get("/v3/auth/projects", headers=headers).status_code == 401


def test_a_new_domain_or_project_counts_for_cached_tokens(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    operator = world.people["operator"].headers | {"Content-Type": "application/json"}
    domain = world.project.domain.name
    with IssuerServer(tmp_path).running() as issuer:
        one = issuer.settings(name="later", domain=domain, roles=[{"role": "member"}])
        settings = world.settings(identity={"region": worlds.REGION, "issuers": [one]})
        with Service(settings).running() as service:
            client = service.client
            headers = {"Authorization": f"Bearer {issuer.token()}"}

            def projects() -> int:
                return len(client.get("/v3/projects", headers=headers).json().get("projects", []))

            def add(path: str) -> None:
                response = client.request("PUT", f"/clustercert/v1/{path}", content=b"{}", headers=operator)
                response.raise_for_status()

            async def add_elsewhere() -> None:
                # Another process, whose settings don't have the issuer.
                async with open_components(world.settings()) as components:
                    await components.identity.directory.create_domain("later", actor=ACTOR)

            assert projects() == 2
            add(f"projects/added?domain={domain}")
            eventually(lambda: projects() == 3)
            service.run(add_elsewhere())
            eventually(lambda: client.get("/v3/auth/projects", headers=headers).status_code == 401)


def test_no_new_domain_has_the_name_of_an_issuer(site: Site) -> None:
    headers = site.world.people["operator"].headers | {"Content-Type": "application/json"}
    for query in ("", "?dryRun=All"):
        response = site.client.put(f"/clustercert/v1/domains/sso{query}", content=b"{}", headers=headers)
        assert response.status_code == 409
        assert "An issuer in the settings has the name sso" in response.json()["message"]


def test_a_domain_binds_an_issuer_to_its_projects(
    service_with: Callable[..., Service], world: World, tmp_path: Path
) -> None:
    grant = {"role": "member"}
    with IssuerServer(tmp_path).running() as issuer:
        for domain, count in ((world.project.domain.name, 2), (world.project.domain.id, 2), ("other", 0)):
            one = issuer.settings(domain=domain, roles=[grant])
            client = service_with(identity={"region": worlds.REGION, "issuers": [one]}).client
            headers = {"Authorization": f"Bearer {issuer.token()}"}
            assert len(client.get("/v3/projects", headers=headers).json()["projects"]) == count


@pytest.mark.parametrize(("subject", "status"), [(["terraform_workspace_id"], 200), (["sub"], 403)])
def test_all_phases_of_a_pipeline_get_certificates_with_its_name(
    service_with: Callable[..., Service], world: World, tmp_path: Path, subject: list[str], status: int
) -> None:
    claims = {
        "terraform_organization_name": "my-org",
        "terraform_workspace_name": "my-ws",
        "terraform_workspace_id": f"ws-{status}",
    }
    with IssuerServer(tmp_path).running() as issuer:
        one = issuer.settings(
            name=f"tfc{status}",
            projects=[world.project.id],
            roles=[{"role": "member"}],
            subject=subject,
            username=["terraform_organization_name", "terraform_workspace_name"],
        )
        rules = [{"name": "all", "grant": {"groups": ["team:all"]}}]
        policy = {"username": "{user.name}", "rules": rules}
        client = service_with(identity={"region": worlds.REGION, "issuers": [one]}, policy=policy).client

        def run(phase: str) -> httpx2.Response:
            sub = f"organization:my-org:project:Default Project:workspace:my-ws:run_phase:{phase}"
            headers = {"Authorization": f"Bearer {issuer.token(sub=sub, **claims)}"}
            return client.post(world.path(), json={"duration": 1}, headers=headers)

        assert names(certificate(run("plan")), NameOID.COMMON_NAME) == [f"tfc{status}/my-org/my-ws"]
        assert run("apply").status_code == status


def test_a_rotated_key_costs_no_failed_log_in_under_load(site: Site) -> None:
    """Every request has its own token, and the issuer signs with the new key as soon as it is published."""
    client, path = site.client, "/v3/auth/projects"

    def log_in(number: int) -> int:
        if number == 20:
            site.issuer.publish(*site.issuer.keys, new_key(f"rotated-{time.time_ns()}"))
        return client.get(path, headers=site.bearer(sub=f"user-{number}")).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(log_in, range(80))) == {200}


def test_without_issuers_no_jwt_is_accepted(client: httpx2.Client, site: Site) -> None:
    assert client.get("/v3/auth/projects", headers=site.bearer()).status_code == 401


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "KEYS_SECONDS", 60)


def get_caller(site: Site, **claims: object) -> httpx2.Response:
    return site.client.get("/clustercert/v1/caller", headers=site.bearer(**claims))


def explained(site: Site, text: str, who: str = "operator") -> dict[str, Any]:
    headers = site.world.people[who].headers
    response = site.client.post("/clustercert/v1/identity/explain", json={"token": text}, headers=headers)
    assert response.status_code == 200, response.text
    return cast("dict[str, Any]", response.json())


def test_a_user_without_a_role_sees_the_claims_that_rules_read(site: Site) -> None:
    body = get_caller(site, sub="roleless", groups=["others"], acr="silver").json()
    assert (body["projects"], body["missed_role_claims"]) == (
        [],
        [
            {"claim": "groups", "value": "others", "is_met": None},
            {"claim": "acr", "value": "silver", "is_met": None},
        ],
    )
    assert get_caller(site, groups=["team-blue"]).json()["missed_role_claims"] is None
    assert get_caller(site, groups=["operators"]).json()["missed_role_claims"] is None
    headers = site.world.people["stranger"].headers
    assert site.client.get("/clustercert/v1/caller", headers=headers).json()["missed_role_claims"] is None


def test_operators_see_what_a_token_becomes(site: Site) -> None:
    said = explained(site, site.issuer.token(groups=["team-blue"], acr="gold"))
    assert (said["accepted"], said["failed"], said["issuer"]) == (True, None, "sso")
    assert said["missing"] == []
    assert [check["check"] for check in said["checks"]] == [
        *("signature", "aud", "exp", "nbf", "iat", "events", "mapping"),
    ]
    assert said["user"] | {"expires_at": ""} == {
        "id": site.user_id("f3b1"),
        "name": "sso/alice",
        "groups": ["sso/team-blue"],
        "roles": {site.world.project.id: ["admin", "member"]},
        "service_roles": [],
        "expires_at": "",
    }


@pytest.mark.parametrize(
    ("claims", "failed", "came", "expected"),
    [
        ({"aud": "account"}, "aud", "'account'", "clustercert"),
        ({"exp": 7}, "exp", "1970-01-01T00:00:07Z", "a time after"),
        ({"preferred_username": None}, "preferred_username", "", "a string or number"),
        ({"iss": "https://other.example"}, "iss", "'https://other.example'", "exactly the URL of an issuer"),
    ],
)
def test_operators_see_which_check_of_a_token_fails(
    site: Site, claims: dict[str, Any], failed: str, came: str, expected: str
) -> None:
    text = signed(claims_of(site.issuer.url) | claims, site.issuer.keys[-1])
    if failed == "preferred_username":
        text = site.issuer.token(**claims)
    said = explained(site, text)
    assert (said["accepted"], said["failed"], said["user"]) == (False, failed, None)
    [check] = [each for each in said["checks"] if not each["passed"]]
    assert (check["came"], check["expected"][: len(expected)]) == (came, expected)


def test_an_explanation_names_the_issuer_of_a_refused_token(site: Site) -> None:
    said = explained(site, signed(claims_of(site.issuer.url), new_key("first")))
    assert (said["failed"], said["issuer"], said["user"]) == ("signature", "sso", None)
    assert f"an issuer in the settings: {site.issuer.url}" in str(
        explained(site, site.issuer.token(iss="https://other.example"))
    )


def test_an_explanation_writes_nothing(site: Site) -> None:
    text = site.issuer.token(aud="account", sub="unwritten")
    with captured_logs(middleware) as said:
        explained(site, text)
    assert text not in str(said)
    assert "account" not in str(said)
    assert not [each for each in site._events() if "unwritten" in str(each)]


def test_an_explanation_names_a_blocked_user(site: Site) -> None:
    headers, user_id = site.world.people["operator"].headers, site.user_id("blocked")
    path = f"/clustercert/v1/users/{user_id}"
    assert site.client.post(f"{path}/block", headers=headers).status_code == 200
    assert site.client.post(f"{path}/block", headers=headers).status_code == 409
    said = explained(site, site.issuer.token(sub="blocked"))
    assert (said["failed"], said["checks"][-1]["came"]) == ("user", "the user is blocked")
    assert site.client.post(f"{path}/unblock", headers=headers).status_code == 204
    assert site.client.post(f"{path}/unblock", headers=headers).status_code == 404
    assert explained(site, site.issuer.token(sub="blocked"))["accepted"]


def test_blocking_a_user_of_the_built_in_identity_disables_them(site: Site) -> None:
    headers, who = site.world.people["operator"].headers, site.world.people["admin"]
    # Another test disables the project, which ends the tokens for it.
    proof = ByPassword(Reference(id=who.user.id), who.password)
    scope = ProjectScope(Reference(id=site.world.project.id))
    token = {"X-Auth-Token": site.service.run(site.operator.identity.tokens.issue(proof, scope)).text}
    issued = site.client.post(site.world.path("plain"), json={"duration": 1}, headers=token)
    assert issued.status_code == 200
    path = f"/clustercert/v1/users/{who.user.id}"
    said = site.client.post(f"{path}/block", headers=headers).json()
    assert (said["name"], said["issuer"]) == ("admin", "built-in")
    (cluster,) = said["clusters"]
    assert (cluster["name"], cluster["enforced_by"]) == ("plain", [])
    assert site.client.post(f"{path}/block", headers=headers).status_code == 409
    eventually(lambda: site.client.get("/v3/auth/projects", headers=token).status_code == 401)
    assert len(site.events(who.user.id, "user.disabled", "user.revoked")) == 2
    assert site.client.post(f"{path}/unblock", headers=headers).status_code == 204
    assert site.client.post(f"{path}/unblock", headers=headers).status_code == 404
    assert site.client.post("/clustercert/v1/users/alice/block", headers=headers).status_code == 400


def test_the_decision_on_a_user_of_the_issuer_is_explained_with_their_last_request(site: Site) -> None:
    user_id = site.user_id("asked")
    assert explained_decision(site, user_id).status_code == 404
    certificate(site.post(sub="asked", groups=["team-blue"]))
    first = explained_decision(site, user_id).json()
    assert first["would_sign"]["organizations"][:-1] == ["team:sso/team-blue"]
    assert (first["user"]["name"], first["auth_method"]) == ("sso/alice", "oidc")
    # A refused request counts, too.
    assert site.post(sub="asked", groups=["team-blue", "frozen"]).status_code == 403
    refused = eventually(
        lambda: (found := explained_decision(site, user_id).json())["status"] == 403 and found
    )
    assert refused["seen_at"] >= first["seen_at"]
    headers = site.world.people["operator"].headers
    site.client.post(f"/clustercert/v1/users/{user_id}/block", headers=headers)
    blocked = explained_decision(site, user_id).json()
    assert (blocked["allowed"], blocked["status"]) == (False, 401)
    assert "is disabled or blocked" in blocked["message"]
    assert explained_decision(site, site.world.people["reader"].user.id).json()["seen_at"] is None


def explained_decision(site: Site, user_id: str) -> httpx2.Response:
    query = {"cluster": site.world.clusters["plain"].id, "user": user_id}
    headers = site.world.people["operator"].headers
    return site.client.get("/clustercert/v1/policy/explain", params=query, headers=headers)


def test_a_user_is_found_by_name_after_their_first_login(site: Site) -> None:
    headers, path = site.world.people["operator"].headers, "/clustercert/v1/users-by-name"

    def named(name: str) -> list[dict[str, str]]:
        found = site.client.get(path, params={"name": name}, headers=headers).json()["users"]
        return [{field: each[field] for field in ("id", "name", "domain", "issuer")} for each in found]

    assert named("sso/nadia") == []
    explained(site, site.issuer.token(sub="n1", preferred_username="nadia"))
    assert named("sso/nadia") == []
    for _ in range(2):
        assert get_caller(site, sub="n1", preferred_username="nadia").status_code == 200
    known = {"domain": "sso", "issuer": site.issuer.url}
    first = {"id": site.user_id("n1"), "name": "sso/nadia", **known}
    assert named("sso/nadia") == [first]
    # Another person of the same name, and then a new name of the first one.
    get_caller(site, sub="n2", preferred_username="nadia")
    second = {"id": site.user_id("n2"), "name": "sso/nadia", **known}
    assert named("sso/nadia") == sorted([first, second], key=lambda each: each["id"])
    get_caller(site, sub="n1", preferred_username="nadia.b")
    assert named("sso/nadia") == [second]
    assert named("sso/nadia.b") == [first | {"name": "sso/nadia.b"}]


def test_an_operator_of_an_issuer_names_the_domain(site: Site) -> None:
    headers = site.bearer(groups=["operators"])
    path = f"/clustercert/v1/users/{site.world.people['reader'].user.name}"
    assert site.client.get(path, headers=headers).status_code == 400
    domain = {"domain": site.world.project.domain.name}
    assert site.client.get(path, params=domain, headers=headers).status_code == 200
