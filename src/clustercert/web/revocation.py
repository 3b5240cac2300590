"""Revoking: clustercertrevoke, byte for byte as the contract has it, and our own ways beside it.

Source: CCE API reference, "Revoking Cluster Certificates" of a user; where we differ is in `docs/cce-divergences.md`.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from clustercert.errors import NotFound
from clustercert.model import JsonObject, Revocation
from clustercert.revocation import Grounds, Page
from clustercert.web import render
from clustercert.web import revocation_bodies as bodies
from clustercert.web.bodies import ErrorBody, parsed
from clustercert.web.cce import CLUSTER, ERRORS
from clustercert.web.deps import CallerDep, RawBody, Services, ServicesDep, json_object, origin, require_json
from clustercert.web.paging import Cursor, Limit, is_row_number, page_before, page_limit

OWN = "/clustercert/v1"
OWN_CLUSTER = OWN + "/projects/{project_id}/clusters/{cluster_id}"

_REVOKED: dict[int | str, dict[str, Any]] = {
    200: {"model": bodies.RevocationBody, "description": "The revocation. It is durable."},
    409: {"model": ErrorBody, "description": "Two certificates have this serial."},
    **ERRORS,
}
_LISTED: dict[int | str, dict[str, Any]] = {
    200: {"model": bodies.RevocationListBody, "description": "The revocations, undone ones too."},
    **ERRORS,
}
_UNDONE: dict[int | str, dict[str, Any]] = {
    200: {"model": bodies.RevocationBody, "description": "The revocation, undone."},
    409: {"model": ErrorBody, "description": "It can't be undone, or not any more."},
    **ERRORS,
}

router = APIRouter(tags=["Revocation"])


def _documented(shape: type[BaseModel], *, required: bool) -> dict[str, Any]:
    """The body for OpenAPI: its bytes are read here and not by the framework, after the caller is known."""
    content = {"application/json": {"schema": shape.model_json_schema()}}
    return {"requestBody": {"required": required, "content": content}}


@router.post(
    CLUSTER + "/clustercertrevoke",
    tags=["CCE"],
    summary="Revoke what a user was given for a cluster",
    responses={200: {"description": "Revoked. The answer has no body."}, **ERRORS},
    openapi_extra=_documented(bodies.ClusterCertRevokeRequest, required=True),
    response_class=Response,
)
async def revoke_clustercert(
    request: Request, project_id: str, cluster_id: str, caller: CallerDep, raw: RawBody, services: ServicesDep
) -> Response:
    """One's own, or as an administrator of the project anybody's. What is asked for afterwards is good."""
    require_json(request)
    user_id = parsed(json_object(raw), bodies.ClusterCertRevokeRequest).applicant()
    made = await services.revoking.applicant(caller, project_id, cluster_id, user_id, Grounds())
    _log(request, made)
    return Response(status_code=200)


@router.post(
    OWN_CLUSTER + "/revoke",
    summary="Revoke everything that was issued for a cluster",
    responses=_REVOKED,
    openapi_extra=_documented(bodies.RevokeRequest, required=False),
)
async def revoke_cluster(
    request: Request, project_id: str, cluster_id: str, caller: CallerDep, raw: RawBody, services: ServicesDep
) -> Response:
    """For administrators of the project. What is asked for afterwards is good."""
    made = await services.revoking.whole_cluster(caller, project_id, cluster_id, _grounds(request, raw))
    return _answer(request, services, made)


@router.post(
    OWN_CLUSTER + "/certificates/{certificate}/revoke",
    summary="Revoke one certificate",
    responses=_REVOKED,
    openapi_extra=_documented(bodies.RevokeRequest, required=False),
)
async def revoke_certificate(
    request: Request,
    project_id: str,
    cluster_id: str,
    certificate: str,
    caller: CallerDep,
    raw: RawBody,
    services: ServicesDep,
) -> Response:
    """By fingerprint, credential number or serial; one's own, or as an administrator anybody's. Twice is once."""
    made = await services.revoking.certificate(
        caller, project_id, cluster_id, certificate, _grounds(request, raw)
    )
    return _answer(request, services, made)


@router.get(OWN_CLUSTER + "/revocations", summary="List the revocations in a cluster", responses=_LISTED)
async def list_cluster_revocations(
    project_id: str,
    cluster_id: str,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response:
    """For administrators of the project. Those of a user in all clusters are listed with the user."""
    page = await services.revoking.of_cluster(
        caller, project_id, cluster_id, limit=page_limit(limit), before=page_before(cursor)
    )
    return _page(services, page)


@router.post(
    OWN + "/users/{user_id}/revoke",
    summary="Revoke what a user was given in every project",
    responses=_REVOKED,
    openapi_extra=_documented(bodies.RevokeRequest, required=False),
)
async def revoke_user(
    request: Request, user_id: str, caller: CallerDep, raw: RawBody, services: ServicesDep
) -> Response:
    """For operators. The user need not exist any more. What is asked for afterwards is good."""
    made = await services.revoking.user(caller, user_id, _grounds(request, raw))
    return _answer(request, services, made)


@router.get(
    OWN + "/users/{user_id}/revocations",
    summary="List the revocations of a user in all clusters",
    responses=_LISTED,
)
async def list_user_revocations(
    user_id: str, caller: CallerDep, services: ServicesDep, limit: Limit = None, cursor: Cursor = None
) -> Response:
    """For operators. That of a disabled or deleted user is one of them."""
    page = await services.revoking.of_user(
        caller, user_id, limit=page_limit(limit), before=page_before(cursor)
    )
    return _page(services, page)


@router.post(OWN + "/revocations/{revocation_id}/undo", summary="Undo a revocation", responses=_UNDONE)
async def undo_revocation(
    request: Request, revocation_id: str, caller: CallerDep, services: ServicesDep
) -> Response:
    """For operators, within `revocation.undo_window`; never what a compromised key or its holder revoked."""
    undone = await services.revoking.undone(caller, _number(revocation_id))
    return _answer(request, services, undone)


@router.post(
    OWN + "/certificates/{certificate}/revoke-with-key",
    summary="Revoke a certificate by proof of its key",
    responses=_REVOKED,
    openapi_extra=_documented(bodies.RevokeWithKeyRequest, required=True) | {"security": []},
)
async def revoke_with_key(
    request: Request, certificate: str, raw: RawBody, services: ServicesDep
) -> Response:
    """By fingerprint or credential number, for whoever has the certificate's key. It can't be undone."""
    require_json(request)
    body = parsed(json_object(raw), bodies.RevokeWithKeyRequest)
    made = await services.revoking.proved(
        certificate.lower(), body.signature_bytes(), body.grounds(), origin(request)
    )
    return _answer(request, services, made)


def _grounds(request: Request, raw: bytes) -> Grounds:
    """Why, from the body; without one, nothing is said."""
    if not raw:
        return Grounds()
    require_json(request)
    return parsed(json_object(raw), bodies.RevokeRequest).grounds()


def _answer(request: Request, services: Services, made: Revocation) -> Response:
    _log(request, made)
    return render.json_response(
        bodies.revocation_body(made, can_be_undone=services.revoking.can_undo(made)), headers=render.NO_STORE
    )


def _page(services: Services, page: Page) -> Response:
    listed = [
        bodies.revocation_body(each, can_be_undone=services.revoking.can_undo(each))
        for each in page.revocations
    ]
    body: JsonObject = {"revocations": listed, "next": bodies.cursor(page)}
    return render.json_response(body, headers=render.NO_STORE)


def _log(request: Request, made: Revocation) -> None:
    request.scope["clustercert.log"] = {
        "revocation": made.id,
        "user": made.user_id,
        "cluster": made.cluster_id,
        "fingerprint": made.fingerprint.hex() if made.fingerprint is not None else None,
    }


def _number(text: str) -> int:
    """A revocation's id. What can't be one doesn't exist."""
    if not is_row_number(text):
        raise NotFound("There is no such revocation.")
    return int(text)
