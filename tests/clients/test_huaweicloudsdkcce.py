"""huaweicloudsdkcce, unmodified, against the running service: what it issues, shows and refuses."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from huaweicloudsdkcce.v3 import (
    CceClient,
    CertRevokeConfigRequestBody,
    ClusterCertDuration,
    CreateAutopilotKubernetesClusterCertRequest,
    ListClustersRequest,
    RevokeKubernetesClusterCertRequest,
    ShowClusterEndpointsRequest,
    ShowClusterRequest,
    ShowVersionRequest,
)
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkiam.v3 import KeystoneListVersionsRequest

from support.huaweicloud import cce_of, iam_of, issue, leaf_of
from support.installed_demo import MISSING_CLUSTER, Demo, Tenant
from support.kubeconfig_checks import assert_lives
from support.wait import SECONDS


@pytest.fixture(scope="module")
def tenant(demo: Demo) -> Tenant:
    return demo.own


@pytest.fixture(scope="module")
def cce(tenant: Tenant) -> CceClient:
    return cce_of(tenant)


def test_a_duration_in_days_gives_a_kubeconfig(cce: CceClient, tenant: Tenant) -> None:
    asked_at = datetime.now(UTC)

    answer = issue(cce, tenant.cluster_id, ClusterCertDuration(duration=30))

    assert answer.status_code == 200
    assert answer.current_context == "internal"
    assert [entry.name for entry in answer.clusters] == ["internalCluster"]
    assert_lives(leaf_of(answer, tenant), timedelta(days=30), asked_at)


def test_minus_one_gives_the_longest_lifetime(cce: CceClient, tenant: Tenant) -> None:
    asked_at = datetime.now(UTC)
    answer = issue(cce, tenant.cluster_id, ClusterCertDuration(duration=-1))
    assert_lives(leaf_of(answer, tenant), timedelta(days=1825), asked_at)


def test_expire_at_is_kept_to_the_second_and_wins_over_the_duration(cce: CceClient, tenant: Tenant) -> None:
    wished = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)

    body = ClusterCertDuration(duration=30, expire_at=f"{wished:%Y-%m-%d %H:%M:%S} +0000 UTC")
    answer = issue(cce, tenant.cluster_id, body)

    assert leaf_of(answer, tenant).not_valid_after_utc == wished


def test_an_external_address_gives_three_clusters_and_the_external_context(eip_demo: Demo) -> None:
    tenant = eip_demo.own

    answer = issue(cce_of(tenant), tenant.cluster_id, ClusterCertDuration(duration=1))

    leaf_of(answer, tenant)
    names = [entry.name for entry in answer.clusters]
    assert names == ["internalCluster", "externalCluster", "externalClusterTLSVerify"]
    contexts = [(entry.name, entry.context.cluster) for entry in answer.contexts]
    assert contexts == list(zip(["internal", "external", "externalTLSVerify"], names, strict=True))
    assert answer.current_context == "external"
    internal, external, verified = (entry.cluster for entry in answer.clusters)
    assert internal.server != external.server == verified.server
    assert (external.insecure_skip_tls_verify, external.certificate_authority_data) == (True, None)
    assert internal.certificate_authority_data == verified.certificate_authority_data is not None


def test_the_autopilot_call_gives_the_same_document(cce: CceClient, tenant: Tenant) -> None:
    asked_at = datetime.now(UTC)
    request = CreateAutopilotKubernetesClusterCertRequest(tenant.cluster_id, ClusterCertDuration(duration=7))

    answer = cce.create_autopilot_kubernetes_cluster_cert(request)

    assert answer.status_code == 200
    assert_lives(leaf_of(answer, tenant), timedelta(days=7), asked_at)


def test_two_calls_give_two_certificates(cce: CceClient, tenant: Tenant) -> None:
    leaves = [
        leaf_of(issue(cce, tenant.cluster_id, ClusterCertDuration(duration=1)), tenant) for _ in range(2)
    ]
    assert leaves[0].serial_number != leaves[1].serial_number


@pytest.mark.parametrize(
    "body",
    [
        None,
        ClusterCertDuration(),
        ClusterCertDuration(duration=0),
        ClusterCertDuration(duration=-2),
        ClusterCertDuration(duration=1826),
        ClusterCertDuration(expire_at="tomorrow"),
    ],
    ids=["no body", "{}", "0", "-2", "1826", "not a time"],
)
def test_a_bad_request_is_an_sdk_exception_with_code_text_and_request_id(
    cce: CceClient, tenant: Tenant, body: ClusterCertDuration | None
) -> None:
    with pytest.raises(ClientRequestException) as caught:
        issue(cce, tenant.cluster_id, body)

    assert (caught.value.status_code, caught.value.error_code) == (400, "CCE.01400001")
    assert caught.value.error_msg
    assert len(bytes.fromhex(caught.value.request_id)) == 16


def test_clusters_are_listed(cce: CceClient, tenant: Tenant) -> None:
    answer = cce.list_clusters(ListClustersRequest())

    assert (answer.kind, answer.api_version) == ("Cluster", "v3")
    assert tenant.cluster_id in [cluster.metadata.uid for cluster in answer.items]


def test_the_query_parameters_of_the_sdk_are_signed_and_taken(cce: CceClient, tenant: Tenant) -> None:
    request = ListClustersRequest(detail="true", status="Available", type="VirtualMachine")
    assert tenant.cluster_id in [cluster.metadata.uid for cluster in cce.list_clusters(request).items]


def test_a_cluster_is_shown(cce: CceClient, tenant: Tenant) -> None:
    answer = cce.show_cluster(ShowClusterRequest(tenant.cluster_id))

    assert answer.metadata.uid == tenant.cluster_id
    assert answer.status.phase == "Available"
    assert answer.spec.type == "VirtualMachine"


def test_endpoints_are_shown_with_an_external_address_and_without(demo: Demo, eip_demo: Demo) -> None:
    inside, outside = (
        cce_of(tenant).show_cluster_endpoints(ShowClusterEndpointsRequest(tenant.cluster_id)).status
        for tenant in (demo.own, eip_demo.own)
    )
    assert inside.private_endpoint.startswith("https://")
    assert not inside.public_endpoint
    assert outside.public_endpoint.startswith("https://")


def test_the_addresses_of_a_cluster_are_read_by_type(eip_demo: Demo) -> None:
    tenant = eip_demo.own
    cce = cce_of(tenant)
    shown = cce.show_cluster(ShowClusterRequest(tenant.cluster_id)).status.endpoints
    [listed] = [
        each for each in cce.list_clusters(ListClustersRequest()).items if each.status.endpoints == shown
    ]

    by_type = {each.type: each.url for each in shown}

    assert listed.metadata.uid == tenant.cluster_id
    addresses = cce.show_cluster_endpoints(ShowClusterEndpointsRequest(tenant.cluster_id)).status
    assert by_type == {"Internal": addresses.private_endpoint, "External": addresses.public_endpoint}


def test_the_versions_are_those_of_cce_and_for_iam_those_of_the_identity(
    cce: CceClient, tenant: Tenant
) -> None:
    [version] = cce.show_version(ShowVersionRequest()).versions
    assert (version.id, version.status, version.links[0].rel) == ("v3", "CURRENT", "self")
    assert version.links[0].href == f"{tenant.url}/api/v3"

    [identity] = iam_of(tenant).keystone_list_versions(KeystoneListVersionsRequest()).versions.values
    assert identity.id == "v3.6"


def revoke(cce: CceClient, cluster_id: str, body: CertRevokeConfigRequestBody | None) -> Any:
    return cce.revoke_kubernetes_cluster_cert(RevokeKubernetesClusterCertRequest(cluster_id, body))


def state(tenant: Tenant, leaf: x509.Certificate) -> str:
    """What the service's own inventory says of a certificate."""
    cluster = f"/clustercert/v1/projects/{tenant.project_id}/clusters/{tenant.cluster_id}"
    url = f"{tenant.url}{cluster}/certificates/{leaf.fingerprint(SHA256()).hex()}"
    answer = httpx2.get(url, headers={"X-Auth-Token": tenant.token}, trust_env=False, timeout=SECONDS)
    return str(answer.json()["state"])


@pytest.mark.parametrize("field", ["user_id", "agency_id"])
def test_a_user_is_revoked_and_what_is_issued_next_is_good(
    cce: CceClient, tenant: Tenant, field: str
) -> None:
    old = leaf_of(issue(cce, tenant.cluster_id, ClusterCertDuration(duration=1)), tenant)

    answer = revoke(cce, tenant.cluster_id, CertRevokeConfigRequestBody(**{field: tenant.user_id}))

    new = leaf_of(issue(cce, tenant.cluster_id, ClusterCertDuration(duration=1)), tenant)
    assert (answer.status_code, answer.to_dict()) == (200, {})
    assert (state(tenant, old), state(tenant, new)) == ("revoked", "live")


def test_an_administrator_revokes_a_user_who_is_no_more(cce: CceClient, tenant: Tenant) -> None:
    own = leaf_of(issue(cce, tenant.cluster_id, ClusterCertDuration(duration=1)), tenant)
    gone = CertRevokeConfigRequestBody(user_id="0123456789abcdef0123456789abcdef")
    answer = revoke(cce, tenant.cluster_id, gone)
    assert answer.status_code == 200
    assert state(tenant, own) == "live"


@pytest.mark.parametrize(
    "body",
    [None, CertRevokeConfigRequestBody(), CertRevokeConfigRequestBody(user_id="a", agency_id="b")],
    ids=["no body", "{}", "both"],
)
def test_a_revocation_that_names_not_exactly_one_is_refused(
    cce: CceClient, tenant: Tenant, body: CertRevokeConfigRequestBody | None
) -> None:
    with pytest.raises(ClientRequestException) as caught:
        revoke(cce, tenant.cluster_id, body)
    assert (caught.value.status_code, caught.value.error_code) == (400, "CCE.01400001")


@pytest.mark.parametrize(
    "call",
    [
        lambda cce, cluster_id: issue(cce, cluster_id, ClusterCertDuration(duration=1)),
        lambda cce, cluster_id: revoke(cce, cluster_id, CertRevokeConfigRequestBody(user_id="a")),
        lambda cce, cluster_id: cce.show_cluster(ShowClusterRequest(cluster_id)),
        lambda cce, cluster_id: cce.show_cluster_endpoints(ShowClusterEndpointsRequest(cluster_id)),
    ],
    ids=["clustercert", "clustercertrevoke", "show", "openapi"],
)
def test_a_missing_cluster_and_another_tenants_read_the_same(
    demo: Demo, cce: CceClient, call: Callable[[CceClient, str], object]
) -> None:
    answers = []
    for cluster_id in (MISSING_CLUSTER, demo.others[0].cluster_id):
        with pytest.raises(ClientRequestException) as caught:
            call(cce, cluster_id)
        answers.append((caught.value.status_code, caught.value.error_code, caught.value.error_msg))

    assert answers[0] == answers[1]
    assert answers[0][:2] == (404, "CCE.01404001")
