"""Routes about all clusters that a caller administers or may see: an overview, and the state of each cluster."""

import re
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, BaseModel, Field
from starlette.responses import Response

from clustercert.clusters.overview import MAX_VERSIONS
from clustercert.http import OWN, query, responses
from clustercert.http.dependencies import Call, CallDep
from clustercert.http.openapi import described
from clustercert.http.paging import KeyPageDep, PageBody, numbered_page
from clustercert.http.responses import ResponseBody, SortedStrings, Time
from clustercert.model.choices import EnforcementState, FleetOrder, RotationState
from clustercert.model.enforcement import VERIFICATION_COUNTS
from clustercert.store.access_requests import RequestFilter
from clustercert.store.clusters.fleet import FleetFilter

# The maximum number of open requests of which `to_decide` is counted.
MAX_COUNTED = 500

router = APIRouter(tags=["Inventory"])


class HoldersBody(ResponseBody):
    """Users with live certificates. A user in both groups is counted twice."""

    people: int = Field(description="Users with a live certificate that they got after a login.")
    machines: int = Field(
        description="Users with a live certificate that they got with an access key, an application credential of"
        " Keystone, or a token of an issuer with the preset `kubernetes`, `github` or `gitlab`. Machines of other"
        " issuers count as people."
    )


class OpenRequestsBody(BaseModel):
    """Open access requests."""

    pending: int
    approved: int
    active: int
    to_decide: int = Field(
        description=f"How many of the newest {MAX_COUNTED} open requests the caller may approve now, in all"
        " projects of the caller."
    )


class UnknownCountsBody(ResponseBody):
    """User names with groups in client certificates that this service did not issue, first seen within a day."""

    identities: int
    clusters: int = Field(description="How many clusters reported such user names.")


class EnforcementBody(BaseModel):
    """How well clusters enforce revocations: the number of clusters in each state.

    Each cluster counts once, in the first state that applies.
    """

    unreviewed: int = Field(
        default=0,
        description="Audit events reported a use of a certificate, but the API server had not asked the webhook within"
        " the 10 minutes before this use, and has not asked since.",
    )
    none: int = Field(
        default=0,
        description="No control stops a single certificate: the API server has never called the webhook, and neither"
        " `credential_roles` nor `admission` is set.",
    )
    used: int = Field(
        default=0,
        description="A control is set up, but an API server accepted a credential after its revocation, and"
        " `clustercert kubernetes verify` has not succeeded since.",
    )
    incomplete: int = Field(
        default=0,
        description="The cluster has a webhook token, but its API server has never called the webhook. Another control"
        " is set up.",
    )
    only_writes: int = Field(
        default=0,
        description="Only the admission policy is in effect, which refuses only writes: the API server has not called"
        " the webhook within a day, and `credential_roles` is not set.",
    )
    quiet: int = Field(
        default=0,
        description="The API server has called the webhook, but not within a day, and no use of a certificate is known"
        " since. So it is not known whether it still calls the webhook. No other control is set up.",
    )
    unverified: int = Field(
        default=0,
        description="`clustercert kubernetes verify` has found no fault, but not within"
        f" {VERIFICATION_COUNTS.days} days, or nobody has run this command.",
    )
    bindings: int = Field(
        default=0,
        description="Verified. This service deletes the bindings of revoked certificates; certificates without a"
        " binding are accepted until they expire.",
    )
    tokens: int = Field(
        default=0,
        description="Verified. The credentials are tokens, and this service deletes their bindings and accounts.",
    )
    verified: int = Field(
        default=0, description="Verified, and the API server has called the webhook within a day."
    )


ENFORCEMENT = (
    "What was seen of the cluster's enforcement of revocations. The counts in `GET /clustercert/v1/overview` say what"
    " each state means."
)
CALLED_AT = "When an API server last called the webhook, to the minute; null if never."


class RotationCountsBody(ResponseBody):
    """Running rotations of client CAs."""

    running: int
    failing: int = Field(description="How many of the rotations have a problem.")
    ready: int = Field(
        description="How many of the rotations wait for an operator to complete them, and can be completed without"
        " taking access from anybody."
    )


class EndingBody(BaseModel):
    """What ends within a day."""

    certificates: int
    access_requests: int = Field(description="Requests that give access now.")
    client_cas: int = Field(description="Client CAs in use that end within a day, or have ended.")


class OverviewBody(BaseModel):
    """What happens now. Times are in the format of RFC 3339."""

    at: Time = Field(description="The time of the counts, which may be some seconds old.")
    all_projects: bool = Field(
        description="True for operators and auditors. For project admins, the counts cover only their projects."
    )
    holders: HoldersBody
    certificates: int = Field(
        description="Live certificates, except the service's own. The counts of project admins also omit"
        " certificates for removed clusters."
    )
    access_requests: OpenRequestsBody
    unknown: UnknownCountsBody
    revoked_uses: int = Field(
        description="How many revoked certificates an API server accepted within the last day; at most 1000."
    )
    revoked_accepted: int = Field(
        description="How many revoked certificates have not expired, in the clusters that `enforcement` counts as"
        " `none` or `unreviewed`. These certificates probably still give access."
    )
    clusters: int
    enforcement: EnforcementBody
    rotations: RotationCountsBody
    ends_within_day: EndingBody


class FleetBody(BaseModel):
    """Counts of clusters. Times are in the format of RFC 3339."""

    at: Time = Field(description="The time of the counts, which may be some seconds old.")
    enforcement: EnforcementBody
    versions: dict[str, int] = Field(
        description=f"The number of clusters by registered Kubernetes version; the {MAX_VERSIONS} most frequent"
        " versions. The empty version stands for clusters without a version."
    )
    ended_client_cas: int = Field(description="Client CAs in use that have ended.")


class FleetClusterBody(ResponseBody):
    """A cluster with its state. Times are in the format of RFC 3339; absent values are null."""

    id: str
    name: str
    project_id: str
    project: str
    domain: str = Field(description="The project's domain.")
    version: str = Field(description="The Kubernetes version as registered; empty if it is not known.")
    labels: SortedStrings
    created_at: Time
    verified_at: Time | None = Field(
        description="The time of the last run of `clustercert kubernetes verify` without a fault; null without"
        " such a run."
    )
    enforcement: EnforcementState = Field(description=ENFORCEMENT)
    webhook_called_at: Time | None = Field(validation_alias="asked_at", description=CALLED_AT)
    client_ca_not_before: Time | None = Field(validation_alias="ca_starts_at")
    client_ca_not_after: Time | None = Field(validation_alias="ca_ends_at")
    signer: str = Field(description="The signer that has the key of the client CA.")
    rotation: RotationState | None = Field(description="The state of the running rotation of the client CA.")
    rotation_problem: str | None = Field(
        validation_alias="problem", description="Why the last attempt to advance the rotation failed."
    )
    certificates: int = Field(description="Live certificates, except the service's own.")
    unknown: int = Field(
        description="User names with groups that the API server reported from client certificates of other issuers."
    )


class FleetClusterListBody(PageBody):
    """A page of clusters."""

    clusters: list[FleetClusterBody]
    total: int = Field(description="The number of clusters on all pages.")


# Source: Kubernetes documentation, "Labels and Selectors", "Syntax and character set".
_LABEL = re.compile(r"[A-Za-z0-9./_-]{1,317}(=[A-Za-z0-9._-]{0,63})?", re.ASCII)


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("write KEY or KEY=VALUE")
    return text


FilterDep = Annotated[
    FleetFilter,
    Depends(
        query.parsed_filter(
            FleetFilter,
            label=Annotated[str, AfterValidator(_label)],
            version=Annotated[str, Field(max_length=64)],
        )
    ),
]
OrderDep = Annotated[
    FleetOrder,
    Query(
        description="`name`; `ca_start`: the oldest client CA first; `ca_end`: the client CA that ends first;"
        " `verified`: the least recently verified cluster first."
    ),
]


@router.get(OWN + "/fleet", responses=described("The counts.", FleetBody))
async def show_fleet(call: CallDep) -> Response:
    """Count clusters by enforcement and version, and client CAs that have ended.

    For the same callers as the overview.
    """
    found = await call.services.overviews.fleet(call.caller)
    body = FleetBody(
        at=found.at,  # type: ignore[arg-type] # the validator converts it
        enforcement=_enforcement(found.enforcement),
        versions=dict(found.versions),
        ended_client_cas=found.ended_cas,
    )
    return responses.private(body.model_dump())


@router.get(OWN + "/fleet/clusters", responses=described("The clusters.", FleetClusterListBody))
async def list_fleet(
    call: CallDep, page: KeyPageDep, filters: FilterDep, order: OrderDep = "name"
) -> Response:
    """List clusters with their state, filtered and sorted.

    For the same callers as the overview.
    """
    found = await call.services.overviews.clusters(
        call.caller,
        filters,
        order=order,
        after=page.after or None,
        limit=page.limit,
    )
    body = numbered_page(
        "clusters",
        found.clusters,
        FleetClusterBody.render,
        lambda each: each.id,
        found.following,
        page.max_bytes,
    )
    return responses.private(body | {"total": found.total})


def _enforcement(counts: Mapping[EnforcementState, int]) -> EnforcementBody:
    return EnforcementBody(**{str(state): count for state, count in counts.items()})


@router.get(OWN + "/overview", responses=described("The overview.", OverviewBody))
async def show_overview(call: CallDep) -> Response:
    """Count what needs attention: certificates, access requests, clusters and client CAs.

    Operators and auditors see all projects, and project admins the projects in which their token gives them the role
    admin.
    """
    found = await call.services.overviews.overview(call.caller, _machine_issuers(call))
    body = OverviewBody(
        at=found.at,  # type: ignore[arg-type] # the validator converts it
        all_projects=found.all_projects,
        holders=HoldersBody.read(found.live),
        certificates=found.live.certificates,
        access_requests=OpenRequestsBody(**found.requests, to_decide=await _to_decide(call)),
        unknown=UnknownCountsBody.read(found.unknown),
        revoked_uses=found.revoked_uses,
        revoked_accepted=found.revoked_accepted,
        clusters=found.clusters,
        enforcement=_enforcement(found.enforcement),
        rotations=RotationCountsBody.read(found.rotations),
        ends_within_day=EndingBody(
            certificates=found.live.ending,
            access_requests=found.requests_ending,
            client_cas=found.cas_ending,
        ),
    )
    return responses.private(body.model_dump())


async def _to_decide(call: Call) -> int:
    found = await call.services.requests.page(call.caller, RequestFilter(), to_decide=True, limit=MAX_COUNTED)
    return len(found.requests)


def _machine_issuers(call: Call) -> tuple[str, ...]:
    oidc = call.services.oidc
    return () if oidc is None else tuple(each.url for each in oidc.issuers if each.is_for_machines)
