"""Routes of revocation: CCE's clustercertrevoke, and our own API.

Source: CCE API reference, "Revoking Cluster Certificates". `docs/cce-divergences.md` lists our differences.
"""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from clustercert.certificates.recorder import Reason
from clustercert.certificates.revocation import RevocationPage, RevocationPreview
from clustercert.http import query, responses
from clustercert.http.api import IN_CLUSTER, OWN
from clustercert.http.api import revocation_bodies as bodies
from clustercert.http.body import parsed, require_json
from clustercert.http.cce.clusters import CLUSTER
from clustercert.http.context import context_of
from clustercert.http.dependencies import Anonymous, Call, CallDep, RawBody, Services, ServicesDep
from clustercert.http.openapi import ERRORS, described, json_body
from clustercert.http.paging import PageDep, numbered_page, row_number
from clustercert.model import Revocation
from clustercert.model.errors import InvalidRequest, NotFound

_ERRORS = ERRORS | {409: "Two certificates have this serial."}
_REVOKED = described("The revocation, durably recorded.", bodies.RevokedBody, errors=_ERRORS)
_SCOPE_REVOKED = described(
    "The revocation, durably recorded; the preview if dryRun=All.",
    bodies.RevokedBody | bodies.RevocationPreviewBody,
    errors=_ERRORS,
)
_KEY_REVOKED = described("The revocation, durably recorded.", bodies.RevocationBody, errors=_ERRORS)
_LISTED = described("The revocations, including undone ones.", bodies.RevocationListBody)
_UNDONE = described(
    "The revocation, undone.",
    bodies.RevocationBody,
    errors=ERRORS | {409: "The revocation can't be undone, or its undo window has passed."},
)
_REASON = json_body(bodies.RevokeRequest.model_json_schema(), required=False)
_DRY_RUN = query.choice(
    "dryRun",
    "All: revoke nothing, and return a RevocationPreview.",
    ("All",),
)
Name = Annotated[
    str | None, Query(description="The whole name.", json_schema_extra={"maxLength": query.MAX_TEXT})
]
_SCOPE = _REASON | query.described([_DRY_RUN])

router = APIRouter(tags=["Revocation"])


@router.post(
    CLUSTER + "/clustercertrevoke",
    tags=["CCE"],
    responses=described("Revoked. The response has no body."),
    openapi_extra=json_body(bodies.ClusterCertRevokeRequest.model_json_schema()),
    response_class=Response,
)
async def revoke_clustercert(call: CallDep, project_id: str, cluster_id: str) -> Response:
    """Revoke all certificates of a user for a cluster.

    Users can revoke their own certificates, project admins any user's. Certificates issued later stay valid.
    """
    require_json(call.request)
    user_id = parsed(call.body, bodies.ClusterCertRevokeRequest).user_id()
    revocation = await call.services.revocation.revoke_user_on_cluster(
        call.caller, project_id, cluster_id, user_id, Reason()
    )
    _log(call.request, revocation)
    return Response(status_code=200)


@router.post(IN_CLUSTER + "/revoke", responses=_SCOPE_REVOKED, openapi_extra=_SCOPE)
async def revoke_cluster(call: CallDep, project_id: str, cluster_id: str) -> Response:
    """Revoke all certificates of a cluster. Only for project admins. Certificates issued later stay valid."""
    reason, service = _reason(call), call.services.revocation
    if _is_dry_run(call):
        return _preview(await service.previews.of_cluster(call.caller, project_id, cluster_id))
    return await _revoked(call, await service.revoke_cluster(call.caller, project_id, cluster_id, reason))


@router.post(IN_CLUSTER + "/users/{user_id}/revoke", responses=_SCOPE_REVOKED, openapi_extra=_SCOPE)
async def revoke_user_in_cluster(call: CallDep, project_id: str, cluster_id: str, user_id: str) -> Response:
    """Revoke all certificates of a user for a cluster.

    Like CCE's clustercertrevoke, but with a reason. Users can revoke their own certificates, project admins any user's.
    """
    reason, service = _reason(call), call.services.revocation
    if _is_dry_run(call):
        return _preview(
            await service.previews.of_user_on_cluster(call.caller, project_id, cluster_id, user_id)
        )
    revocation = await service.revoke_user_on_cluster(call.caller, project_id, cluster_id, user_id, reason)
    return await _revoked(call, revocation)


@router.post(IN_CLUSTER + "/certificates/{certificate}/revoke", responses=_REVOKED, openapi_extra=_REASON)
async def revoke_certificate(call: CallDep, project_id: str, cluster_id: str, certificate: str) -> Response:
    """Revoke one certificate.

    Send its fingerprint, credential number or serial. Users can revoke their own certificates, project admins any.

    If the caller has already revoked the certificate for an equal or stronger reason, returns that revocation.
    """
    revocation = await call.services.revocation.revoke_certificate(
        call.caller, project_id, cluster_id, certificate, _reason(call)
    )
    return await _revoked(call, revocation)


@router.post(OWN + "/certificates/{certificate}/revoke", responses=_REVOKED, openapi_extra=_REASON)
async def revoke_own_certificate(call: CallDep, certificate: str) -> Response:
    """Revoke one certificate of any project.

    Send its fingerprint, credential number or serial. Users can revoke their own certificates, also in a project where
    they have no role any more, project admins those of their project, operators any.
    """
    revocation = await call.services.revocation.revoke_own_certificate(
        call.caller, certificate, _reason(call)
    )
    return await _revoked(call, revocation)


@router.get(IN_CLUSTER + "/revocations", responses=_LISTED)
async def list_cluster_revocations(
    call: CallDep, project_id: str, cluster_id: str, page: PageDep
) -> Response:
    """List the revocations in a cluster.

    Only for project admins. Revocations of a user in all clusters are listed under the user.
    """
    found = await call.services.revocation.cluster_revocations(
        call.caller, project_id, cluster_id, limit=page.limit, before=page.cursor
    )
    return _page(call.services, found)


@router.post(OWN + "/users/{user_id}/revoke", responses=_SCOPE_REVOKED, openapi_extra=_SCOPE)
async def revoke_user(call: CallDep, user_id: str) -> Response:
    """Revoke all certificates of a user in every project.

    Only for operators. The user may already be deleted. Certificates issued later stay valid.
    """
    reason, service = _reason(call), call.services.revocation
    if _is_dry_run(call):
        return _preview(await service.previews.of_user(call.caller, user_id))
    return await _revoked(call, await service.revoke_user(call.caller, user_id, reason))


@router.get(OWN + "/users-by-name", responses=described("The users.", bodies.NamedUsersBody))
async def find_users(call: CallDep, name: Name = None) -> Response:
    """Find the users of a name.

    Only for operators. The name is that of a user of the built-in identity, alone or as `DOMAIN/NAME`, the name of a
    user of an issuer or of Keystone who has logged in, such as `sso/anna`, or a name that the policy chose.
    """
    found = await call.services.revocation.previews.users_named(call.caller, _name(name))
    return responses.private({"users": [asdict(each) for each in found]})


@router.get(
    IN_CLUSTER + "/users-by-name", responses=described("The ids of the users.", bodies.NamedUserIdsBody)
)
async def find_users_in_cluster(
    call: CallDep, project_id: str, cluster_id: str, name: Name = None
) -> Response:
    """Find the users of a name in unexpired certificates of a cluster.

    Project admins find all users, others themselves.
    """
    found = await call.services.revocation.previews.users_of_cluster_named(
        call.caller, project_id, cluster_id, _name(name)
    )
    return responses.private({"users": [{"id": each} for each in found]})


@router.get(OWN + "/users/{user_id}/revocations", responses=_LISTED)
async def list_user_revocations(call: CallDep, user_id: str, page: PageDep) -> Response:
    """List the revocations of a user in all clusters.

    Only for operators. Includes revocations caused by disabling or deleting the user.
    """
    found = await call.services.revocation.user_revocations(
        call.caller, user_id, limit=page.limit, before=page.cursor
    )
    return _page(call.services, found)


@router.post(OWN + "/revocations/{revocation_id}/undo", responses=_UNDONE)
async def undo_revocation(call: CallDep, revocation_id: str) -> Response:
    """Undo a revocation.

    Only for operators, within `revocation.undo_window`. Revocations for keyCompromise or by the key's holder are final.
    """
    number = row_number(revocation_id, NotFound("There is no such revocation."))
    undone = await call.services.revocation.undo(call.caller, number)
    _log(call.request, undone)
    return _body(call.services, undone)


@router.post(
    OWN + "/certificates/{certificate}/revoke-with-key",
    responses=_KEY_REVOKED,
    openapi_extra=json_body(bodies.RevokeWithKeyRequest.model_json_schema()) | {"security": []},
    dependencies=[Anonymous],
)
async def revoke_with_key(
    request: Request, certificate: str, raw: RawBody, services: ServicesDep
) -> Response:
    """Revoke a certificate by proof of possession of its key.

    Send its fingerprint or credential number. Needs no authentication. The revocation can't be undone.
    """
    require_json(request)
    body = parsed(raw, bodies.RevokeWithKeyRequest)
    revocation = await services.revocation.revoke_by_key(
        certificate.lower(), body.signature_bytes(), body.stated_reason(), context_of(request).origin
    )
    _log(request, revocation)
    return _body(services, revocation)


def _name(name: str | None) -> str:
    if name is None:
        raise InvalidRequest("name: send the name of a user.")
    return query.plain_text("name", name)


def _is_dry_run(call: Call) -> bool:
    return bool(query.parsed(call.request.query_params, [_DRY_RUN], ()))


def _reason(call: Call) -> Reason:
    """Parse the reason from the optional body."""
    if not call.body:
        return Reason()
    require_json(call.request)
    return parsed(call.body, bodies.RevokeRequest).stated_reason()


async def _revoked(call: Call, revocation: Revocation) -> Response:
    """Return the revocation, and how its cluster enforces it."""
    _log(call.request, revocation)
    services, controls = call.services, None
    if revocation.cluster_id and revocation.project_id is not None:
        found = await services.clusters.queries.find(revocation.cluster_id, revocation.project_id)
        controls = await services.inventory.access.controls(found[0]) if found else None
    if controls is not None and revocation.fingerprint is not None:
        certificate = await services.revocation.recorder.find_certificate(revocation.fingerprint.hex())
        controls = tuple(
            each for each in controls if each.name != "binding" or certificate.has_only_credential_group
        )
    body = bodies.revocation_body(revocation, services.revocation.recorder)
    return responses.private(body | bodies.enforcement_body(controls))


def _body(services: Services, revocation: Revocation) -> Response:
    return responses.private(bodies.revocation_body(revocation, services.revocation.recorder))


def _preview(preview: RevocationPreview) -> Response:
    return responses.private(bodies.preview_body(preview))


def _page(services: Services, page: RevocationPage) -> Response:
    recorder = services.revocation.recorder
    return responses.private(
        numbered_page(
            "revocations",
            page.revocations,
            lambda each: bodies.revocation_body(each, recorder),
            lambda each: each.id,
            page.next,
            services.options.page_bytes,
        )
    )


def _log(request: Request, revocation: Revocation) -> None:
    context_of(request).log_fields |= {
        "revocation": revocation.id,
        "user": revocation.user_id,
        "cluster": revocation.cluster_id,
        "fingerprint": revocation.fingerprint.hex() if revocation.fingerprint is not None else None,
    }
