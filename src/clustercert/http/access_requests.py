"""Routes about access requests: ask for access, decide about other users' requests, and end access."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, BaseModel, Field
from pydantic.config import JsonDict
from starlette.responses import Response

from clustercert.http import OWN, query, responses
from clustercert.http.body import LIFETIME_LIMITS, RequestBody, bounded_lifetime, parsed, require_json
from clustercert.http.dependencies import Call, CallDep
from clustercert.http.openapi import ERRORS, KIB, described, json_body
from clustercert.http.paging import KeyPageDep, PageBody, numbered_page
from clustercert.http.policy import OfferBody
from clustercert.http.responses import ResponseBody, Time
from clustercert.model import JsonObject
from clustercert.model.access_requests import AccessRequest
from clustercert.model.choices import AccessRequestPart, AccessRequestState, RequestSeverity
from clustercert.model.errors import InvalidRequest
from clustercert.policy.templates import MAX_REASON
from clustercert.requests.terms import MAX_GROUP, MAX_GROUPS, MAX_TICKET, NewRequest
from clustercert.requests.views import SeenRequest, Step
from clustercert.store.access_requests import RequestFilter
from clustercert.store.certificates.lists import PlaceNames

B = TypeVar("B", bound=RequestBody)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# A page's cursor: microseconds since 1970, in the years up to 5138, and the id of a request.
_CURSOR = re.compile(r"(\d{1,17})-([0-9a-f]{32})", re.ASCII)
_PREFIX = re.compile(r"[0-9a-f]{1,32}", re.ASCII)


_REASON_LIMITS: JsonDict = {"minLength": 1, "maxLength": MAX_REASON}


class NewAccessRequest(RequestBody):
    """The body of a new access request. Null counts as absent."""

    project_id: str | None = Field(
        default=None, description="The project that the cluster must be in. By default, any project."
    )
    cluster_id: str
    groups: list[str] = Field(
        description="The Kubernetes groups; one policy rule must offer all of them.",
        json_schema_extra={
            "minItems": 1,
            "maxItems": MAX_GROUPS,
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_GROUP},
        },
    )
    duration: int = Field(
        description="How long the access lasts, in seconds, from the first certificate.",
        json_schema_extra=LIFETIME_LIMITS,
    )
    reason: str = Field(
        description="Why the access is needed; for approvers and the audit log. No control or bidirectional"
        " characters.",
        json_schema_extra=_REASON_LIMITS,
    )
    ticket: str | None = Field(
        default=None,
        description="The name of a ticket in another system.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_TICKET},
    )
    rule: str | None = Field(
        default=None,
        description="The policy rule that offers the groups; needed if several rules offer them.",
    )


class AccessRequestDecision(RequestBody):
    """The body of a decision about an access request."""

    reason: str = Field(
        description="The reason, for the audit log. No control or bidirectional characters.",
        json_schema_extra=_REASON_LIMITS,
    )
    part: AccessRequestPart | None = Field(
        default=None,
        description="The part of the request that the caller decides. If the request waits for a decision about"
        " the other part, the answer is 409. By default, the part that waits for a decision.",
    )


class AccessRequestExtension(RequestBody):
    """The body of a request for more time."""

    duration: int = Field(
        description="How much longer the access lasts, in seconds.", json_schema_extra=LIFETIME_LIMITS
    )
    reason: str = Field(
        description="Why more time is needed; no control or bidirectional characters.",
        json_schema_extra=_REASON_LIMITS,
    )


class AccessRequestEnd(RequestBody):
    """The body of a request to end access early."""

    reason: str | None = Field(
        default=None,
        description="The reason, for the audit log. No control or bidirectional characters.",
        json_schema_extra={"maxLength": MAX_REASON},
    )


class NamedBody(ResponseBody):
    """The id and name of a cluster, project or user."""

    id: str
    name: str | None = Field(description="Null for a deleted project.")


class ProjectBody(NamedBody):
    """The id and name of a project, and the name of its domain."""

    domain: str | None = Field(description="Null for a deleted project.")


class ApprovalConditionBody(ResponseBody):
    """A condition that needs a separate approver."""

    condition: str = Field(description="The condition in words, such as `role is admin`.")
    approved_by: str | None = Field(
        description="The approver's name with the domain; null if the approval is missing."
    )


class AccessDecisionBody(ResponseBody):
    """What one user decided about one part of a request."""

    part: AccessRequestPart
    by: str = Field(description="The id of the user who decided.")
    by_name: str
    at: Time
    approves: bool = Field(description="False if the user denied.")
    reason: str | None


class ExtensionBody(ResponseBody):
    """The request for an extension of the access."""

    duration: int = Field(description="How much longer the access lasts, in seconds.")
    reason: str | None
    state: Literal["pending", "approved", "denied"]


class AccessRequestBody(ResponseBody):
    """An access request as the caller sees it. Times are in the format of RFC 3339; absent values are null."""

    id: str
    state: AccessRequestState = Field(
        description="`pending`: waits for approvals, not used. `approved`: not used yet. `active`: certificates were"
        " issued. `denied`. `expired`: not approved or not used in time. `ended`: ended early. `finished`: its time"
        " was over."
    )
    label: str = Field(description="The state in a few words, such as `active, not approved`.")
    severity: RequestSeverity = Field(
        description="How urgent the state is for the user and the approvers. `plain`: nothing needs to be done."
    )
    due_at: Time | None = Field(
        description="When the request expires, ends or finishes if nobody does anything; null for a closed request."
    )
    next: str = Field(description="What happens next, and who can make it happen. The sentence has no times.")
    next_use_at: Time | None = Field(
        description="The time from which the access can be used before its approval, if the limit of such"
        " uses is reached, or such access was denied within the last 24 hours. Else null."
    )
    usable: bool = Field(
        description="Whether a certificate can be issued in the request's state. See also `refusal`."
    )
    cluster: NamedBody
    project: ProjectBody
    user: NamedBody = Field(description="The user who asks for the access; the name with the domain.")
    user_entitled: bool | None = Field(
        description="Whether the user's present roles and groups still meet the conditions of the rule. Null if"
        " this is unknown: for users of OIDC issuers and Keystone, whose roles the service learns only from their own"
        " requests, and for closed requests and removed clusters."
    )
    groups: list[str]
    rule: str
    duration: int = Field(description="How long the access lasts, in seconds, from the first certificate.")
    reason: str
    ticket: str | None
    before_approval: bool = Field(description="Whether the access may be used before the approval.")
    created_at: Time
    approve_by: Time = Field(description="The time by which all approvals must be given.")
    approved_at: Time | None = Field(
        description="When the approvals were complete; after `closed_at` if the access was approved after its end."
    )
    claim_by: Time | None = Field(
        description="The time by which the first certificate must be requested; null before the approval."
    )
    started_at: Time | None = Field(description="When the first certificate was issued.")
    ends_at: Time | None = Field(description="The end of the access; null before the first certificate.")
    closed_at: Time | None
    closed_by: str | None = Field(
        description="The name of the user who denied or ended the request; null if the request ended by itself."
    )
    closed_why: str | None
    approvals_given: int = Field(description="How many of the conditions have an approver.")
    conditions: list[ApprovalConditionBody] = Field(
        description="The conditions for the approvers: of the extension while the extension waits for"
        " approvals, else of the access."
    )
    decisions: list[AccessDecisionBody] = Field(description="The decisions, oldest first.")
    extension: ExtensionBody | None
    may: list[Step] = Field(
        description="What the caller may do now. The token must be for the request's project, except to end the"
        " caller's own request."
    )
    certificates: int = Field(description="The number of valid certificates of the request.")
    refusal: str | None = Field(
        description="Why the present policy refuses new certificates of the request, although the request's state"
        " allows new certificates; null if the policy does not refuse new certificates."
    )


class AccessRequestListBody(PageBody):
    """A page of access requests, newest first."""

    access_requests: list[AccessRequestBody]


class OfferListBody(BaseModel):
    """What the caller can request for a cluster."""

    offers: list[OfferBody]


def _id_prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise ValueError("must be 1 to 32 hex digits, lower case")
    return text


FilterDep = Annotated[
    RequestFilter,
    Depends(query.parsed_filter(RequestFilter, id=Annotated[str, AfterValidator(_id_prefix)])),
]
MineDep = Annotated[query.Flag | None, Query(description="Only the caller's own requests.")]
ToDecideDep = Annotated[
    query.Flag | None,
    Query(description="Only requests that the caller may approve now, including ended requests."),
]


_NO_REQUEST = {404: "The request does not exist, or the caller may not see it."}
_LATE = {409: "The request is not in a state for this step."}
_SHOWN = described("The access request.", AccessRequestBody, errors=ERRORS | _NO_REQUEST)
_CHANGED = described("The access request.", AccessRequestBody, errors=ERRORS | _NO_REQUEST | _LATE)
_CREATED = described(
    "The new request.",
    AccessRequestBody,
    status=201,
    errors=ERRORS
    | {
        409: "The caller has another open request for the cluster, or an equal one that the policy refuses now."
    },
) | {200: {"description": "The caller's equal open request.", "model": AccessRequestBody}}
REQUESTS = OWN + "/access-requests"
REQUEST = REQUESTS + "/{access_request_id}"

router = APIRouter(tags=["Access requests"])


@router.post(
    REQUESTS,
    status_code=201,
    responses=_CREATED,
    openapi_extra=json_body(NewAccessRequest, limit=32 * KIB),
)
async def create_access_request(call: CallDep) -> Response:
    """Ask for Kubernetes groups in a cluster.

    The policy must offer the groups to the caller. A caller has at most one open request for a cluster; if the open
    request is equal, returns the open request with status 200.
    """
    body = _body(call, NewAccessRequest)
    asked = NewRequest(
        groups=tuple(body.groups),
        duration=bounded_lifetime("duration", body.duration),
        reason=body.reason,
        ticket=body.ticket,
        rule=body.rule,
    )
    made, is_new = await call.services.requests.create(call.caller, body.cluster_id, asked, body.project_id)
    return await _one(call, made, status=201 if is_new else 200)


@router.get(REQUESTS, responses=described("A page of requests.", AccessRequestListBody))
async def list_access_requests(
    call: CallDep,
    page: KeyPageDep,
    filters: FilterDep,
    mine: MineDep = None,
    to_decide: ToDecideDep = None,
) -> Response:
    """List access requests, newest first.

    Users see their own requests, and the requests that they may decide. Project admins see all requests of their
    projects; operators and auditors see all. Includes all projects of the user, whatever the token's scope. A filtered
    page may be short or empty even if there is a next page.
    """
    found = await call.services.requests.page(
        call.caller,
        filters,
        mine=mine is not None,
        to_decide=to_decide is not None,
        limit=page.limit,
        before=_before(page.after),
    )
    places = await _places(call, *found.requests)
    following = _cursor(*found.following) if found.following is not None else None
    body = numbered_page(
        "access_requests",
        found.requests,
        lambda each: _view(each, places),
        lambda each: _cursor(each.request.created_at, each.request.id),
        following,
        page.max_bytes,
    )
    return responses.private(body)


@router.get(REQUEST, responses=_SHOWN)
async def show_access_request(call: CallDep, access_request_id: str) -> Response:
    """Show an access request.

    For the user who created the request, its approvers, admins of the project, operators and auditors.
    """
    return await _one(call, await call.services.requests.show(call.caller, access_request_id))


@router.post(
    REQUEST + "/approve", responses=_CHANGED, openapi_extra=json_body(AccessRequestDecision, limit=8 * KIB)
)
async def approve_access_request(call: CallDep, access_request_id: str) -> Response:
    """Approve an access request, or its extension.

    Access that was used before the approval can also be approved after its end. This does not give the access again.
    The caller must meet one of the request's conditions, with the roles in the cluster's project. Nobody can approve
    their own request. If the caller has already approved the request, changes nothing.
    """
    return await _decide(call, access_request_id, approves=True)


@router.post(
    REQUEST + "/deny", responses=_CHANGED, openapi_extra=json_body(AccessRequestDecision, limit=8 * KIB)
)
async def deny_access_request(call: CallDep, access_request_id: str) -> Response:
    """Deny an access request, or its extension.

    For approvers and operators. If the access is in use before the approval, the access ends, and its certificates are
    revoked. Access that was used before the approval can also be denied after its end.
    """
    return await _decide(call, access_request_id, approves=False)


@router.post(
    REQUEST + "/extend", responses=_CHANGED, openapi_extra=json_body(AccessRequestExtension, limit=8 * KIB)
)
async def extend_access_request(call: CallDep, access_request_id: str) -> Response:
    """Ask for more time.

    Only for the user who created the request, once, while the access is approved and in use. The extension needs the
    same approvals as the request.
    """
    body = _body(call, AccessRequestExtension)
    extended = await call.services.requests.extend(
        call.caller, access_request_id, bounded_lifetime("duration", body.duration), body.reason
    )
    return await _one(call, extended)


@router.post(
    REQUEST + "/end",
    responses=_CHANGED,
    openapi_extra=json_body(AccessRequestEnd, limit=8 * KIB, required=False),
)
async def end_access_request(call: CallDep, access_request_id: str) -> Response:
    """End access, and revoke its certificates.

    For the user who created the request, approvers and operators. If the request is closed, changes nothing.
    """
    reason = _body(call, AccessRequestEnd).reason if call.body else None
    return await _one(call, await call.services.requests.end(call.caller, access_request_id, reason))


@router.get(OWN + "/clusters/{cluster_id}/offers", responses=described("The offers.", OfferListBody))
async def list_offers(call: CallDep, cluster_id: str) -> Response:
    """List what the caller can request for a cluster.

    The caller's roles in all projects count, whatever the token's scope.
    """
    _, rules = await call.services.requests.offers(call.caller, cluster_id)
    offers = [OfferBody.render(rule.offer, rule=rule.name) for rule in rules]
    return responses.private({"offers": offers})


async def _decide(call: Call, request_id: str, *, approves: bool) -> Response:
    body = _body(call, AccessRequestDecision)
    if not body.reason.strip():
        raise InvalidRequest("reason: write why you approve or deny the request.")
    decided = await call.services.requests.decide(
        call.caller, request_id, approves=approves, reason=body.reason, part=body.part
    )
    return await _one(call, decided)


async def _one(call: Call, seen: SeenRequest, status: int = 200) -> Response:
    places = await _places(call, seen)
    return responses.json_response(_view(seen, places), status, responses.NO_STORE)


async def _places(call: Call, *seen: SeenRequest) -> PlaceNames:
    """Return the names of the requests' projects and their domains."""
    places = ((each.request.cluster_id, each.request.project_id) for each in seen)
    return await call.services.inventory.queries.place_names(places)


def _view(seen: SeenRequest, places: PlaceNames) -> JsonObject:
    request = seen.request
    project_id = request.project_id
    conditions, early = _conditions(request), seen.early_use_refusal
    return AccessRequestBody.render(
        request,
        label=seen.label,
        severity=seen.severity,
        next=seen.next_step,
        next_use_at=early.until if early is not None else None,
        usable=seen.is_usable,
        cluster={"id": request.cluster_id, "name": request.cluster_name},
        project={
            "id": project_id,
            "name": places.projects.get(project_id),
            "domain": places.domains.get(project_id),
        },
        user={"id": request.user_id, "name": request.user_name},
        user_entitled=seen.is_user_entitled,
        duration=int(request.duration.total_seconds()),
        approvals_given=sum(each["approved_by"] is not None for each in conditions),
        conditions=conditions,
        extension=_extension(request),
        may=seen.may,
        certificates=seen.certificates,
        refusal=seen.refusal,
    )


def _conditions(request: AccessRequest) -> list[JsonObject]:
    approvers = request.assigned_approvers(request.open_part or "access")
    return [
        {"condition": condition, "approved_by": approver.by_name if approver is not None else None}
        for condition, approver in zip(request.conditions, approvers, strict=True)
    ]


def _extension(request: AccessRequest) -> JsonObject | None:
    if request.extension is None:
        return None
    return {
        "duration": int(request.extension.total_seconds()),
        "reason": request.extension_reason,
        "state": request.extension_state,
    }


def _body(call: Call, shape: type[B]) -> B:
    require_json(call.request)
    return parsed(call.body, shape)


def _cursor(at: datetime, request_id: str) -> str:
    return f"{(at - _EPOCH) // _MICROSECOND}-{request_id}"


def _before(cursor: str) -> tuple[datetime, str] | None:
    """Parse a cursor. Raises InvalidRequest."""
    if not cursor:
        return None
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise InvalidRequest("cursor: send the value of `next` from the previous page.")
    return _EPOCH + int(found[1]) * _MICROSECOND, found[2]
