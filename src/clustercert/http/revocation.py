"""Routes that revoke certificates: CCE's clustercertrevoke, and the routes of our own API.

Source: CCE API reference, "Revoking Cluster Certificates". `docs/cce-divergences.md` lists the differences between this
service and CCE.
"""

import base64
import binascii
from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import Response

from clustercert.certificates.credential_end import Enforcement, RefusedRequests
from clustercert.certificates.recorder import MAX_NOTE, Reason
from clustercert.certificates.revocation import PartOfList, RevocationPage, RevocationPreview
from clustercert.http import IN_CLUSTER, IN_PROJECT, OWN, query, responses
from clustercert.http.body import RequestBody, parsed, require_json
from clustercert.http.cce.clusters import CLUSTER, MAX_CCE_BODY
from clustercert.http.certificates import ACTOR_NAME, REFUSES, WITHIN_SECONDS, known_users, name_of
from clustercert.http.context import context_of
from clustercert.http.dependencies import Call, CallDep, RawBody, Services, ServicesDep
from clustercert.http.fleet import CALLED_AT, ENFORCEMENT
from clustercert.http.openapi import ERRORS, KIB, described, json_body
from clustercert.http.paging import PageBody, PageDep, numbered_page, row_number
from clustercert.http.responses import Hex, ResponseBody, Time
from clustercert.model import JsonObject, Revocation, RevocationReason
from clustercert.model.choices import EnforcementState
from clustercert.model.errors import InvalidRequest, NotFound
from clustercert.model.rights import reads_everything
from clustercert.pki.leaf import MAX_NAME

# The maximum length of a signature in base64 characters. A signature by a 4096-bit RSA key has 684 characters.
MAX_SIGNATURE = 1024


class ClusterCertRevokeRequest(RequestBody):
    """The body of POST clustercertrevoke: send exactly one of the fields. Null counts as absent."""

    userId: str | None = Field(  # noqa: N815 - CCE's name
        default=None,
        description="The user id: the CN of the certificates. The user may already be deleted.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME},
    )
    agencyId: str | None = Field(  # noqa: N815 - CCE's name
        default=None,
        description="The agency id, instead of a user id.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME},
    )

    def user_id(self) -> str:
        """Return the user or agency id. Raises InvalidRequest unless exactly one of these ids is set."""
        if self.userId is not None and self.agencyId is not None:
            raise InvalidRequest("userId, agencyId: send one of them, not both.")
        user_id = self.userId if self.userId is not None else self.agencyId
        if user_id is None:
            raise InvalidRequest("userId, agencyId: send one of them.")
        return user_id


class RevokeRequest(RequestBody):
    """The optional body of requests that revoke without a proof of possession."""

    reason: RevocationReason | None = Field(
        default=None,
        description="A reason from RFC 5280. A revocation for keyCompromise can't be undone.",
    )
    note: str | None = Field(
        default=None,
        description="Recorded in the audit log. No control or bidirectional characters.",
        json_schema_extra={"maxLength": MAX_NOTE},
    )

    def stated_reason(self) -> Reason:
        return Reason(self.reason or "unspecified", self.note)


class RevokeWithKeyRequest(RevokeRequest):
    """The body of revoke-with-key."""

    signature: str = Field(
        description="Base64 signature by the certificate's key (ECDSA or RSA PKCS#1 v1.5 with SHA-256, or"
        " Ed25519) over `clustercert revoke v1`, the service's name and the fingerprint, each followed by a line"
        " feed.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_SIGNATURE},
    )

    def signature_bytes(self) -> bytes:
        """Decode the signature. Raises InvalidRequest if the signature is not base64."""
        try:
            if len(self.signature) > MAX_SIGNATURE:
                raise ValueError("too long")
            return base64.b64decode(self.signature, validate=True)
        except (ValueError, binascii.Error) as error:
            raise InvalidRequest(f"signature: send base64 of at most {MAX_SIGNATURE} characters.") from error


_NotEmpty = Annotated[str | None, BeforeValidator(lambda text: text or None)]


class RevocationBody(ResponseBody):
    """A revocation. Times are in the format of RFC 3339."""

    id: int
    fingerprint: Hex | None = Field(description="Null if all certificates of a user or cluster are revoked.")
    user_id: _NotEmpty = Field(description="Null if the revocation is for all users.")
    cluster_id: _NotEmpty = Field(description="Null if the revocation is for all clusters.")
    reason: str = Field(json_schema_extra={"enum": list(get_args(RevocationReason))})
    note: str | None
    at: Time
    by: str = Field(
        description="A user id, `holder` after a proof of possession, or `cli:` followed by an operating system"
        " account."
    )
    proved: bool = Field(description="Whether the holder proved possession of the certificate's key.")
    undone_at: Time | None
    undone_by: str | None
    can_be_undone: bool = Field(description="Whether an operator can undo the revocation now.")


class ListedRevocationBody(RevocationBody):
    """A revocation in a list, with names."""

    by_name: str | None = Field(description=ACTOR_NAME)
    undone_by_name: str | None = Field(description=ACTOR_NAME)
    user_name: str | None = Field(
        description="Null if the revocation is for all users, if the user is unknown, and for callers other"
        " than operators and auditors."
    )
    user_domain: str | None = Field(
        description="The name of the user's domain or issuer. Null if `user_name` is null."
    )
    cluster_name: str | None = Field(
        description="Null if the revocation is for all clusters, or if the cluster was removed."
    )
    project_name: str | None = Field(
        description="The project of the cluster. Null if `cluster_name` is null."
    )
    project_domain: str | None = Field(
        description="The domain of the project. Null if `cluster_name` is null."
    )


class RevokedBody(RevocationBody):
    """A new revocation, and how the cluster enforces the revocation."""

    enforcement: EnforcementState | None = Field(description=f"{ENFORCEMENT} Null if `enforced_by` is null.")
    webhook_called_at: Time | None = Field(description=CALLED_AT)
    enforced_by: list[str] | None = Field(
        description="The fast controls that are set up in the cluster; for a single certificate, only the controls"
        " that can stop this certificate. If the list is empty, the API server accepts revoked certificates until they"
        " expire. Null if the revocation is for all clusters, or if the cluster was removed."
    )
    refuses: RefusedRequests | None = Field(description=f"{REFUSES} Null if `enforced_by` is null.")
    within_seconds: int | None = Field(description=WITHIN_SECONDS)
    expected_by: Time | None = Field(
        description="By when the API server should refuse these requests: the time of the revocation plus"
        " `within_seconds`."
    )
    lacking: str | None = Field(
        description="Missing parts of the controls' set-up; null if no part is known to be missing."
    )
    does_not_stop: str | None = Field(
        description="What the fastest control does not stop. Null if no control is set up, or if `enforced_by` is null."
    )


class RevocationPreviewBody(ResponseBody):
    """The users and clusters whose certificates a request would revoke."""

    user_id: str | None = Field(description="Null if the request is for all users.")
    user_name: str | None = Field(
        description="Null if the request is for all users, or if the user was deleted, or is a user of"
        " another identity provider who has not logged in."
    )
    user_domain: str | None = Field(
        description="The name of the user's domain or issuer. Null if `user_name` is null."
    )
    cluster_id: str | None = Field(description="Null if the request is for all clusters.")
    cluster_name: str | None
    live: int = Field(description="How many certificates are valid and unrevoked now.")


class NamedUserBody(ResponseBody):
    """A user of the built-in identity service, or a user of an OIDC issuer or Keystone who has logged in here."""

    id: str
    name: str
    domain: str = Field(
        description="The domain's name, or the issuer's name in the settings. Empty if unknown, such as for a deleted"
        " user."
    )
    issuer: str = Field(description="The URL of the issuer or Keystone, or `built-in`. Empty if unknown.")


class FoundUserBody(NamedUserBody):
    """A user with the last login."""

    last_login_at: Time | None = Field(
        description="When a user of an OIDC issuer or Keystone last logged in; updated at most once an hour. Null for"
        " other users."
    )


class NamedUsersBody(BaseModel):
    """The users who have the requested name, sorted."""

    users: list[NamedUserBody]


class FoundUsersBody(BaseModel):
    """The users who have the requested name, sorted."""

    users: list[FoundUserBody]


class RevocationListBody(PageBody):
    """A page of revocations, newest first."""

    revocations: list[ListedRevocationBody]


_ERRORS = ERRORS | {409: "Two certificates have this serial."}
_REVOKED = described("The revocation, durably recorded.", RevokedBody, errors=_ERRORS)
_SCOPE_REVOKED = described(
    "The revocation, durably recorded; the preview if dryRun=All.",
    RevokedBody | RevocationPreviewBody,
    errors=_ERRORS,
)
_KEY_REVOKED = described("The revocation, durably recorded.", RevocationBody, errors=_ERRORS)
_LISTED = described("The revocations, including undone ones.", RevocationListBody)
_UNDONE = described(
    "The revocation, undone.",
    RevocationBody,
    errors=ERRORS | {409: "The revocation can't be undone, or its undo window has passed."},
)
_REASON = json_body(RevokeRequest, limit=8 * KIB, required=False)
DryRun = Annotated[
    Literal["All"] | None,
    Query(alias="dryRun", description="All: revoke nothing, and return a RevocationPreview."),
]
Since = Annotated[query.Time | None, Query(description="Only revocations at or after this time, RFC 3339.")]
Name = Annotated[query.Text | None, Query(description="The complete name.")]

router = APIRouter(tags=["Revocation"])


@router.post(
    CLUSTER + "/clustercertrevoke",
    tags=["CCE"],
    responses=described("Revoked. The response has no body."),
    openapi_extra=json_body(ClusterCertRevokeRequest, limit=MAX_CCE_BODY),
    response_class=Response,
)
async def revoke_clustercert(call: CallDep, project_id: str, cluster_id: str) -> Response:
    """Revoke all certificates of a user for a cluster.

    Users can revoke their own certificates; project admins and operators can revoke the certificates of any user.
    Certificates issued later stay valid. Also returns 200 for the ids of deleted and unknown users.
    """
    require_json(call.request)
    user_id = parsed(call.body, ClusterCertRevokeRequest).user_id()
    revocation = await call.services.revocation.revoke_applicant(call.caller, project_id, cluster_id, user_id)
    if revocation is not None:
        _log(call.request, revocation)
    return Response(status_code=200)


@router.post(IN_CLUSTER + "/revoke", responses=_SCOPE_REVOKED, openapi_extra=_REASON)
async def revoke_cluster(call: CallDep, project_id: str, cluster_id: str, dry_run: DryRun = None) -> Response:
    """Revoke all certificates of a cluster.

    Only for project admins and operators. Certificates issued later stay valid.
    """
    reason, service = _reason(call), call.services.revocation
    if dry_run:
        return _preview(await service.previews.preview_cluster(call.caller, project_id, cluster_id))
    return await _revoked(call, await service.revoke_cluster(call.caller, project_id, cluster_id, reason))


@router.post(IN_CLUSTER + "/users/{user_id}/revoke", responses=_SCOPE_REVOKED, openapi_extra=_REASON)
async def revoke_user_in_cluster(
    call: CallDep, project_id: str, cluster_id: str, user_id: str, dry_run: DryRun = None
) -> Response:
    """Revoke all certificates of a user for a cluster.

    Like CCE's clustercertrevoke, but with a reason. Users can revoke their own certificates. Project admins can revoke
    the certificates of users who have a role in the project, or had a certificate for one of its clusters. Operators
    can revoke the certificates of any user id.
    """
    reason, service = _reason(call), call.services.revocation
    if dry_run:
        return _preview(
            await service.previews.preview_user_on_cluster(call.caller, project_id, cluster_id, user_id)
        )
    revocation = await service.revoke_user_on_cluster(call.caller, project_id, cluster_id, user_id, reason)
    return await _revoked(call, revocation)


@router.post(IN_CLUSTER + "/certificates/{certificate}/revoke", responses=_REVOKED, openapi_extra=_REASON)
async def revoke_certificate(call: CallDep, project_id: str, cluster_id: str, certificate: str) -> Response:
    """Revoke one certificate.

    Send the certificate's fingerprint, credential number or serial. Users can revoke their own certificates; project
    admins and operators can revoke any certificate.

    If the caller has already revoked the certificate for an equal or stronger reason, returns that revocation.
    """
    revocation = await call.services.revocation.revoke_certificate(
        call.caller, project_id, cluster_id, certificate, _reason(call)
    )
    return await _revoked(call, revocation)


@router.post(OWN + "/certificates/{certificate}/revoke", responses=_REVOKED, openapi_extra=_REASON)
async def revoke_own_certificate(call: CallDep, certificate: str) -> Response:
    """Revoke one certificate of any project.

    Send the certificate's fingerprint, credential number or serial. Users can revoke their own certificates, even in a
    project where they no longer have a role. Project admins can revoke all certificates of their project; operators can
    revoke any certificate.
    """
    revocation = await call.services.revocation.revoke_own_certificate(
        call.caller, certificate, _reason(call)
    )
    return await _revoked(call, revocation)


@router.get(IN_CLUSTER + "/revocations", responses=_LISTED)
async def list_cluster_revocations(
    call: CallDep, project_id: str, cluster_id: str, page: PageDep, since: Since = None
) -> Response:
    """List the revocations in a cluster.

    Only for project admins, operators and auditors. Revocations of a user in all clusters are not in this list, but in
    the list of the user.
    """
    part = PartOfList(page.limit, page.cursor, since)
    return await _page(
        call, await call.services.revocation.revocations(call.caller, project_id, cluster_id, part)
    )


@router.get(IN_PROJECT + "/revocations", responses=_LISTED)
async def list_project_revocations(
    call: CallDep, project_id: str, page: PageDep, since: Since = None
) -> Response:
    """List the revocations in all clusters of a project.

    Only for project admins, operators and auditors. Does not include revocations of a user in all projects.
    """
    part = PartOfList(page.limit, page.cursor, since)
    return await _page(call, await call.services.revocation.revocations(call.caller, project_id, None, part))


@router.get(OWN + "/revocations", responses=_LISTED)
async def list_revocations(call: CallDep, page: PageDep, since: Since = None) -> Response:
    """List the revocations in the whole service. Only for operators and auditors."""
    part = PartOfList(page.limit, page.cursor, since)
    return await _page(call, await call.services.revocation.revocations(call.caller, None, None, part))


@router.post(OWN + "/users/{user_id}/revoke", responses=_SCOPE_REVOKED, openapi_extra=_REASON)
async def revoke_user(call: CallDep, user_id: str, dry_run: DryRun = None) -> Response:
    """Revoke all certificates of a user in every project.

    Users can revoke their own certificates; operators can revoke the certificates of every user. The user may already
    be deleted.
    Certificates issued later stay valid.
    """
    reason, service = _reason(call), call.services.revocation
    if dry_run:
        return _preview(await service.previews.preview_user(call.caller, user_id))
    return await _revoked(call, await service.revoke_user(call.caller, user_id, reason))


@router.get(OWN + "/users-by-name", responses=described("The users.", FoundUsersBody))
async def find_users(call: CallDep, name: Name = None) -> Response:
    """Find users by name.

    Only for operators and auditors. Finds users of the built-in identity service by `NAME` or `DOMAIN/NAME`. Finds
    users of OIDC issuers and of Keystone by a name such as `sso/anna`, if the user has logged in before. Also finds
    users by a user name that the policy chose for their certificates.
    """
    found = await call.services.revocation.previews.users_named(call.caller, _name(name))
    users = [FoundUserBody.render(user, last_login_at=last_login_at) for user, last_login_at in found]
    return responses.private({"users": users})


@router.get(IN_CLUSTER + "/users-by-name", responses=described("The users.", NamedUsersBody))
async def find_users_in_cluster(
    call: CallDep, project_id: str, cluster_id: str, name: Name = None
) -> Response:
    """Find users who have unexpired certificates for a cluster, by name.

    Finds users by `DOMAIN/NAME`, or by their name or user name in these certificates. Project admins find all users,
    other callers only themselves.
    """
    found = await call.services.revocation.previews.users_of_cluster_named(
        call.caller, project_id, cluster_id, _name(name)
    )
    return responses.private({"users": [NamedUserBody.render(each) for each in found]})


@router.get(OWN + "/users/{user_id}/revocations", responses=_LISTED)
async def list_user_revocations(call: CallDep, user_id: str, page: PageDep, since: Since = None) -> Response:
    """List the revocations of a user in all clusters.

    Only for operators and auditors. Includes revocations caused by disabling or deleting the user.
    """
    part = PartOfList(page.limit, page.cursor, since)
    return await _page(call, await call.services.revocation.user_revocations(call.caller, user_id, part))


@router.post(OWN + "/revocations/{revocation_id}/undo", responses=_UNDONE)
async def undo_revocation(call: CallDep, revocation_id: str) -> Response:
    """Undo a revocation.

    Only for operators, within `revocation.undo_window`. Revocations with the reason keyCompromise, and revocations by
    the key's holder, can't be undone.
    """
    number = row_number(
        revocation_id, NotFound("There is no such revocation. List the revocations to see their ids.")
    )
    undone = await call.services.revocation.undo(call.caller, number)
    _log(call.request, undone)
    return responses.private(_revocation(call.services, undone))


@router.post(
    OWN + "/certificates/{certificate}/revoke-with-key",
    responses=_KEY_REVOKED,
    openapi_extra=json_body(RevokeWithKeyRequest, limit=8 * KIB) | {"security": []},
)
async def revoke_with_key(
    request: Request, certificate: str, raw: RawBody, services: ServicesDep
) -> Response:
    """Revoke a certificate by proof of possession of its key.

    Send the certificate's fingerprint or credential number. Needs no authentication. The revocation can't be undone.
    """
    require_json(request)
    body = parsed(raw, RevokeWithKeyRequest)
    revocation = await services.revocation.revoke_by_key(
        certificate.lower(), body.signature_bytes(), body.stated_reason(), context_of(request).origin
    )
    _log(request, revocation)
    return responses.private(_revocation(services, revocation))


def _name(name: str | None) -> str:
    if name is None:
        raise InvalidRequest("name: send the name of a user.")
    return name


def _reason(call: Call) -> Reason:
    """Parse the reason from the optional body."""
    if not call.body:
        return Reason()
    require_json(call.request)
    return parsed(call.body, RevokeRequest).stated_reason()


async def _revoked(call: Call, revocation: Revocation) -> Response:
    """Return a response that contains the revocation, and says how the cluster enforces the revocation.

    Adds the revocation to the log line.
    """
    _log(call.request, revocation)
    recorder = call.services.revocation.recorder
    enforcement = await _enforcement(call.services, revocation)
    names = ("enforced_by", "refuses", "within_seconds", "lacking", "does_not_stop")
    body = RevokedBody.render(
        revocation,
        can_be_undone=recorder.can_undo(revocation),
        enforcement=enforcement.state if enforcement is not None else None,
        webhook_called_at=enforcement.asked_at if enforcement is not None else None,
        **{name: getattr(enforcement, name, None) for name in names},
        expected_by=enforcement.expected_by(revocation.at) if enforcement is not None else None,
    )
    return responses.private(body)


async def _enforcement(services: Services, revocation: Revocation) -> Enforcement | None:
    """Return how the cluster enforces a revocation; None for all clusters, and for a removed cluster."""
    if not revocation.cluster_id or revocation.project_id is None:
        return None
    found = await services.clusters.queries.find(revocation.cluster_id, revocation.project_id)
    if not found:
        return None
    certificate = None
    if revocation.fingerprint is not None:
        certificate = await services.revocation.recorder.find_certificate(revocation.fingerprint.hex())
    return await services.inventory.access.enforcement(found[0], certificate)


def _revocation(services: Services, revocation: Revocation) -> JsonObject:
    can_be_undone = services.revocation.recorder.can_undo(revocation)
    return RevocationBody.render(revocation, can_be_undone=can_be_undone)


def _preview(preview: RevocationPreview) -> Response:
    cluster = preview.cluster
    body = RevocationPreviewBody.render(
        preview,
        cluster_id=cluster.id if cluster is not None else None,
        cluster_name=cluster.name if cluster is not None else None,
    )
    return responses.private(body)


async def _page(call: Call, page: RevocationPage) -> Response:
    services, found = call.services, page.revocations
    names = await services.inventory.queries.place_names(
        (each.cluster_id, each.project_id or "") for each in found
    )
    # An admin could get the name of any user, by revoking the certificates of the user's id.
    # Nobody can choose the actors, so everybody gets their names.
    is_reader = reads_everything(call.caller)
    users = await known_users(call, (each.user_id for each in found) if is_reader else ())
    actors = await known_users(call, (actor for each in found for actor in (each.by, each.undone_by)))

    def view(each: Revocation) -> JsonObject:
        user, project_id = users.get(each.user_id), each.project_id or ""
        return ListedRevocationBody.render(
            each,
            can_be_undone=services.revocation.recorder.can_undo(each),
            by_name=name_of(each.by, actors),
            undone_by_name=name_of(each.undone_by, actors),
            user_name=user.name if user is not None else None,
            user_domain=user.domain if user is not None else None,
            cluster_name=names.clusters.get(each.cluster_id),
            project_name=names.projects.get(project_id),
            project_domain=names.domains.get(project_id),
        )

    return responses.private(
        numbered_page(
            "revocations", found, view, lambda each: each.id, page.next, services.options.page_bytes
        )
    )


def _log(request: Request, revocation: Revocation) -> None:
    context_of(request).log_fields |= {
        "revocation": revocation.id,
        "target_cluster_id": revocation.cluster_id,
        "target_user_id": revocation.user_id,
        "target_fingerprint": revocation.fingerprint.hex() if revocation.fingerprint is not None else None,
    }
