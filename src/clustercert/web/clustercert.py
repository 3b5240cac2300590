"""POST clustercert and its other forms: a kubeconfig for whoever asks. The contract, byte for byte.

Source: CCE API reference, cce_02_0248; where we differ is in `docs/cce-divergences.md`.
"""

import functools
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from clustercert.errors import ClustercertError, InvalidRequest, MethodNotAllowed
from clustercert.kubeconfig import render as kubeconfig
from clustercert.kubeconfig import to_json, to_yaml
from clustercert.model import Ask, Issued, JsonObject, Preview
from clustercert.web import bodies, render
from clustercert.web.cce import CLUSTER, ERRORS
from clustercert.web.deps import Services, ServicesDep, authenticated, json_object, raw_body, require_json
from clustercert.web.direct import DirectRoute

# What GET gives, which has no body to say it; a Flexible Engine user saw a month.
GET_DAYS = 30
# Bytes of a body that has room for little more than a duration.
SHORT = 64

PATH = CLUSTER + "/clustercert"
_YAML = ("application/yaml", "application/x-yaml", "text/yaml")

_KUBECONFIG: dict[int | str, dict[str, Any]] = {
    200: {
        "model": bodies.Kubeconfig | bodies.IssuancePreview,
        "description": "The kubeconfig, or with dryRun=All the preview.",
        "content": {"application/yaml": {"schema": {"$ref": "#/components/schemas/Kubeconfig"}}},
        "headers": {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in {
                "X-Clustercert-Serial": "The serial, lower-case hex.",
                "X-Clustercert-Fingerprint": "SHA-256 of the certificate's DER, lower-case hex.",
                "X-Clustercert-Not-After": "The end of validity, RFC 3339.",
            }.items()
        },
    },
    **ERRORS,
}

_DRY_RUN = {
    "name": "dryRun",
    "in": "query",
    "description": "All: answer with an IssuancePreview; sign and record nothing.",
    "schema": {"type": "string", "enum": ["All"]},
}

router = APIRouter(tags=["CCE"])


def _documented(shape: type[bodies.AutopilotCertRequest] | None) -> dict[str, Any]:
    """Query and body for OpenAPI: the bytes are read here and not by the framework, after the caller is known."""
    document: dict[str, Any] = {"parameters": [_DRY_RUN]}
    if shape is not None:
        content = {"application/json": {"schema": shape.model_json_schema()}}
        document["requestBody"] = {"required": True, "content": content}
    return document


@router.post(
    PATH,
    summary="Obtain a cluster certificate as a kubeconfig",
    responses=_KUBECONFIG,
    openapi_extra=_documented(bodies.ClusterCertRequest),
)
async def create_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Issue a certificate for the caller, with the groups and at most the lifetime that the policy gives."""
    return await answer(request, services, project_id, cluster_id, bodies.ClusterCertRequest)


@router.post(
    "/autopilot/v3/projects/{project_id}/clusters/{cluster_id}/clustercert",
    summary="Obtain a cluster certificate as a kubeconfig, Autopilot form",
    responses=_KUBECONFIG,
    openapi_extra=_documented(bodies.AutopilotCertRequest),
)
async def create_autopilot_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Like the other form, without expire_at."""
    return await answer(request, services, project_id, cluster_id, bodies.AutopilotCertRequest)


@router.get(
    PATH,
    summary="Obtain a cluster certificate as a kubeconfig, deprecated form",
    responses=_KUBECONFIG,
    openapi_extra=_documented(None),
    deprecated=True,
)
async def get_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Issue a certificate for 30 days, or for the policy's longest where that is less."""
    return await answer(request, services, project_id, cluster_id, None)


async def answer(
    request: Request,
    services: Services,
    project_id: str,
    cluster_id: str,
    shape: type[bodies.AutopilotCertRequest] | None,
) -> Response:
    """Size, caller, meaning, then the use case: in this order. Without a shape it is the GET form."""
    raw = await raw_body(request, services)
    caller = await authenticated(request, raw, services)
    if shape is None and not services.options.get_clustercert:
        raise MethodNotAllowed("The GET form is switched off here. Use POST with a duration.", allow=["POST"])
    dry = _dry_run(request)
    try:
        ask = _ask(request, raw, shape) if shape is not None else Ask(duration=GET_DAYS, clip=True)
    except ClustercertError as failure:
        if not dry:
            await services.issuance.record_refusal(caller, project_id, cluster_id, failure)
        raise
    if dry:
        try:
            preview = await services.issuance.preview(caller, project_id, cluster_id, ask)
        except ClustercertError as failure:
            # To ask what would be is nothing for the audit.
            failure.recorded = True
            raise
        return render.json_response(_preview_body(preview))
    issued = await services.issuance.issue(caller, project_id, cluster_id, ask)
    request.scope["clustercert.log"] = {
        "user": issued.grant.username,
        "cluster": issued.cluster.id,
        "fingerprint": issued.fingerprint,
    }
    document = kubeconfig(issued, insecure_external=services.options.insecure_external)
    if _wants_yaml(request):
        body, media_type = to_yaml(document).encode(), b"yaml"
    else:
        body, media_type = to_json(document), b"json"
    return render.Rendered(body, _headers(issued, media_type))


def direct(services: Callable[[], Services]) -> DirectRoute:
    """The same POST without the framework's middleware. FastAPI's own route to it stays for the OpenAPI document."""

    async def create(request: Request) -> Response:
        return await answer(request, services(), **request.path_params, shape=bodies.ClusterCertRequest)

    return DirectRoute(PATH, create, methods=["POST"])


def _dry_run(request: Request) -> bool:
    """Whether only a preview is wanted; as for the Kubernetes API, All is the only value."""
    if not request.scope["query_string"]:
        return False
    wish = request.query_params.getlist("dryRun")
    if wish and set(wish) != {"All"}:
        raise InvalidRequest("dryRun: the only value is All.")
    return bool(wish)


def _ask(request: Request, raw: bytes, shape: type[bodies.AutopilotCertRequest]) -> Ask:
    require_json(request)
    return _known_ask(raw, shape) if len(raw) <= SHORT else _parsed_ask(raw, shape)


def _parsed_ask(raw: bytes, shape: type[bodies.AutopilotCertRequest]) -> Ask:
    return bodies.parsed(json_object(raw), shape).ask()


# Nearly all of them ask for nothing but a duration. What is refused isn't kept.
_known_ask = functools.lru_cache(maxsize=1024)(_parsed_ask)


def _headers(issued: Issued, media_type: bytes) -> Iterable[tuple[bytes, bytes]]:
    return (
        (b"cache-control", b"no-store"),
        (b"vary", b"Accept"),
        (b"x-clustercert-serial", issued.serial.encode()),
        (b"x-clustercert-fingerprint", issued.fingerprint.encode()),
        (b"x-clustercert-not-after", _rfc3339(issued.grant.not_after).encode()),
        (b"content-type", b"application/" + media_type),
    )


def _wants_yaml(request: Request) -> bool:
    """Whether Accept names YAML, and JSON not before it. No client of the contract does; `*/*` means JSON."""
    accepted = b",".join([value for name, value in request.scope["headers"] if name == b"accept"])
    if b"yaml" not in accepted.lower():
        return False
    for media_range in accepted.decode("latin-1").split(","):
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
        "organizations": list(preview.organizations),
        "not_before": _rfc3339(preview.grant.not_before),
        "not_after": _rfc3339(preview.grant.not_after),
        "issuer": preview.issuer,
        "key_type": preview.key_type,
        "trace": dict(preview.grant.trace),
    }


# All certificates of a second share their ends, and most of them the policy's lifetimes.
@functools.lru_cache(maxsize=1024)
def _rfc3339(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
