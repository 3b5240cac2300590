"""How huaweicloudsdkcore proves who it is, and finds its project and domain through huaweicloudsdkiam."""

import pytest
from huaweicloudsdkcce.v3 import (
    CceClient,
    ClusterCertDuration,
    ListClustersRequest,
)
from huaweicloudsdkcore.auth.credentials import BasicCredentials, GlobalCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkcore.region.region import Region
from huaweicloudsdkiam.v3 import (
    CreateTemporaryAccessKeyByTokenRequest,
    CreateTemporaryAccessKeyByTokenRequestBody,
    Credential,
    IamClient,
    IdentityToken,
    KeystoneListAuthProjectsRequest,
    KeystoneListProjectsRequest,
    TokenAuth,
    TokenAuthIdentity,
)

from support.huaweicloud import cce_of, iam_of, issue, leaf_of
from support.installed_demo import Demo, Tenant


@pytest.fixture(scope="module")
def tenant(demo: Demo) -> Tenant:
    return demo.own


@pytest.fixture(scope="module")
def cce(tenant: Tenant) -> CceClient:
    return cce_of(tenant)


@pytest.fixture(scope="module")
def temporary(tenant: Tenant) -> Credential:
    """A temporary access key and its security token, asked for as the SDK's own user would."""
    identity = TokenAuthIdentity(["token"], token=IdentityToken(duration_seconds=900))
    body = CreateTemporaryAccessKeyByTokenRequestBody(TokenAuth(identity))
    return (
        iam_of(tenant)
        .create_temporary_access_key_by_token(CreateTemporaryAccessKeyByTokenRequest(body))
        .credential
    )


def test_another_tenants_project_is_a_404(demo: Demo, tenant: Tenant) -> None:
    other = demo.others[0]
    credentials = BasicCredentials(tenant.access_key, tenant.secret_key, other.project_id)

    with pytest.raises(ClientRequestException) as caught:
        issue(cce_of(tenant, credentials), other.cluster_id, ClusterCertDuration(duration=1))

    assert (caught.value.status_code, caught.value.error_code) == (404, "CCE.01404001")


def test_a_wrong_secret_and_an_unknown_key_read_the_same(tenant: Tenant) -> None:
    answers = []
    for access_key, secret_key in ((tenant.access_key, "x" * 40), ("A" * 20, tenant.secret_key)):
        credentials = BasicCredentials(access_key, secret_key, tenant.project_id)
        with pytest.raises(ClientRequestException) as caught:
            issue(cce_of(tenant, credentials), tenant.cluster_id, ClusterCertDuration(duration=1))
        answers.append((caught.value.status_code, caught.value.error_code, caught.value.error_msg))

    assert answers[0] == answers[1]
    assert answers[0][:2] == (401, "CCE.01401001")


def test_the_project_is_found_by_the_name_of_the_region(tenant: Tenant) -> None:
    credentials = BasicCredentials(tenant.access_key, tenant.secret_key).with_iam_endpoint(tenant.url)
    region = Region(tenant.region, tenant.url)

    cce = CceClient.new_builder().with_credentials(credentials).with_region(region).build()

    leaf_of(issue(cce, tenant.cluster_id, ClusterCertDuration(duration=1)), tenant)
    assert credentials.project_id == tenant.project_id


def test_derived_signatures_are_taken(tenant: Tenant) -> None:
    credentials = BasicCredentials(tenant.access_key, tenant.secret_key, tenant.project_id)
    credentials.with_derived_predicate(lambda _request: True)
    # The SDK's generated code names the service for those that sign so by default, which CCE does not.
    builder = CceClient.new_builder()._with_derived_auth_service_name("cce")

    cce = builder.with_credentials(credentials).with_region(Region(tenant.region, tenant.url)).build()

    leaf_of(issue(cce, tenant.cluster_id, ClusterCertDuration(duration=1)), tenant)


def test_a_temporary_key_works_with_its_security_token(tenant: Tenant, temporary: Credential) -> None:
    credentials = BasicCredentials(temporary.access, temporary.secret, tenant.project_id)
    cce = cce_of(tenant, credentials.with_security_token(temporary.securitytoken))
    leaf_of(issue(cce, tenant.cluster_id, ClusterCertDuration(duration=1)), tenant)


@pytest.mark.parametrize("security_token", [None, "", "another"], ids=["absent", "empty", "wrong"])
def test_a_temporary_key_is_nothing_without_it(
    tenant: Tenant, temporary: Credential, security_token: str | None
) -> None:
    credentials = BasicCredentials(temporary.access, temporary.secret, tenant.project_id)
    credentials.security_token = security_token

    with pytest.raises(ClientRequestException) as caught:
        cce_of(tenant, credentials).list_clusters(ListClustersRequest())

    assert (caught.value.status_code, caught.value.error_code) == (401, "CCE.01401001")


def test_projects_are_found_through_iam(tenant: Tenant) -> None:
    iam = iam_of(tenant)

    by_name = iam.keystone_list_projects(KeystoneListProjectsRequest(name=tenant.region)).projects
    reachable = iam.keystone_list_auth_projects(KeystoneListAuthProjectsRequest()).projects

    assert [(project.id, project.name) for project in by_name] == [(tenant.project_id, tenant.region)]
    assert tenant.project_id in [project.id for project in reachable]
    assert {project.domain_id for project in by_name} == {tenant.domain_id}


def test_the_domain_is_found_through_iam(tenant: Tenant) -> None:
    credentials = GlobalCredentials(tenant.access_key, tenant.secret_key).with_iam_endpoint(tenant.url)

    region = Region(tenant.region, tenant.url)
    IamClient.new_builder().with_credentials(credentials).with_region(region).build()

    assert credentials.domain_id == tenant.domain_id
