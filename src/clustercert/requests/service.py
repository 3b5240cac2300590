"""Use case: access requests. Methods that take a `Caller` authorize it."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from clustercert.model import Actor, AuditEvent, Caller, CertificateRecord, Cluster, IssueRequest, Origin
from clustercert.model.access_requests import OPEN_STATES, AccessDecision, AccessRequest, RequestedAccess
from clustercert.model.choices import AccessRequestState
from clustercert.model.errors import (
    ConcurrentChange,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from clustercert.model.ids import is_id, new_id
from clustercert.observability import metrics
from clustercert.policy.decision import Policy
from clustercert.policy.lifetime import MIN_LIFETIME, lifetime_text
from clustercert.policy.rules import PolicyRule, operates, reads_everything, reads_project
from clustercert.policy.templates import is_plain_text
from clustercert.requests import steps
from clustercert.store.access_requests import AccessRequestQueries, Change, RequestFilter, Step
from clustercert.store.clusters import ClusterQueries

if TYPE_CHECKING:
    from clustercert.model.events.requests import AccessRequestChange

MAX_REASON = 512
MAX_TICKET = 128
MAX_GROUPS = 32
# How many requests a user can create within `CREATION_PERIOD`, so that nobody floods the approvers.
MAX_CREATED = 100
CREATION_PERIOD = timedelta(days=1)
ATTEMPTS = 3
EXPIRED_AT_ONCE = 100
# The pause before a request that could not be closed is closed again.
EXPIRY_RETRY = timedelta(minutes=1)

CLOSED_STATES: tuple[AccessRequestState, ...] = ("denied", "expired", "ended", "finished")

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NewRequest:
    """What a user asks for.

    Attributes:
        rule: the name of the rule that offers the groups; None if only one rule does.
        ticket: the name of a ticket in another system.
    """

    groups: tuple[str, ...]
    duration: timedelta
    reason: str
    ticket: str | None = None
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """An access request as one caller sees it.

    Attributes:
        at: the time of this view. `request` is as the time has changed it.
        may_approve, may_deny, may_extend, may_end: what the caller may do now.
        certificates: the number of valid certificates of the request.
    """

    at: datetime
    request: AccessRequest
    may_approve: bool = False
    may_deny: bool = False
    may_extend: bool = False
    may_end: bool = False
    certificates: int = 0


@dataclass(frozen=True, slots=True)
class SeenPage:
    """A page of requests, newest first. The page may be empty even if there is a next page.

    Attributes:
        following: the time and id after which the next page begins; None on the last page.
    """

    requests: tuple[SeenRequest, ...]
    following: tuple[datetime, str] | None


@dataclass(slots=True)
class AccessRequests:
    """Creates, shows, decides, extends and ends access requests.

    Attributes:
        with_all_roles: returns the caller with the roles in all projects, whatever the scope of the caller's token.
    """

    policy: Policy
    queries: AccessRequestQueries
    clusters: ClusterQueries
    with_all_roles: Callable[[Caller], Awaitable[Caller]]
    now: Callable[[], datetime]
    # When to close the requests again that could not be closed, by id.
    _retry_at: dict[str, datetime] = field(default_factory=dict)

    async def offers(self, caller: Caller, cluster_id: str) -> tuple[Cluster, tuple[PolicyRule, ...]]:
        """Return a cluster and the rules whose groups the caller can request for it. Raises NotFound."""
        caller = await self.with_all_roles(caller)
        cluster = await self._cluster(caller, cluster_id)
        return cluster, self.policy.offers(caller, cluster, self.now())

    async def create(self, caller: Caller, cluster_id: str, asked: NewRequest) -> tuple[SeenRequest, bool]:
        """Create a request, or return the caller's equal open request. Also returns whether the request is new.

        Raises NotFound, InvalidRequest, Forbidden if the policy does not offer the groups to the caller, or Conflict if
        the caller has another open request for the cluster.
        """
        cluster = await self._cluster(caller, cluster_id)
        now = self.now()
        rule = self._offering_rule(caller, cluster, asked, now)
        request = _new_request(caller, cluster, asked, rule, now)
        event = steps.event(request, "access_request.created", now, caller.actor, asked.reason)
        for attempt in range(ATTEMPTS):
            await self._expire_open(caller.user.id, cluster.id, now)
            try:
                made, is_new = await self.queries.create(
                    request, event, since=now - CREATION_PERIOD, most=MAX_CREATED
                )
            except ConcurrentChange:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return await self._seen(caller, made), is_new
        raise ConcurrentChange

    async def show(self, caller: Caller, request_id: str) -> SeenRequest:
        """Return a request. Raises NotFound if there is none that the caller may see."""
        caller = await self.with_all_roles(caller)
        return await self._seen(caller, await self._visible(caller, request_id))

    async def page(
        self,
        caller: Caller,
        *,
        states: Collection[AccessRequestState] | None = OPEN_STATES,
        cluster_id: str | None = None,
        project_id: str | None = None,
        mine: bool = False,
        to_decide: bool = False,
        limit: int,
        before: tuple[datetime, str] | None = None,
    ) -> SeenPage:
        """Return a page of the requests that the caller may see, newest first.

        Args:
            mine: only the caller's own requests.
            to_decide: only requests that the caller may approve or deny now.
        """
        caller = await self.with_all_roles(caller)
        everything = reads_everything(caller)
        selected = RequestFilter(
            user_id=None if everything else caller.user.id,
            project_ids=None if everything else tuple(caller.roles),
            states=states,
            cluster_id=cluster_id,
            asked_by=caller.user.id if mine else None,
        )
        found = await self.queries.page(selected, limit=limit + 1, before=before)
        seen = await self._seen_all(caller, found[:limit])
        if project_id is not None:
            seen = [each for each in seen if each.request.project_id == project_id]
        if to_decide:
            seen = [each for each in seen if each.may_approve or each.may_deny]
        last = found[limit - 1] if len(found) > limit else None
        return SeenPage(tuple(seen), (last.created_at, last.id) if last is not None else None)

    async def find(self, caller: Caller, prefix: str) -> SeenRequest:
        """Return the request whose id begins with these hex digits. Raises NotFound, or Conflict if several do."""
        caller = await self.with_all_roles(caller)
        everything = reads_everything(caller)
        selected = RequestFilter(
            None if everything else caller.user.id, None if everything else tuple(caller.roles)
        )
        found = await self._seen_all(caller, await self.queries.find(prefix, selected, 50))
        if not found:
            raise no_such_request()
        if len(found) > 1:
            raise Conflict(f"Several requests begin with {prefix}. Write more digits of the id.")
        return found[0]

    async def decide(
        self, caller: Caller, request_id: str, *, approves: bool, reason: str | None
    ) -> SeenRequest:
        """Approve or deny the part of a request that waits for decisions.

        Raises NotFound, Forbidden if the caller may not decide, or Conflict if nothing waits for a decision.
        """
        request = await self._visible(caller, request_id)
        now = self.now()
        reason = _checked_reason(reason)
        met = await self._met(caller, request, now)
        rule = self.policy.offering_rule(request.rule)
        if request.user_id == caller.user.id:
            raise Forbidden("You can't decide your own request. Ask somebody else.")
        if not met and not (operates(caller) and not approves):
            raise Forbidden(_not_an_approver(request))
        clauses = rule.offer.clauses if rule is not None and rule.offer is not None else request.conditions
        decision = AccessDecision(
            part=request.open_part or "access",
            by=caller.user.id,
            by_name=caller.user.shown_name,
            at=now,
            approves=approves,
            # An operator may deny without meeting a condition.
            met=met or frozenset({"operator"}),
            reason=reason,
        )
        return await self._changed(caller, request_id, steps.decide(decision, clauses, caller.actor))

    async def extend(self, caller: Caller, request_id: str, duration: timedelta, reason: str) -> SeenRequest:
        """Ask for more time. Raises NotFound, Forbidden for another user's request, InvalidRequest or Conflict."""
        request = await self._visible(caller, request_id)
        if request.user_id != caller.user.id:
            raise Forbidden("Only the user who created the request can ask for more time.")
        now = self.now()
        cluster = await self._cluster(caller, request.cluster_id)
        rule = next(
            (each for each in self.policy.offers(caller, cluster, now) if each.name == request.rule), None
        )
        if rule is None:
            raise Forbidden(f"The policy's rule {request.rule} does not offer you this access any more.")
        _check_terms(rule, duration, reason)

        def step(before: AccessRequest) -> Change | None:
            after = before.lapsed(now).with_extension(duration, reason, now)
            if after is before:
                return None
            is_approved = after.extension_state == "approved"
            kind: AccessRequestChange = (
                "access_request.extension_approved" if is_approved else "access_request.extension_requested"
            )
            return steps.change(before, after, kind, now, caller.actor, reason)

        return await self._changed(caller, request_id, step)

    async def end(self, caller: Caller, request_id: str, reason: str | None) -> SeenRequest:
        """End a request, and revoke its certificates. Does nothing if it is closed. Raises NotFound or Forbidden."""
        request = await self._visible(caller, request_id)
        now = self.now()
        reason = _checked_reason(reason)
        is_own = request.user_id == caller.user.id
        if not (is_own or operates(caller) or await self._met(caller, request, now)):
            raise Forbidden("Only the user who created the request, its approvers and operators can end it.")

        def step(before: AccessRequest) -> Change | None:
            lapsed = steps.lapse(now)(before)
            if lapsed is not None:
                return lapsed
            after = before.ended(now, caller.user.id, reason)
            if after is before:
                return None
            return steps.change(before, after, "access_request.ended", now, caller.actor, reason)

        return await self._changed(caller, request_id, step)

    async def access(
        self, caller: Caller, cluster: Cluster, request_id: str, now: datetime
    ) -> RequestedAccess:
        """Return the access of the caller's request for a certificate that is issued now.

        Raises NotFound if the caller has no such request, or Conflict if it is not for this cluster or can't be used.
        """
        request = await self.queries.request(request_id) if is_id(request_id) else None
        if request is None or request.user_id != caller.user.id:
            raise no_such_request()
        if request.cluster_id != cluster.id:
            raise Conflict(
                f"The access request is for the cluster {request.cluster_name}, not for {cluster.name}."
            )
        access = request.lapsed(now).access(now)
        if access is None:
            raise Conflict(f"The access request can't be used: {request.obstacle(now)}.")
        return access

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Record a certificate of a request. The first certificate starts the request's clock.

        Raises Conflict if the request can't be used any more, or Unavailable.
        """
        actor = Actor(record.user_id, Origin(record.source_address, record.request_id))
        request, is_first = await self.queries.record(record, event, steps.claim(record.issued_at, actor))
        if is_first and request.approved_at is None:
            metrics.ACCESS_BEFORE_APPROVAL.inc()

    async def expire_due(self) -> int:
        """Close the requests whose time is over. Returns how many were found, at most `EXPIRED_AT_ONCE`.

        A request that can't be closed is logged and left for later, so that it doesn't delay the others. Raises
        Unavailable.
        """
        now = self.now()
        self._retry_at = {request_id: at for request_id, at in self._retry_at.items() if at > now}
        due = await self.queries.due(now, EXPIRED_AT_ONCE, without=self._retry_at)
        for request_id in due:
            try:
                await self._change(request_id, steps.lapse(now))
            except Unavailable:
                raise
            except Exception:
                logger.exception("access request not closed", access_request=request_id)
                self._retry_at[request_id] = now + EXPIRY_RETRY
        return len(due)

    async def _expire_open(self, user_id: str, cluster_id: str, now: datetime) -> None:
        """Close the user's open request for a cluster if its time is over, because the periodic job may be late."""
        selected = RequestFilter(asked_by=user_id, cluster_id=cluster_id, states=OPEN_STATES)
        for request in await self.queries.page(selected, limit=1):
            if request.lapsed(now) is not request:
                await self._change(request.id, steps.lapse(now))

    async def _changed(self, caller: Caller, request_id: str, step: Step) -> SeenRequest:
        return await self._seen(caller, await self._change(request_id, step))

    async def _change(self, request_id: str, step: Step) -> AccessRequest:
        request, is_changed = await self.queries.change(request_id, step)
        if is_changed and not request.is_open:
            metrics.ACCESS_REQUESTS_CLOSED.labels(request.state).inc()
        return request

    async def _cluster(self, caller: Caller, cluster_id: str) -> Cluster:
        cluster = await self.clusters.reachable(cluster_id, caller.roles.keys())
        if cluster is None:
            raise NotFound("There is no such cluster, or you have no role in its project. Check its id.")
        return cluster

    def _offering_rule(
        self, caller: Caller, cluster: Cluster, asked: NewRequest, now: datetime
    ) -> PolicyRule:
        groups = set(asked.groups)
        if not 1 <= len(groups) <= MAX_GROUPS:
            raise InvalidRequest(f"groups: name 1 to {MAX_GROUPS} groups.")
        offers = self.policy.offers(caller, cluster, now)
        fitting = [rule for rule in offers if groups <= set(rule.groups)]
        if asked.rule is not None:
            fitting = [rule for rule in fitting if rule.name == asked.rule]
        if not fitting:
            raise Forbidden(_not_offered(offers, asked))
        if len(fitting) > 1:
            listed = ", ".join(
                f"{rule.name}{' (before approval)' if rule.offer is not None and rule.offer.before_approval else ''}"
                for rule in fitting
            )
            raise InvalidRequest(f"rule: several rules offer these groups: {listed}. Name one of them.")
        _check_terms(fitting[0], asked.duration, asked.reason)
        if asked.ticket is not None and not (
            1 <= len(asked.ticket) <= MAX_TICKET and is_plain_text(asked.ticket)
        ):
            raise InvalidRequest(f"ticket: write at most {MAX_TICKET} printable characters.")
        return fitting[0]

    async def _visible(self, caller: Caller, request_id: str) -> AccessRequest:
        request = await self.queries.request(request_id) if is_id(request_id) else None
        if request is None or not await self._may_see(caller, request):
            raise no_such_request()
        return request

    async def _may_see(self, caller: Caller, request: AccessRequest) -> bool:
        if request.user_id == caller.user.id or reads_project(caller, request.project_id):
            return True
        return bool(await self._met(caller, request, self.now()))

    async def _met(self, caller: Caller, request: AccessRequest, now: datetime) -> frozenset[str]:
        """Return the clauses of the approval conditions that the caller meets now."""
        if not caller.roles_in(request.project_id):
            return frozenset()
        cluster = await self.clusters.reachable(request.cluster_id, (request.project_id,))
        return frozenset() if cluster is None else self._met_in(caller, request, cluster, now)

    def _met_in(
        self, caller: Caller, request: AccessRequest, cluster: Cluster, now: datetime
    ) -> frozenset[str]:
        rule = self.policy.offering_rule(request.rule)
        if rule is None or rule.offer is None or not caller.roles_in(request.project_id):
            return frozenset()
        return rule.offer.met_by(self.policy.input_of(caller, cluster, IssueRequest(), now))

    async def _seen(self, caller: Caller, request: AccessRequest) -> SeenRequest:
        found = await self._seen_all(caller, [request])
        return found[0] if found else SeenRequest(self.now(), request)

    async def _seen_all(self, caller: Caller, requests: Sequence[AccessRequest]) -> list[SeenRequest]:
        """Return those of the requests that the caller may see, with what the caller may do."""
        now = self.now()
        clusters = {
            each.id: each
            for each in await self.clusters.clusters_with_ids({each.cluster_id for each in requests})
        }
        live = await self.queries.live_certificates([each.id for each in requests], now)
        seen = []
        for stored in requests:
            request, cluster = stored.lapsed(now), clusters.get(stored.cluster_id)
            met = self._met_in(caller, request, cluster, now) if cluster is not None else frozenset()
            is_own = request.user_id == caller.user.id
            if not (is_own or met or reads_project(caller, request.project_id)):
                continue
            waits = request.open_part is not None and not is_own
            seen.append(
                SeenRequest(
                    at=now,
                    request=request,
                    may_approve=waits and bool(met) and not _has_approved(request, caller),
                    may_deny=waits and (bool(met) or operates(caller)),
                    may_extend=is_own and _may_extend(request, now),
                    may_end=request.is_open and (is_own or bool(met) or operates(caller)),
                    certificates=live.get(request.id, 0),
                )
            )
        return seen


def no_such_request() -> NotFound:
    """Return the error for a request that does not exist or that the caller may not see."""
    return NotFound("There is no such access request, or it is not yours to see. Check its id.")


def _new_request(
    caller: Caller, cluster: Cluster, asked: NewRequest, rule: PolicyRule, now: datetime
) -> AccessRequest:
    offer = rule.offer
    if offer is None:
        raise InvalidRequest(f"rule: {rule.name} offers nothing.")
    request = AccessRequest(
        id=new_id(),
        project_id=cluster.project_id,
        cluster_id=cluster.id,
        cluster_name=cluster.name,
        user_id=caller.user.id,
        user_name=caller.user.shown_name,
        groups=tuple(sorted(set(asked.groups))),
        rule=rule.name,
        duration=asked.duration,
        reason=asked.reason.strip(),
        ticket=asked.ticket,
        conditions=offer.clauses,
        before_approval=offer.before_approval,
        claim_within=offer.claim_within,
        created_at=now,
        approve_by=now + offer.approve_within,
    )
    return request.approved_at_once(now)


def _check_terms(rule: PolicyRule, duration: timedelta, reason: str) -> None:
    """Raise InvalidRequest or Forbidden if a request or an extension is not within the terms of the offer."""
    offer = rule.offer
    if offer is None:
        raise InvalidRequest(f"rule: {rule.name} offers nothing.")
    if duration < MIN_LIFETIME or duration.microseconds:
        raise InvalidRequest(f"duration: ask for at least {lifetime_text(MIN_LIFETIME)}, in whole seconds.")
    if duration > offer.max_lifetime:
        raise Forbidden(
            f"The requested time ({lifetime_text(duration)}) exceeds the limit of rule {rule.name}"
            f" ({lifetime_text(offer.max_lifetime)}). Ask for less."
        )
    _checked_reason(reason)
    if len(reason.strip()) < offer.min_reason_length:
        raise InvalidRequest(f"reason: write at least {offer.min_reason_length} characters.")


def _checked_reason(reason: str | None) -> str | None:
    if reason is not None and (len(reason) > MAX_REASON or not is_plain_text(reason)):
        raise InvalidRequest(
            f"reason: must have at most {MAX_REASON} characters, without control or bidirectional characters."
        )
    return reason.strip() or None if reason is not None else None


def _not_offered(offers: Sequence[PolicyRule], asked: NewRequest) -> str:
    groups = sorted({group for rule in offers for group in rule.groups})
    if not groups:
        return "The policy offers you no groups for this cluster. Ask the operator."
    by_rule = f" by the rule {asked.rule}" if asked.rule is not None else ""
    return (
        f"The policy does not offer you {', '.join(sorted(set(asked.groups)))}{by_rule} in one request. It offers:"
        f" {', '.join(f'{rule.name}: ' + ', '.join(rule.groups) for rule in offers[:5])}."
    )


def _not_an_approver(request: AccessRequest) -> str:
    return f"You can't decide this request. An approver needs: {'; '.join(request.conditions) or 'nothing'}."


def _has_approved(request: AccessRequest, caller: Caller) -> bool:
    part = request.open_part
    return part is not None and any(each.by == caller.user.id for each in request.approvals(part))


def _may_extend(request: AccessRequest, now: datetime) -> bool:
    return (
        request.state == "active"
        and request.approved_at is not None
        and request.extension is None
        and request.usable_until(now) is not None
    )
