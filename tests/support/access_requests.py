"""Access requests in a database."""

from dataclasses import replace
from datetime import datetime, timedelta

from clustercert.model import Actor
from clustercert.model.access_requests import AccessRequest
from clustercert.model.ids import new_cluster_id, new_id
from clustercert.requests import steps
from clustercert.store.access_requests import AccessRequestQueries
from support.samples import PROJECT_ID
from support.stores import NOW, ORIGIN

ONE = "role is admin"
HOUR = timedelta(hours=1)


def access_request(at: datetime = NOW, **changes: object) -> AccessRequest:
    """A pending request of a unique user. It must be approved within an hour, and then used within an hour."""
    request = AccessRequest(
        id=new_id(),
        project_id=PROJECT_ID,
        cluster_id=new_cluster_id(),
        cluster_name="prod",
        project_name="Default/eu-de",
        user_id=new_id(),
        user_name="alice",
        groups=("sre",),
        rule="on-call",
        offered_groups=("sre",),
        duration=HOUR,
        reason="repair the ingress",
        ticket=None,
        conditions=(ONE,),
        before_approval=False,
        claim_within=HOUR,
        created_at=at,
        approve_by=at + HOUR,
    )
    return replace(request, **changes)  # type: ignore[arg-type] # the names and types of the fields


async def store_request(queries: AccessRequestQueries, request: AccessRequest) -> AccessRequest:
    """Store a new request with its event."""
    actor = Actor(request.user_id, ORIGIN)
    event = steps.event(request, "access_request.created", request.created_at, actor, request.reason)
    stored, _ = await queries.create(request, event, since=request.created_at, most=100)
    return stored
