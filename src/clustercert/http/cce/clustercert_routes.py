"""FastAPI routes of clustercert, with their OpenAPI documentation. The module `clustercert` handles the requests."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from clustercert.http import query
from clustercert.http.cce import bodies
from clustercert.http.cce.clustercert import PATH, Shape, handle
from clustercert.http.dependencies import ServicesDep
from clustercert.http.openapi import described, json_body

_KUBECONFIG = described(
    "The kubeconfig; the preview if dryRun=All.",
    bodies.Kubeconfig | bodies.IssuancePreview,
    content={"application/yaml": {"$ref": "#/components/schemas/Kubeconfig"}},
    headers={
        "X-Clustercert-Serial": "The serial, lower-case hex.",
        "X-Clustercert-Fingerprint": "SHA-256 of the certificate's DER, lower-case hex.",
        "X-Clustercert-Not-After": "The end of validity, RFC 3339.",
    },
)
_DRY_RUN = query.described(
    [query.choice("dryRun", "All: return an IssuancePreview; sign and record nothing.", ("All",))]
)

router = APIRouter(tags=["CCE"])


def _sent(shape: Shape) -> dict[str, Any]:
    return json_body(shape.model_json_schema()) | _DRY_RUN


@router.post(PATH, responses=_KUBECONFIG, openapi_extra=_sent(bodies.ClusterCertRequest))
async def create_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Obtain a cluster certificate as a kubeconfig.

    The certificate is for the caller. The policy decides its groups and limits its lifetime.
    """
    return await handle(request, services, project_id, cluster_id, bodies.ClusterCertRequest)


@router.post(
    "/autopilot/v3/projects/{project_id}/clusters/{cluster_id}/clustercert",
    responses=_KUBECONFIG,
    openapi_extra=_sent(bodies.AutopilotCertRequest),
)
async def create_autopilot_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Obtain a cluster certificate as a kubeconfig, for Autopilot. Like POST clustercert, but without expire_at."""
    return await handle(request, services, project_id, cluster_id, bodies.AutopilotCertRequest)


@router.get(PATH, responses=_KUBECONFIG, openapi_extra=_DRY_RUN, deprecated=True)
async def get_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Obtain a cluster certificate as a kubeconfig, deprecated form.

    The certificate is valid for 30 days, or for the longest lifetime allowed if that is shorter.
    """
    return await handle(request, services, project_id, cluster_id, None)
