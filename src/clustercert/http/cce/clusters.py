"""Clusters in the CCE v3 API: list, show, addresses.

Source: CCE API reference, "Listing Clusters", "Reading a Specified Cluster". `docs/cce-divergences.md` lists the bugs
of clients that affect these responses.
"""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from clustercert.http import responses
from clustercert.http.dependencies import CallDep
from clustercert.http.openapi import KIB, body_limit, described
from clustercert.http.user_agents import is_huawei_sdk, is_huawei_terraform
from clustercert.model import Cluster, JsonObject

# The phase of every registered cluster: this service does not check whether the API servers respond.
PHASE = "Available"
TYPE = "VirtualMachine"

CLUSTERS = "/api/v3/projects/{project_id}/clusters"
CLUSTER = CLUSTERS + "/{cluster_id}"

MAX_CCE_BODY = 64 * KIB
CCE_BODY = body_limit(MAX_CCE_BODY)
"""For CCE's routes without a body: clients may send one."""


class CceBody(BaseModel):
    """Base class of models for responses. Most of these models only document a response that a route renders itself."""

    model_config = ConfigDict(extra="allow")


class CceCluster(CceBody):
    """A cluster in CCE's format."""

    kind: Literal["Cluster"]
    apiVersion: Literal["v3"]  # noqa: N815 - CCE's name
    metadata: dict[str, object]
    spec: dict[str, object]
    status: dict[str, object]


class CceClusterList(CceBody):
    """All clusters in a project. The `kind` of the list is Cluster, as in CCE."""

    kind: Literal["Cluster"]
    apiVersion: Literal["v3"]  # noqa: N815 - CCE's name
    items: list[CceCluster]


class CceEndpoints(CceBody):
    """The response to `/openapi`: a cluster's addresses."""

    metadata: dict[str, object]
    spec: dict[str, object]
    status: dict[str, object]


router = APIRouter(tags=["CCE"])


@router.get(
    CLUSTERS,
    responses=described("The clusters, sorted by name.", CceClusterList),
    openapi_extra=CCE_BODY,
)
async def list_clusters(
    call: CallDep,
    project_id: str,
    status: Annotated[str | None, Query(description="Only clusters in this phase.")] = None,
    cluster_type: Annotated[
        str | None, Query(alias="type", description="Only clusters of this type.")
    ] = None,
    version: Annotated[str | None, Query(description="Only clusters of this Kubernetes version.")] = None,
) -> Response:
    """List the clusters of a project. Responds with 404 if the caller has no role in the project."""
    # Render clusters one by one: rendering thousands of clusters at once would block the event loop.
    as_list = _reads_list(call)
    items = [
        responses.to_json(_cluster_body(cluster, endpoints_as_list=as_list))
        async for cluster in call.services.clusters.clusters_of_project(call.caller, project_id)
        if status in (None, PHASE) and cluster_type in (None, TYPE) and version in (None, cluster.version)
    ]
    body = f'{{"kind": "Cluster", "apiVersion": "v3", "items": [{", ".join(items)}]}}'
    return responses.Rendered(body.encode(), (*responses.JSON, (b"cache-control", b"no-store")))


@router.get(CLUSTER, responses=described("The cluster.", CceCluster), openapi_extra=CCE_BODY)
async def show_cluster(call: CallDep, project_id: str, cluster_id: str) -> Response:
    """Show a cluster. Fields whose value is not known are empty, not absent."""
    cluster = await call.services.clusters.show(call.caller, project_id, cluster_id)
    return responses.private(_cluster_body(cluster, endpoints_as_list=_reads_list(call)))


@router.get(CLUSTER + "/openapi", responses=described("The addresses.", CceEndpoints), openapi_extra=CCE_BODY)
async def show_cluster_endpoints(call: CallDep, project_id: str, cluster_id: str) -> Response:
    """Show the addresses of a cluster.

    Returns the API server's private address and its public address, which is empty without an EIP.
    """
    cluster = await call.services.clusters.show(call.caller, project_id, cluster_id)
    eip: JsonObject = {"bandwidth": {"size": 0, "sharetype": ""}}
    return responses.private(
        {
            "metadata": {},
            "spec": {"spec": {"id": "", "eip": eip, "IsDynamic": False}},
            "status": {
                "privateEndpoint": cluster.internal_url,
                "publicEndpoint": cluster.external_url or "",
            },
        }
    )


def _cluster_body(cluster: Cluster, *, endpoints_as_list: bool) -> JsonObject:
    """Render a cluster in CCE's format.

    Fields whose value is not known are empty, not absent: both Go providers dereference them without a check.
    """
    return {
        "kind": "Cluster",
        "apiVersion": "v3",
        "metadata": {
            "name": cluster.name,
            "uid": cluster.id,
            "creationTimestamp": _cce_time(cluster.created_at),
            "updateTimestamp": _cce_time(cluster.updated_at),
            "labels": dict(cluster.labels),
            "annotations": {},
        },
        "spec": {
            "category": "CCE",
            "type": TYPE,
            "flavor": "",
            "version": cluster.version,
            "description": "",
            "ipv6enable": False,
            "supportIstio": False,
            "hostNetwork": {"vpc": "", "subnet": "", "SecurityGroup": ""},
            "containerNetwork": {"mode": "", "cidr": ""},
            "eniNetwork": {"eniSubnetId": "", "eniSubnetCIDR": "", "subnets": []},
            "serviceNetwork": {"IPv4CIDR": ""},
            "authentication": {"mode": "rbac", "authenticatingProxy": {}},
            "billingMode": 0,
            "extendParam": {},
            "kubernetesSvcIpRange": "",
            "kubeProxyMode": "",
        },
        "status": {
            "phase": PHASE,
            "endpoints": _endpoints(cluster, as_list=endpoints_as_list),
        },
    }


def _reads_list(call: CallDep) -> bool:
    """Whether the endpoints are a list in the response.

    Most of Huawei Cloud's SDKs can't decode an object, and Huawei Cloud's Terraform provider shows no endpoint of an
    object.
    """
    headers = call.request.scope["headers"]
    return is_huawei_sdk(headers) or is_huawei_terraform(headers)


def _endpoints(cluster: Cluster, *, as_list: bool) -> JsonObject | list[JsonObject]:
    """Render the endpoints: as a list for Huawei Cloud, or as an object for Open Telekom Cloud.

    Open Telekom Cloud's CLI shows `external_otc` of the object. The first list entry also has the object's fields,
    because Open Telekom Cloud's Go clients also read the list.
    """
    internal, external = cluster.internal_url, cluster.external_url
    addresses: JsonObject = {"internal": internal}
    if external:
        addresses |= {"external": external, "external_otc": external}
    if not as_list:
        return addresses
    public: list[JsonObject] = [{"url": external, "type": "External"}] if external else []
    return [{"url": internal, "type": "Internal", **addresses}, *public]


def _cce_time(time: datetime) -> str:
    """Format a time as Go prints it: `2020-02-02 03:48:58.968214000 +0000 UTC`."""
    return f"{time:%Y-%m-%d %H:%M:%S.%f}000 +0000 UTC"
