"""huaweicloudsdkcce, unmodified, against the running service: what it issues, shows and refuses."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from huaweicloudsdkcce.v3 import (
    CceClient,
    ClusterCertDuration,
    CreateAutopilotKubernetesClusterCertRequest,
    ListClustersRequest,
    ShowClusterEndpointsRequest,
    ShowClusterRequest,
)
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from huaweicloud import cce_of, issue, leaf_of
from issued import assert_lives
from service import MISSING_CLUSTER, Demo, Tenant


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


@pytest.mark.parametrize(
    "call",
    [
        lambda cce, cluster_id: issue(cce, cluster_id, ClusterCertDuration(duration=1)),
        lambda cce, cluster_id: cce.show_cluster(ShowClusterRequest(cluster_id)),
        lambda cce, cluster_id: cce.show_cluster_endpoints(ShowClusterEndpointsRequest(cluster_id)),
    ],
    ids=["clustercert", "show", "openapi"],
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
