"""The CCE v3 surface: clustercert and the clusters. The contract, byte for byte.

Source: CCE API reference, cce_02_0248; the traps of real clients are in `docs/cce-divergences.md`.
"""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from clustercert.errors import InvalidRequest, MethodNotAllowed
from clustercert.kubeconfig import render as kubeconfig
from clustercert.kubeconfig import to_yaml
from clustercert.model import Ask, Caller, Cluster, Issued, JsonObject, Preview
from clustercert.web import bodies, render
from clustercert.web.deps import CallerDep, RawBody, Services, ServicesDep, json_object, require_json

# What GET gives, which has no body to say it; a Flexible Engine user saw a month.
GET_DAYS = 30
# All that are registered are there; whether an API server answers isn't ours to know.
PHASE = "Available"
TYPE = "VirtualMachine"

_CLUSTERS = "/api/v3/projects/{project_id}/clusters"
_CLUSTER = _CLUSTERS + "/{cluster_id}"
_YAML = ("application/yaml", "application/x-yaml", "text/yaml")

_ERRORS: dict[int | str, dict[str, object]] = {
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
_KUBECONFIG: dict[int | str, dict[str, object]] = {
    200: {
        "model": bodies.Kubeconfig,
        "description": "The kubeconfig.",
        "content": {"application/yaml": {"schema": {"type": "string"}}},
        "headers": {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in {
                "X-Clustercert-Serial": "The serial, lower-case hex.",
                "X-Clustercert-Fingerprint": "SHA-256 of the certificate's DER, lower-case hex.",
                "X-Clustercert-Not-After": "The end of validity, RFC 3339.",
            }.items()
        },
    },
    **_ERRORS,
}

router = APIRouter(tags=["CCE"])


def _json_body(shape: type[bodies.AutopilotCertRequest]) -> dict[str, object]:
    """The request body for OpenAPI: the route reads the bytes itself, after the caller is known."""
    schema = shape.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def dry_run(
    wish: Annotated[
        list[str] | None,
        Query(alias="dryRun", description="All: answer with an IssuancePreview; sign and record nothing."),
    ] = None,
) -> bool:
    """Whether only a preview is wanted; as for the Kubernetes API, All is the only value."""
    if wish and set(wish) != {"All"}:
        raise InvalidRequest("dryRun: the only value is All.")
    return bool(wish)


# Behind the caller in each signature: what a request means is judged after who sent it.
DryRun = Annotated[bool, Depends(dry_run)]


@router.post(
    _CLUSTER + "/clustercert",
    summary="Obtain a cluster certificate as a kubeconfig",
    responses=_KUBECONFIG,
    openapi_extra=_json_body(bodies.ClusterCertRequest),
)
async def create_clustercert(
    request: Request,
    project_id: str,
    cluster_id: str,
    raw: RawBody,
    caller: CallerDep,
    services: ServicesDep,
    dry: DryRun,
) -> Response:
    """Issue a certificate for the caller, with the groups and at most the lifetime that the policy gives."""
    require_json(request)
    ask = bodies.parsed(json_object(raw), bodies.ClusterCertRequest).ask()
    return await _issue(request, services, caller, (project_id, cluster_id), ask, dry=dry)


@router.post(
    "/autopilot/v3/projects/{project_id}/clusters/{cluster_id}/clustercert",
    summary="Obtain a cluster certificate as a kubeconfig, Autopilot form",
    responses=_KUBECONFIG,
    openapi_extra=_json_body(bodies.AutopilotCertRequest),
)
async def create_autopilot_clustercert(
    request: Request,
    project_id: str,
    cluster_id: str,
    raw: RawBody,
    caller: CallerDep,
    services: ServicesDep,
    dry: DryRun,
) -> Response:
    """Like the other form, without expire_at."""
    require_json(request)
    ask = bodies.parsed(json_object(raw), bodies.AutopilotCertRequest).ask()
    return await _issue(request, services, caller, (project_id, cluster_id), ask, dry=dry)


@router.get(
    _CLUSTER + "/clustercert",
    summary="Obtain a cluster certificate as a kubeconfig, deprecated form",
    responses=_KUBECONFIG,
    deprecated=True,
)
async def get_clustercert(
    request: Request, project_id: str, cluster_id: str, caller: CallerDep, services: ServicesDep, dry: DryRun
) -> Response:
    """Issue a certificate for 30 days, or for the policy's longest where that is less."""
    if not services.options.get_clustercert:
        raise MethodNotAllowed("The GET form is switched off here. Use POST with a duration.")
    ask = Ask(duration=GET_DAYS, clip=True)
    return await _issue(request, services, caller, (project_id, cluster_id), ask, dry=dry)


@router.get(
    _CLUSTERS,
    summary="List the clusters of a project",
    responses={200: {"model": bodies.ClusterListBody, "description": "The clusters, by name."}, **_ERRORS},
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
    _CLUSTER,
    summary="Show a cluster",
    responses={200: {"model": bodies.ClusterBody, "description": "The cluster."}, **_ERRORS},
)
async def show_cluster(
    project_id: str, cluster_id: str, caller: CallerDep, services: ServicesDep
) -> Response:
    """One cluster of the project."""
    cluster = await services.clusters.show(caller, project_id, cluster_id)
    return render.json_response(_cluster_body(cluster, endpoints_as_list=services.options.endpoints_as_list))


@router.get(
    _CLUSTER + "/openapi",
    summary="Show the addresses of a cluster",
    responses={200: {"model": bodies.EndpointsBody, "description": "The addresses."}, **_ERRORS},
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


async def _issue(
    request: Request, services: Services, caller: Caller, cluster: tuple[str, str], ask: Ask, *, dry: bool
) -> Response:
    if dry:
        return render.json_response(_preview_body(await services.issuance.preview(caller, *cluster, ask)))
    issued = await services.issuance.issue(caller, *cluster, ask)
    request.scope["clustercert.log"] = {
        "user": issued.grant.username,
        "cluster": issued.cluster.id,
        "fingerprint": issued.fingerprint,
    }
    document = kubeconfig(issued, insecure_external=services.options.insecure_external)
    headers = _credential_headers(issued)
    if _wants_yaml(request):
        return Response(to_yaml(document), headers=headers, media_type="application/yaml")
    return render.json_response(document, headers=headers)


def _credential_headers(issued: Issued) -> dict[str, str]:
    return {
        **render.NO_STORE,
        "Vary": "Accept",
        "X-Clustercert-Serial": issued.serial,
        "X-Clustercert-Fingerprint": issued.fingerprint,
        "X-Clustercert-Not-After": _rfc3339(issued.grant.not_after),
    }


def _wants_yaml(request: Request) -> bool:
    """Whether Accept names YAML, and JSON not before it. No client of the contract does; `*/*` means JSON."""
    for media_range in ",".join(request.headers.getlist("accept")).split(","):
        media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
        if "q=0" in (parameter.removesuffix(".0") for parameter in parameters):
            continue
        if media_type in _YAML:
            return True
        if media_type in ("application/json", "application/*", "*/*"):
            return False
    return False


def _preview_body(preview: Preview) -> JsonObject:
    return {
        "kind": "IssuancePreview",
        "rule": preview.grant.rule,
        "common_name": preview.grant.username,
        "organizations": list(preview.grant.groups),
        "not_before": _rfc3339(preview.grant.not_before),
        "not_after": _rfc3339(preview.grant.not_after),
        "issuer": preview.issuer,
        "key_type": preview.key_type,
    }


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


def _rfc3339(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
