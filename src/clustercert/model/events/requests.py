"""Events about access requests."""

from dataclasses import dataclass
from typing import Literal

from clustercert.model.choices import AccessRequestState
from clustercert.model.events import AuditEvent

AccessRequestChange = Literal[
    "access_request.created", "access_request.approval_given", "access_request.approved", "access_request.denied",
    "access_request.started", "access_request.extension_requested", "access_request.extension_approval_given",
    "access_request.extension_approved", "access_request.extension_denied", "access_request.ended",
    "access_request.expired", "access_request.finished",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequestChanged(AuditEvent):
    """An access request was created, decided, used, extended or closed. The subject is the request's id.

    Attributes:
        actor_name: the name of the actor, with the domain; `clustercert` for the service.
        state: the state after the change.
        project_name: the name of the cluster's project when the request was created, with the domain.
        user_id, user_name: who asked for the access.
        groups: the requested Kubernetes groups.
        rule: the policy rule that offers the groups.
        duration: how long the access lasts, or the additional time of an extension; seconds.
        reason: why the actor made the change; None if no reason was given.
        conditions: the conditions for the approvers when the request was created or decided.
        met: the conditions that the approver met.
        is_approved: whether the approvals are complete. False in `access_request.started`: the access is used before
            the approval.
        until: the end of the present state, RFC 3339; None if the request is closed.
        certificates: how many certificates the change revoked.
    """

    kind: AccessRequestChange
    actor_name: str
    state: AccessRequestState
    cluster_id: str
    cluster_name: str
    project_name: str
    user_id: str
    user_name: str
    groups: tuple[str, ...]
    rule: str
    duration: int
    is_approved: bool
    until: str | None
    reason: str | None = None
    ticket: str | None = None
    conditions: tuple[str, ...] = ()
    met: tuple[str, ...] = ()
    certificates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequestsPruned(AuditEvent):
    """Access requests that were closed long ago were deleted, with their decisions."""

    kind: Literal["access_requests.pruned"] = "access_requests.pruned"
    count: int
    closed_before: str
