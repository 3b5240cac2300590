"""The CCE v3 surface but for clustercert: the clusters, as its clients list and show them.

Source: CCE API reference, "Listing Clusters", "Reading a Specified Cluster"; the traps of real clients are in
`docs/cce-divergences.md`.
"""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from clustercert.model import Cluster, JsonObject
from clustercert.web import bodies, render
from clustercert.web.deps import CallerDep, ServicesDep

# All that are registered are there; whether an API server answers isn't ours to know.
PHASE = "Available"
TYPE = "VirtualMachine"

CLUSTERS = "/api/v3/projects/{project_id}/clusters"
CLUSTER = CLUSTERS + "/{cluster_id}"

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ErrorBody, "description": description}
    for status, description in {
        400: "The request does not say what the API asks for.",
        401: "No credential, or one that proves nothing.",
        403: "The caller's role is too small, or the wish is more than the policy allows.",
        404: "No such project or cluster, or another's.",
        405: "The method is switched off.",
        408: "The request's body did not arrive in time.",
        413: "The request's body is over 64 KiB.",
        429: "A limit is reached.",
        500: "Internal error.",
        502: "A remote signer failed.",
        503: "Not now; see Retry-After.",
    }.items()
}
router = APIRouter(tags=["CCE"])


@router.get(
    CLUSTERS,
    summary="List the clusters of a project",
    responses={200: {"model": bodies.ClusterListBody, "description": "The clusters, by name."}, **ERRORS},
)
async def list_clusters(
    project_id: str,
    caller: CallerDep,
    services: ServicesDep,
    status: Annotated[str | None, Query(description="Only clusters in this phase.")] = None,
    cluster_type: Annotated[
        str | None, Query(alias="type", description="Only clusters of this type.")
    ] = None,
    version: Annotated[str | None, Query(description="Only clusters of this Kubernetes version.")] = None,
) -> Response:
    """All clusters of the project; one that the caller has no role in does not exist."""
    clusters = await services.clusters.of_project(caller, project_id)
    items = [
        _cluster_body(cluster, endpoints_as_list=services.options.endpoints_as_list)
        for cluster in clusters
        if status in (None, PHASE) and cluster_type in (None, TYPE) and version in (None, cluster.version)
    ]
    return render.json_response({"kind": "Cluster", "apiVersion": "v3", "items": items})


@router.get(
    CLUSTER,
    summary="Show a cluster",
    responses={200: {"model": bodies.ClusterBody, "description": "The cluster."}, **ERRORS},
)
async def show_cluster(
    project_id: str, cluster_id: str, caller: CallerDep, services: ServicesDep
) -> Response:
    """One cluster of the project."""
    cluster = await services.clusters.show(caller, project_id, cluster_id)
    return render.json_response(_cluster_body(cluster, endpoints_as_list=services.options.endpoints_as_list))


@router.get(
    CLUSTER + "/openapi",
    summary="Show the addresses of a cluster",
    responses={200: {"model": bodies.EndpointsBody, "description": "The addresses."}, **ERRORS},
)
async def show_cluster_endpoints(
    project_id: str, cluster_id: str, caller: CallerDep, services: ServicesDep
) -> Response:
    """The private and the public address of the cluster's API server; the latter is empty without an EIP."""
    cluster = await services.clusters.show(caller, project_id, cluster_id)
    return render.json_response(
        {
            "metadata": {},
            "spec": {
                "spec": {"id": "", "eip": {"bandwidth": {"size": 0, "sharetype": ""}}, "IsDynamic": False},
            },
            "status": {
                "privateEndpoint": cluster.internal_url,
                "publicEndpoint": cluster.external_url or "",
            },
        }
    )


def _cluster_body(cluster: Cluster, *, endpoints_as_list: bool) -> JsonObject:
    """A cluster in CCE's form. What we don't know of it is empty, never absent: both Go providers dereference it."""
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
            "eniNetwork": {},
            "serviceNetwork": {"IPv4CIDR": ""},
            "authentication": {"mode": "rbac", "authenticatingProxy": {}},
            "billingMode": 0,
            "extendParam": {},
            "kubernetesSvcIpRange": "",
            "kubeProxyMode": "",
        },
        "status": {
            "phase": PHASE,
            "endpoints": _endpoints_list(cluster) if endpoints_as_list else _endpoints_object(cluster),
        },
    }


def _endpoints_object(cluster: Cluster) -> JsonObject:
    """Open Telekom Cloud's form. external_otc is what its command line shows."""
    if not cluster.external_url:
        return {"internal": cluster.internal_url}
    return {
        "internal": cluster.internal_url,
        "external": cluster.external_url,
        "external_otc": cluster.external_url,
    }


def _endpoints_list(cluster: Cluster) -> list[JsonObject]:
    """Huawei Cloud's form."""
    endpoints: list[JsonObject] = [{"url": cluster.internal_url, "type": "Internal"}]
    if cluster.external_url:
        endpoints.append({"url": cluster.external_url, "type": "External"})
    return endpoints


def _cce_time(time: datetime) -> str:
    """`2020-02-02 03:48:58.968214000 +0000 UTC`, as Go prints a time."""
    return f"{time:%Y-%m-%d %H:%M:%S.%f}000 +0000 UTC"
