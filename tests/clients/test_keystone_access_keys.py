"""Access keys that are EC2 credentials in a real Keystone, with the vendors' signers."""

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.x509.oid import NameOID
from huaweicloudsdkcce.v3 import CceClient, ClusterCertDuration
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkcore.region.region import Region

from support.huaweicloud import issue, kubeconfig_of
from support.keystone_installation import REGION, Service, Site
from support.kubeconfig_checks import values
from support.real_keystone.people import Key, Person
from support.wait import eventually


def cce(service: Service, key: Key, *, derived: bool = False) -> CceClient:
    credentials = BasicCredentials(key.access_key, key.secret_key, service.site.project_id)
    config = HttpConfig(ssl_ca_cert=str(service.ca))
    builder = CceClient.new_builder().with_http_config(config).with_credentials(credentials)
    if derived:
        credentials.with_derived_predicate(lambda _request: True)
        # The SDK's generated code names the service for those that sign so by default, which CCE does not.
        builder = builder._with_derived_auth_service_name("cce")
    return builder.with_region(Region(REGION, service.url)).build()


def status(service: Service, key: Key) -> int:
    """The status of a request for a certificate."""
    return service.issue_signed(key).status


def organizations(service: Service, key: Key) -> list[str]:
    """The groups in a new certificate, without the credential's own."""
    answer = service.issue_signed(key)
    assert answer.status == 200, answer.body
    return list(values(service.leaf(answer.json()), NameOID.ORGANIZATION_NAME))[:-1]


@pytest.mark.parametrize("derived", [False, True], ids=["plain", "derived"])
def test_huaweis_sdk_gets_a_certificate(site: Site, service: Service, *, derived: bool) -> None:
    person = site.person()
    key = site.admin.new_key(person, site.project_id)

    answer = issue(cce(service, key, derived=derived), site.cluster_id, ClusterCertDuration(duration=1))

    leaf = service.leaf(kubeconfig_of(answer))
    assert values(leaf, NameOID.COMMON_NAME) == [person.id]
    assert values(leaf, NameOID.ORGANIZATION_NAME)[0] == "members"


@pytest.mark.parametrize("scoped", [False, True], ids=["huawei", "otc"])
def test_both_go_clients_get_a_certificate(site: Site, service: Service, *, scoped: bool) -> None:
    person = site.person()
    client = service.go_client(site.admin.new_key(person, site.project_id), scoped=scoped)

    answer = client.post(service.clustercert_path, {"duration": 1})

    assert answer.status == 200, answer.body
    assert values(service.leaf(answer.json()), NameOID.COMMON_NAME) == [person.id]


def test_a_wrong_secret_and_an_unknown_key_read_the_same(site: Site, service: Service) -> None:
    key = site.admin.new_key(site.person(), site.project_id)
    wrong = Key(key.id, key.access_key, secrets.token_hex(16))
    unknown = Key("", secrets.token_hex(16), key.secret_key)

    answers = []
    for each in (wrong, unknown):
        with pytest.raises(ClientRequestException) as caught:
            issue(cce(service, each), site.cluster_id, ClusterCertDuration(duration=1))
        answers.append((caught.value.status_code, caught.value.error_code, caught.value.error_msg))

    assert answers[0] == answers[1]
    assert answers[0][:2] == (401, "CCE.01401001")


Odd = dict[str, Any]
ODD: dict[str, Odd] = {
    "trust": {"trust_id": "0" * 32},
    "application credential": {"app_cred_id": "0" * 32},
    "access token": {"access_token_id": "0" * 32},
    "no secret": {"secret": ""},
    "short secret": {"secret": "s"},
}


@pytest.mark.parametrize("blob", ODD.values(), ids=ODD)
def test_what_is_not_the_users_own_secret_is_refused(site: Site, service: Service, blob: Odd) -> None:
    key = site.admin.new_odd_key(site.person(), site.project_id, **blob)
    assert status(service, key) == 401


def test_a_blob_of_the_right_form_is_accepted(site: Site, service: Service) -> None:
    """So the ones above are refused for what they say."""
    assert status(service, site.admin.new_odd_key(site.person(), site.project_id, trust_id=None)) == 200


def test_a_key_that_was_renamed_is_refused(site: Site, service: Service) -> None:
    """Its owner may change the access key in the blob, but not the credential's id, by which it is found."""
    key = site.admin.new_odd_key(site.person(), site.project_id)
    blob = json.dumps({"access": secrets.token_hex(16), "secret": key.secret_key})
    site.admin.change("credential", key.id, blob=blob)

    assert status(service, key) == 401


def test_another_type_of_credential_is_refused(site: Site, service: Service) -> None:
    """Keystone itself takes only `ec2` in lower case, but gives both the same form of id."""
    assert status(service, site.admin.new_odd_key(site.person(), site.project_id, "EC2")) == 401


def test_a_key_for_a_project_without_a_role_is_worth_nothing(site: Site, service: Service) -> None:
    """Everybody may store a key of their own for every project."""
    person = site.person(role=None)
    site.admin.grant("member", f"users/{person.id}", f"projects/{site.other_project_id}")
    assert status(service, site.admin.new_odd_key(person, site.project_id)) == 404


def test_a_key_for_another_project_opens_only_that(site: Site, service: Service) -> None:
    person = site.person()
    site.admin.grant("member", f"users/{person.id}", f"projects/{site.other_project_id}")
    assert status(service, site.admin.new_key(person, site.other_project_id)) == 404


def test_a_users_groups_are_read(site: Site, service: Service) -> None:
    person = site.person(role=None)
    group = site.admin.new("group", name=f"team-{secrets.token_hex(4)}", domain_id=site.domain_id)
    site.admin.grant("member", f"groups/{group}", f"projects/{site.project_id}")
    site.admin.grant("reader", f"users/{person.id}", f"projects/{site.project_id}")
    site.admin.add_to_group(group, person)
    key = site.admin.new_key(person, site.project_id)
    assert organizations(service, key)[0].startswith("team:keystone/")

    site.admin.call("DELETE", f"groups/{group}/users/{person.id}")

    eventually(lambda: status(service, key) == 403)


def delete_key(site: Site, person: Person, key: Key) -> None:
    site.admin.delete_key(key)


def disable(site: Site, person: Person, key: Key) -> None:
    site.admin.change("user", person.id, enabled=False)


def take_role(site: Site, person: Person, key: Key) -> None:
    site.admin.take("member", f"users/{person.id}", f"projects/{site.project_id}")


def disable_domain(site: Site, person: Person, key: Key) -> None:
    site.admin.change("domain", person.domain_id, enabled=False)


def delete_user(site: Site, person: Person, key: Key) -> None:
    site.admin.call("DELETE", f"users/{person.id}")


def change_secret(site: Site, person: Person, key: Key) -> None:
    blob = json.dumps({"access": key.access_key, "secret": secrets.token_hex(16)})
    site.admin.change("credential", key.id, blob=blob)


@pytest.mark.parametrize(
    "end",
    [delete_key, disable, take_role, disable_domain, delete_user, change_secret],
    ids=lambda end: end.__name__,
)
def test_what_ends_in_keystone_ends_here(
    site: Site, service: Service, end: Callable[[Site, Person, Key], None]
) -> None:
    person = site.admin.new_person(site.admin.new("domain"))
    site.admin.grant("member", f"users/{person.id}", f"projects/{site.project_id}")
    key = site.admin.new_key(person, site.project_id)
    assert status(service, key) == 200

    end(site, person, key)

    eventually(lambda: status(service, key) in {401, 404})


def test_a_disabled_project_is_closed(site: Site, service: Service) -> None:
    key = site.admin.new_key(site.person(), site.project_id)
    assert status(service, key) == 200

    site.admin.change("project", site.project_id, enabled=False)
    try:
        eventually(lambda: status(service, key) in {401, 404})
    finally:
        site.admin.change("project", site.project_id, enabled=True)
