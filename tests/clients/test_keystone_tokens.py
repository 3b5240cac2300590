"""Tokens of a real Keystone: who gets a certificate with them, and what ends them."""

import secrets
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.x509.oid import NameOID

from support.keystone_installation import Service, Site
from support.kubeconfig_checks import own_group, values
from support.real_keystone.people import SYSTEM, in_project
from support.wait import eventually


def test_a_token_for_the_project_gets_a_certificate(site: Site, service: Service) -> None:
    person = site.person()

    answer = service.issue(site.token(person))

    assert answer.status_code == 200, answer.text
    leaf = service.leaf(answer.json())
    assert values(leaf, NameOID.COMMON_NAME) == [person.id]
    assert values(leaf, NameOID.ORGANIZATION_NAME) == ["members", own_group(leaf)]


def test_the_right_to_read_is_all_that_the_service_has(site: Site) -> None:
    """So the other tests show that it suffices."""
    found = site.admin.call("GET", f"role_assignments?include_names&user.id={site.reader.id}")[
        "role_assignments"
    ]

    assert [(each["role"]["name"], each["scope"]) for each in found] == [
        ("reader", {"system": {"all": True}})
    ]


def test_groups_of_keystone_reach_the_policy(site: Site, service: Service) -> None:
    person = site.person()
    domain = site.admin.call("GET", f"domains/{site.domain_id}")["domain"]["name"]
    group = site.admin.new("group", name="team-blue", domain_id=site.domain_id)
    site.admin.add_to_group(group, person)

    leaf = service.leaf(service.issue(site.token(person)).json())

    assert values(leaf, NameOID.ORGANIZATION_NAME)[0] == f"team:keystone/{domain}/team-blue"


def test_a_role_through_a_group_counts(site: Site, service: Service) -> None:
    person = site.person(role=None)
    group = site.admin.new("group", domain_id=site.domain_id)
    site.admin.grant("member", f"groups/{group}", f"projects/{site.project_id}")
    site.admin.add_to_group(group, person)

    assert service.issue(site.token(person)).status_code == 200


@pytest.mark.parametrize("scope", ["other project", "domain", "nothing", "system"])
def test_another_scope_opens_no_project(site: Site, service: Service, scope: str) -> None:
    person = site.person()
    who = f"users/{person.id}"
    site.admin.grant("member", who, f"projects/{site.other_project_id}")
    site.admin.grant("admin", who, f"domains/{site.domain_id}")
    site.admin.grant("admin", who, "system")
    scopes = {
        "other project": in_project(site.other_project_id),
        "domain": {"domain": {"id": site.domain_id}},
        "nothing": "unscoped",
        "system": SYSTEM,
    }
    token = site.admin.log_in(person.identity, scopes[scope])

    answer = service.issue(token)

    assert (answer.status_code, answer.json()["error_code"]) == (404, "CCE.01404001")
    assert service.http.get("/clustercert/v1/users", headers={"X-Auth-Token": token}).status_code == 403


def test_the_administrator_of_keystone_is_nobody_here(site: Site, service: Service) -> None:
    assert service.issue(site.admin.token).status_code == 404


def test_a_token_for_another_project_takes_no_certificate_of_ours(site: Site, service: Service) -> None:
    """A role in the project does not help: the token is for the other one."""
    person = site.person()
    site.admin.grant("member", f"users/{person.id}", f"projects/{site.other_project_id}")
    token = site.admin.log_in(person.identity, in_project(site.other_project_id))

    foreign = service.clustercert_path.replace(site.project_id, site.other_project_id)
    for path in (service.clustercert_path, foreign):
        answer = service.http.post(path, json={"duration": 1}, headers={"X-Auth-Token": token})
        assert answer.status_code == 404


@pytest.mark.parametrize("token", ["gAAAAABnonsense", "x" * 200, secrets.token_hex(16)], ids=len)
def test_what_keystone_does_not_know_is_mute(service: Service, token: str) -> None:
    answer = service.issue(token)

    assert (answer.status_code, answer.json()["error_code"]) == (401, "CCE.01401001")
    assert "keystone" not in answer.text.lower()


def test_a_token_ends_when_keystone_said(site: Site, service: Service) -> None:
    """Application credentials that expire give tokens that expire with them, and so within a test."""
    person = site.person()

    def accepted() -> str | None:
        expires_at = (datetime.now(UTC) + timedelta(seconds=3)).strftime("%Y-%m-%dT%H:%M:%S.%f")
        credential = site.admin.new_application_credential(person, site.project_id, expires_at=expires_at)
        token = site.admin.log_in(credential)
        return token if service.status(token) == 200 else None

    token = eventually(accepted)
    assert token is not None

    eventually(lambda: service.status(token) == 401)
    assert service.issue(token).status_code == 401


@pytest.mark.parametrize("what", ["token revoked", "user disabled", "role lost", "password changed"])
def test_what_ends_in_keystone_ends_here(site: Site, service: Service, what: str) -> None:
    person = site.person()
    token = site.token(person)
    assert service.issue(token).status_code == 200

    if what == "token revoked":
        site.admin.revoke(token)
    elif what == "user disabled":
        site.admin.change("user", person.id, enabled=False)
    elif what == "role lost":
        site.admin.take("member", f"users/{person.id}", f"projects/{site.project_id}")
    else:
        site.admin.change("user", person.id, password=secrets.token_hex(8))

    eventually(lambda: service.status(token) == 401)
    assert service.issue(token).status_code == 401


def test_an_application_credential_gets_certificates_until_it_is_deleted(
    site: Site, service: Service
) -> None:
    person = site.person()
    credential = site.admin.new_application_credential(person, site.project_id)
    token = site.admin.log_in(credential)
    answer = service.issue(token)
    assert answer.status_code == 200, answer.text
    assert values(service.leaf(answer.json()), NameOID.COMMON_NAME) == [person.id]

    path = f"users/{person.id}/application_credentials/{credential['application_credential']['id']}"
    site.admin.call("DELETE", path)

    eventually(lambda: service.status(token) == 401)


def test_an_application_credential_with_access_rules_is_refused(site: Site, service: Service) -> None:
    """They allow some paths of some services; a certificate would allow more."""
    rules = [{"path": "/v3/**", "method": "GET", "service": "identity"}]
    credential = site.admin.new_application_credential(site.person(), site.project_id, access_rules=rules)
    assert service.issue(site.admin.log_in(credential)).status_code == 401


def test_a_trust_is_refused(site: Site, service: Service) -> None:
    trustor, trustee = site.person(), site.person(role=None)
    trust = site.admin.new_trust(trustor, trustee, site.project_id, "member")
    token = site.admin.log_in(trustee.identity, {"OS-TRUST:trust": {"id": trust}})

    assert service.issue(token).status_code == 401


def test_a_token_for_the_project_that_was_got_with_another_token(site: Site, service: Service) -> None:
    person = site.person()
    unscoped = site.admin.log_in(person.identity, "unscoped")
    rescoped = site.admin.log_in(
        {"methods": ["token"], "token": {"id": unscoped}}, in_project(site.project_id)
    )
    assert service.issue(rescoped).status_code == 200
