"""The steps of access requests with their audit events, and the revocations of a request that ends early."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from clustercert.model import Actor, AuditEvent, Caller, Revocation, rfc3339
from clustercert.model.access_requests import AccessDecision, AccessRequest, EarlyUseRefusal
from clustercert.model.errors import Conflict
from clustercert.model.events.administration import RevocationChanged
from clustercert.model.events.requests import AccessRequestChange, AccessRequestChanged
from clustercert.store.access_requests import ClaimStep, RevokedAccess, StepResult


def change(
    before: AccessRequest,
    after: AccessRequest,
    kind: AccessRequestChange,
    now: datetime,
    actor: Actor,
    reason: str | None = None,
    decision: AccessDecision | None = None,
) -> StepResult:
    """Return the change of a request with its event. A change that ends the access revokes its certificates."""

    def events(revoked: int) -> tuple[AuditEvent, ...]:
        return (event(after, kind, now, actor, reason, decision, revoked),)

    is_ended = before.is_open and after.state in ("denied", "ended")
    return StepResult(after, events, _revocation(after, now, actor) if is_ended else None)


def event(
    request: AccessRequest,
    kind: AccessRequestChange,
    now: datetime,
    actor: Actor,
    reason: str | None = None,
    decision: AccessDecision | None = None,
    revoked: int = 0,
) -> AccessRequestChanged:
    """Return the audit event of a change. `request` is the request after the change."""
    is_extension = kind.startswith("access_request.extension") and request.extension is not None
    duration = request.extension if is_extension and request.extension is not None else request.duration
    return AccessRequestChanged(
        at=now,
        kind=kind,
        actor=actor,
        subject=request.id,
        project_id=request.project_id,
        actor_name=_actor_name(request, actor, decision),
        state=request.state,
        cluster_id=request.cluster_id,
        cluster_name=request.cluster_name,
        project_name=request.project_name,
        user_id=request.user_id,
        user_name=request.user_name,
        groups=request.groups,
        rule=request.rule,
        duration=int(duration.total_seconds()),
        is_approved=request.approved_at is not None,
        until=rfc3339(request.due_at) if request.due_at is not None else None,
        reason=reason,
        ticket=request.ticket,
        conditions=request.conditions,
        met=tuple(sorted(decision.met)) if decision is not None else (),
        certificates=revoked,
    )


def _actor_name(request: AccessRequest, actor: Actor, decision: AccessDecision | None) -> str:
    if decision is not None:
        return decision.by_name
    # Apart from decisions, other users can only close the request.
    return request.user_name if actor.id == request.user_id else request.closed_by or actor.id


def lapse(now: datetime) -> Callable[[AccessRequest], StepResult | None]:
    """Return the step that changes a request whose time is over."""

    def step(request: AccessRequest) -> StepResult | None:
        after = request.lapsed(now)
        if after is request:
            return None
        kinds: dict[str, AccessRequestChange] = {
            "expired": "access_request.expired",
            "ended": "access_request.ended",
            "finished": "access_request.finished",
        }
        return change(request, after, kinds[after.state], now, Actor.service(), after.closed_why)

    return step


def claim(now: datetime, actor: Actor, limit: Callable[[AccessRequest], int]) -> ClaimStep:
    """Return the step for a certificate of the request: the first certificate starts the clock. Raises Conflict.

    Args:
        limit: returns the maximum number of uses before an approval; see `AccessRequest.early_use_refusal`.
    """

    def step(request: AccessRequest, others: Sequence[AccessRequest]) -> StepResult | None:
        require_early_use(request, request.early_use_refusal(others, limit(request), now))
        after = request.claimed(now)
        return None if after is request else change(request, after, "access_request.started", now, actor)

    return step


def require_early_use(request: AccessRequest, refusal: EarlyUseRefusal | None) -> None:
    """Raise Conflict if a request can't be used before its approval."""
    if refusal is not None:
        raise Conflict(
            f"The access request {request.id} can't be used before its approval. {refusal.message} The request waits"
            " for approvals."
        )


def decide(
    decision: AccessDecision, conditions: tuple[str, ...], actor: Actor
) -> Callable[..., StepResult | None]:
    """Return the step that a decision makes. Raises Conflict; see `AccessRequest.decided`."""
    now = decision.at

    def step(request: AccessRequest) -> StepResult | None:
        _require_time(request, now)
        after = request.decided(decision, conditions)
        if after is request:
            return None
        return change(request, after, _kind(request, after, decision), now, actor, decision.reason, decision)

    return step


def extend(duration: timedelta, reason: str, now: datetime, actor: Actor) -> Callable[..., StepResult | None]:
    """Return the step that asks for more time. Raises Conflict; see `AccessRequest.with_extension`."""

    def step(request: AccessRequest) -> StepResult | None:
        _require_time(request, now)
        after = request.with_extension(duration, reason, now)
        if after is request:
            return None
        is_approved = after.extension_state == "approved"
        kind: AccessRequestChange = (
            "access_request.extension_approved" if is_approved else "access_request.extension_requested"
        )
        return change(request, after, kind, now, actor, reason)

    return step


def end(caller: Caller, now: datetime, reason: str | None) -> Callable[..., StepResult | None]:
    """Return the step that ends a request early, or closes it if its time is over."""

    def step(request: AccessRequest) -> StepResult | None:
        lapsed = lapse(now)(request)
        if lapsed is not None:
            return lapsed
        after = request.ended(now, caller.user.shown_name, reason)
        if after is request:
            return None
        return change(request, after, "access_request.ended", now, caller.actor, reason)

    return step


def _kind(before: AccessRequest, after: AccessRequest, decision: AccessDecision) -> AccessRequestChange:
    if decision.part == "extension":
        if not decision.approves:
            return "access_request.extension_denied"
        is_complete = after.extension_state != before.extension_state
        return (
            "access_request.extension_approved" if is_complete else "access_request.extension_approval_given"
        )
    if not decision.approves:
        return "access_request.denied"
    return (
        "access_request.approved"
        if after.approved_at is not None and before.approved_at is None
        else "access_request.approval_given"
    )


def _require_time(request: AccessRequest, now: datetime) -> None:
    """Raise Conflict if a time limit of the request is over."""
    if request.lapsed(now) is not request:
        raise Conflict(f"The access request can't be changed: {request.obstacle(now)}.")


def _revocation(
    request: AccessRequest, now: datetime, actor: Actor
) -> Callable[[RevokedAccess], tuple[Revocation, AuditEvent]]:
    note = f"access request {request.id} was {request.state}"

    def revocation(certificate: RevokedAccess) -> tuple[Revocation, AuditEvent]:
        made = Revocation(
            id=0,
            epoch=0,
            fingerprint=certificate.fingerprint,
            user_id=request.user_id,
            cluster_id=request.cluster_id,
            at=now,
            by=actor.id,
            reason="cessationOfOperation",
            note=note,
            project_id=request.project_id,
        )
        revoked = RevocationChanged(
            at=now,
            kind="certificate.revoked",
            actor=actor,
            subject=certificate.fingerprint.hex(),
            project_id=request.project_id,
            user_id=request.user_id,
            cluster_id=request.cluster_id,
            reason=made.reason,
            note=note,
            proved=False,
            serial=certificate.serial,
        )
        return made, revoked

    return revocation
