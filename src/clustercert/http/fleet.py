"""Routes about all clusters that a caller administers or may see: an overview, and the state of each cluster."""

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from clustercert.clusters.overview import HOURS
from clustercert.http import OWN, responses
from clustercert.http.dependencies import Call, CallDep
from clustercert.http.openapi import described
from clustercert.http.responses import ResponseBody, Time
from clustercert.model.access_requests import OPEN_STATES
from clustercert.store.overview import VERIFICATION_COUNTS

# The maximum number of open requests of which `to_decide` is counted.
MAX_COUNTED = 500

router = APIRouter(tags=["Inventory"])


class HoldersBody(ResponseBody):
    """Users with live certificates. A user who is in both counts counts twice."""

    people: int = Field(description="Users with a live certificate that they got after a login.")
    machines: int = Field(
        description="Users with a live certificate that they got with an access key, an application credential of"
        " Keystone, or a token of an issuer with the preset `kubernetes`, `github` or `gitlab`. Machines of other"
        " issuers count as people."
    )


class HourBody(BaseModel):
    """How many of the certificates that are live now are still valid at a time."""

    at: Time
    certificates: int


class OpenRequestsBody(BaseModel):
    """Open access requests."""

    pending: int
    approved: int
    active: int
    to_decide: int = Field(
        description=f"How many of the newest {MAX_COUNTED} open requests the caller may approve or deny now, in all"
        " projects of the caller."
    )


class UnknownCountsBody(ResponseBody):
    """User names with groups in client certificates that this service did not issue, first seen within a day."""

    identities: int
    clusters: int = Field(description="How many clusters reported them.")


class EnforcementBody(BaseModel):
    """How many clusters enforce revocations how well. Each cluster counts once, in the first state that applies."""

    none: int = Field(
        default=0,
        description="No control stops a single certificate: the API server has not called the webhook within a day,"
        " and neither `credential_roles` nor `admission` is set.",
    )
    unreviewed: int = Field(
        default=0,
        description="Audit events report that certificates are used, but the API server does not call the webhook any"
        " more.",
    )
    incomplete: int = Field(
        default=0,
        description="The cluster has a webhook token, but its API server has not called the webhook within a day."
        " Another control is set up.",
    )
    unverified: int = Field(
        default=0,
        description=f"`clustercert kubernetes verify` has found no fault, but not within {VERIFICATION_COUNTS.days}"
        " days, or it was never run.",
    )
    verified: int = 0


class RotationCountsBody(ResponseBody):
    """Running rotations of client CAs."""

    running: int
    failing: int = Field(description="How many of them have a problem.")
    ready: int = Field(
        description="How many of them wait for somebody to complete them, and can be completed without taking access"
        " from anybody."
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
        description="True for operators and auditors. For project admins, the counts are those of their projects."
    )
    holders: HoldersBody
    certificates: int = Field(
        description="Live certificates, without those of the service itself. In the counts of project admins, also"
        " without those for removed clusters."
    )
    hours: list[HourBody] = Field(description=f"Now, and each of the next {HOURS} hours.")
    access_requests: OpenRequestsBody
    unknown: UnknownCountsBody
    revoked_uses: int = Field(
        description="How many certificates an API server accepted after their revocation within the last day; at most"
        " 1000."
    )
    clusters: int
    enforcement: EnforcementBody
    rotations: RotationCountsBody
    ends_within_day: EndingBody


@router.get(OWN + "/overview", responses=described("The overview.", OverviewBody))
async def show_overview(call: CallDep) -> Response:
    """Count what needs attention: certificates, access requests, clusters and client CAs.

    Operators and auditors see all projects, and project admins the projects in which their token gives them the role
    admin.
    """
    found = await call.services.overviews.overview(call.caller, _machine_issuers(call))
    counts = {str(state): count for state, count in found.enforcement.items()}
    body = OverviewBody(
        at=found.at,  # type: ignore[arg-type] # the validator converts it
        all_projects=found.all_projects,
        holders=HoldersBody.read(found.live),
        certificates=found.live.certificates,
        hours=[HourBody(at=at, certificates=count) for at, count in found.hours],  # type: ignore[arg-type]
        access_requests=OpenRequestsBody(**found.requests, to_decide=await _to_decide(call)),
        unknown=UnknownCountsBody.read(found.unknown),
        revoked_uses=found.revoked_uses,
        clusters=found.clusters,
        enforcement=EnforcementBody(**counts),
        rotations=RotationCountsBody.read(found.rotations),
        ends_within_day=EndingBody(
            certificates=found.certificates_ending,
            access_requests=found.requests_ending,
            client_cas=found.cas_ending,
        ),
    )
    return responses.private(body.model_dump())


async def _to_decide(call: Call) -> int:
    found = await call.services.requests.page(
        call.caller, states=OPEN_STATES, to_decide=True, limit=MAX_COUNTED
    )
    return len(found.requests)


def _machine_issuers(call: Call) -> tuple[str, ...]:
    oidc = call.services.oidc
    return () if oidc is None else tuple(each.url for each in oidc.issuers if each.is_for_machines)
