"""Clients of huaweicloudsdkcce and huaweicloudsdkiam for a tenant, and their answers as plain documents."""

from typing import Any

from cryptography import x509
from huaweicloudsdkcce.v3 import (
    CceClient,
    ClusterCertDuration,
    CreateKubernetesClusterCertRequest,
    CreateKubernetesClusterCertResponse,
)
from huaweicloudsdkcore.auth.credentials import BasicCredentials, GlobalCredentials
from huaweicloudsdkiam.v3 import (
    IamClient,
)

from support.installed_demo import Tenant
from support.kubeconfig_checks import assert_kubeconfig


def cce_of(tenant: Tenant, credentials: BasicCredentials | None = None) -> CceClient:
    own = BasicCredentials(tenant.access_key, tenant.secret_key, tenant.project_id)
    return CceClient.new_builder().with_credentials(credentials or own).with_endpoint(tenant.url).build()


def iam_of(tenant: Tenant) -> IamClient:
    credentials = GlobalCredentials(tenant.access_key, tenant.secret_key, tenant.domain_id)
    return IamClient.new_builder().with_credentials(credentials).with_endpoint(tenant.url).build()


def kubeconfig_of(answer: CreateKubernetesClusterCertResponse) -> dict[str, Any]:
    """The SDK's object as the kubeconfig that a program would write from it."""
    document = answer.to_dict()
    renamed: dict[str, Any] = {
        "apiVersion": document["api_version"],
        "current-context": document["current_context"],
    }
    renamed |= {name: document[name] for name in ("kind", "preferences", "contexts")}
    renamed["clusters"] = [
        {"name": entry["name"], "cluster": _dashed(entry["cluster"])} for entry in document["clusters"]
    ]
    renamed["users"] = [
        {"name": entry["name"], "user": _dashed(entry["user"])} for entry in document["users"]
    ]
    return renamed


def _dashed(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in fields.items() if value is not None}


def issue(client: CceClient, cluster_id: str, body: ClusterCertDuration | None) -> Any:
    return client.create_kubernetes_cluster_cert(CreateKubernetesClusterCertRequest(cluster_id, body))


def leaf_of(answer: CreateKubernetesClusterCertResponse, tenant: Tenant) -> x509.Certificate:
    return assert_kubeconfig(kubeconfig_of(answer), tenant)
