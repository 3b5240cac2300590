"""otcextensions on openstacksdk, unmodified, against the running service; by token and by password."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import openstack
import pytest
from openstack import exceptions
from otcextensions import sdk

from support.installed_demo import MISSING_CLUSTER, Demo, Tenant
from support.kubeconfig_checks import assert_client_leaf, assert_lives
from support.wait import SECONDS


def connect(tenant: Tenant, **how: str) -> Any:
    """An openstacksdk connection with the OTC services loaded, as their documentation has it."""
    connection = openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        region_name=tenant.region,
        project_id=tenant.project_id,
        **{"auth_url": f"{tenant.url}/v3", **how},
    )
    sdk.register_otc_extensions(connection)
    return connection


def with_password(tenant: Tenant, **how: str) -> Any:
    domain = {"user_domain_id": tenant.domain_id}
    return connect(tenant, username=tenant.user_name, password=tenant.password, **domain, **how)


@pytest.fixture(scope="module")
def tenant(demo: Demo) -> Tenant:
    return demo.own


@pytest.fixture(scope="module")
def connection(tenant: Tenant) -> Any:
    return with_password(tenant)


def cluster_name(tenant: Tenant) -> str:
    answer = httpx2.get(
        f"{tenant.url}{tenant.clusters_path}/{tenant.cluster_id}",
        headers={"X-Auth-Token": tenant.token},
        timeout=SECONDS,
    )
    return str(answer.json()["metadata"]["name"])


def test_clusters_are_listed(connection: Any, tenant: Tenant) -> None:
    listed = {cluster.id: cluster for cluster in connection.cce.clusters()}

    cluster = listed[tenant.cluster_id]
    assert cluster.name == cluster_name(tenant)
    assert cluster.status.status == "Available"
    assert cluster.status.endpoints["internal"].startswith("https://")


def test_a_cluster_is_found_by_name_and_by_id(connection: Any, tenant: Tenant) -> None:
    for name_or_id in (cluster_name(tenant), tenant.cluster_id):
        assert connection.cce.find_cluster(name_or_id).id == tenant.cluster_id


def test_a_cluster_is_got(connection: Any, tenant: Tenant) -> None:
    cluster = connection.cce.get_cluster(tenant.cluster_id)

    assert (cluster.id, cluster.name) == (tenant.cluster_id, cluster_name(tenant))
    assert cluster.spec.type == "VirtualMachine"
    assert cluster.spec.host_network is not None


def test_certificates_without_an_external_address(connection: Any, tenant: Tenant) -> None:
    asked_at = datetime.now(UTC)

    certificates = connection.cce.get_cluster_certificates(tenant.cluster_id)

    leaf = assert_client_leaf(certificates.client_certificate, certificates.client_key, tenant)
    assert_lives(leaf, timedelta(days=30), asked_at)
    assert certificates.context["name"] == "internal"
    assert certificates.context["user"] == "user"
    assert certificates.context["cluster"].startswith("https://")
    assert certificates.ca.startswith("LS0tLS1CRUdJTi")


def test_the_external_address_adds_no_other_certificate(eip_demo: Demo) -> None:
    tenant = eip_demo.own
    connection = with_password(tenant)

    endpoints = connection.cce.get_cluster(tenant.cluster_id).status.endpoints
    certificates = connection.cce.get_cluster_certificates(tenant.cluster_id)

    assert_client_leaf(certificates.client_certificate, certificates.client_key, tenant)
    assert certificates.context["name"] == "internal"
    assert certificates.context["cluster"] == endpoints["internal"] != endpoints["external"]


def test_a_token_is_as_good_as_a_password(tenant: Tenant) -> None:
    connection = connect(tenant, auth_type="token", token=tenant.token)
    certificates = connection.cce.get_cluster_certificates(tenant.cluster_id)
    assert_client_leaf(certificates.client_certificate, certificates.client_key, tenant)


def test_an_auth_url_without_a_version_is_discovered(tenant: Tenant) -> None:
    connection = with_password(tenant, auth_url=tenant.url)
    assert tenant.cluster_id in [cluster.id for cluster in connection.cce.clusters()]


def test_a_project_is_named_instead_of_numbered(tenant: Tenant) -> None:
    connection = openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        region_name=tenant.region,
        auth_url=f"{tenant.url}/v3",
        username=tenant.user_name,
        password=tenant.password,
        user_domain_id=tenant.domain_id,
        project_name=tenant.region,
        project_domain_id=tenant.domain_id,
    )
    sdk.register_otc_extensions(connection)

    assert connection.current_project_id == tenant.project_id
    assert tenant.cluster_id in [cluster.id for cluster in connection.cce.clusters()]


def test_a_missing_cluster_is_not_found_in_words(connection: Any) -> None:
    with pytest.raises(exceptions.NotFoundException) as caught:
        connection.cce.get_cluster_certificates(MISSING_CLUSTER)

    assert caught.value.response.status_code == 404
    assert "Resource not found." in str(caught.value)
    assert "{" not in str(caught.value), "a sentence, not the raw body"


def test_a_name_that_no_cluster_has_is_nothing(connection: Any) -> None:
    assert connection.cce.find_cluster("no-such-cluster") is None
    with pytest.raises(exceptions.NotFoundException):
        connection.cce.find_cluster("no-such-cluster", ignore_missing=False)


def test_another_tenants_cluster_is_neither_listed_nor_found(demo: Demo, connection: Any) -> None:
    other = demo.others[0]

    assert other.cluster_id not in [cluster.id for cluster in connection.cce.clusters()]
    assert connection.cce.find_cluster(other.cluster_id) is None
    with pytest.raises(exceptions.NotFoundException):
        connection.cce.get_cluster_certificates(other.cluster_id)


def test_a_wrong_password_is_told_in_keystones_form(tenant: Tenant) -> None:
    with pytest.raises(exceptions.SDKException, match=r"requires authentication.*\(HTTP 401\)"):
        connect(tenant, username=tenant.user_name, password="wrong", user_domain_id=tenant.domain_id)


def test_a_temporary_access_key_is_made_as_the_sdk_asks_for_it(connection: Any) -> None:
    """The SDK misspells the duration, so the default of 15 minutes holds."""
    asked_at = datetime.now(UTC)

    temporary = connection.identity.create_security_token(duration=3600)

    expires_at = datetime.strptime(temporary.expires_at, "%Y-%m-%dT%H:%M:%S.%f%z")
    assert timedelta(minutes=14) < expires_at - asked_at < timedelta(minutes=16)
    assert all((temporary.access, temporary.secret, temporary.security_token))
