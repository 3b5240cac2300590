"""Use case: access requests. Methods that take a `Caller` authorize the caller."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from clustercert.model import Actor, AuditEvent, Caller, CertificateRecord, Cluster, Origin
from clustercert.model.access_requests import (
    AccessDecision,
    AccessRequest,
    EarlyUseRefusal,
    RequestedAccess,
)
from clustercert.model.choices import AccessRequestPart
from clustercert.model.errors import ConcurrentChange, Conflict, Forbidden, NotFound, Unavailable
from clustercert.model.ids import is_id
from clustercert.model.rights import administered_projects, operates, reads_everything
from clustercert.observability import metrics
from clustercert.policy.decision import Policy
from clustercert.policy.offers import Offer
from clustercert.policy.rules import PolicyRule
from clustercert.requests import steps
from clustercert.requests.terms import NewRequest, checked_reason, checked_terms, new_request
from clustercert.requests.users import RequestUsers
from clustercert.requests.views import SeenPage, SeenRequest, possible_steps
from clustercert.store.access_requests import (
    AccessRequestQueries,
    RequestFilter,
    Step,
    StepResult,
    Visibility,
)
from clustercert.store.clusters.registry import ClusterQueries

# How many requests a user can create within `CREATION_PERIOD`, so that nobody floods the approvers.
MAX_CREATED = 100
CREATION_PERIOD = timedelta(days=1)
ATTEMPTS = 3
EXPIRED_AT_ONCE = 100
# How long to wait before the next attempt to close a request.
EXPIRY_RETRY = timedelta(minutes=1)

logger = structlog.get_logger()


@dataclass(slots=True)
class AccessRequests:
    """Creates, shows, decides, extends and ends access requests.

    Users see requests of all their projects, whatever the scope of their token. For creating, deciding and extending,
    the token must give roles in the request's project.

    Attributes:
        with_all_roles: returns the caller with the roles in all projects, whatever the scope of the caller's token.
    """

    policy: Policy
    queries: AccessRequestQueries
    clusters: ClusterQueries
    users: RequestUsers
    with_all_roles: Callable[[Caller], Awaitable[Caller]]
    now: Callable[[], datetime]
    # The times of the next attempts to close requests that could not be closed, by id.
    _retry_at: dict[str, datetime] = field(default_factory=dict)

    async def offers(self, caller: Caller, cluster_id: str) -> tuple[Cluster, tuple[PolicyRule, ...]]:
        """Return a cluster and the rules whose groups the caller can request for it. Raises NotFound."""
        caller = await self.with_all_roles(caller)
        cluster = await self._cluster(caller, cluster_id)
        return cluster, self.policy.offers(caller, cluster, self.now())

    async def create(
        self, caller: Caller, cluster_id: str, asked: NewRequest, project_id: str | None = None
    ) -> tuple[SeenRequest, bool]:
        """Create a request, or return the caller's equal open request. Also returns whether the request is new.

        Raises NotFound, InvalidRequest, Forbidden if the policy does not offer the groups to the caller, Conflict if
        the caller has another open request for the cluster, or an equal one that the policy refuses now, or
        TooManyRequests.

        Args:
            project_id: the project that the cluster must be in; None for any project.
        """
        cluster = await self._cluster(caller, cluster_id, project_id)
        now = self.now()
        request = new_request(caller, cluster, asked, self.policy.offers(caller, cluster, now), now)
        event = steps.event(request, "access_request.created", now, caller.actor, request.reason)
        for _ in range(ATTEMPTS):
            await self._expire_open(caller.user.id, cluster.id, now)
            try:
                made, is_new = await self.queries.create(
                    request, event, since=now - CREATION_PERIOD, most=MAX_CREATED
                )
            except ConcurrentChange:
                continue
            seen = await self._seen(caller, made)
            if seen.refusal is not None:
                raise Conflict(f"You have this open request already: {made.id}. {seen.refusal}")
            return seen, is_new
        raise ConcurrentChange

    async def show(self, caller: Caller, request_id: str) -> SeenRequest:
        """Return a request. Raises NotFound if there is none that the caller may see."""
        caller = await self.with_all_roles(caller)
        return await self._seen(caller, await self._visible(caller, request_id))

    async def page(
        self,
        caller: Caller,
        selected: RequestFilter,
        *,
        mine: bool = False,
        to_decide: bool = False,
        limit: int,
        before: tuple[datetime, str] | None = None,
    ) -> SeenPage:
        """Return a page of the selected requests that the caller may see, newest first.

        Args:
            mine: only the caller's own requests.
            to_decide: only requests that the caller may approve now.
        """
        caller = await self.with_all_roles(caller)
        selected = replace(
            selected,
            visible_to=self._visibility(caller),
            asked_by=caller.user.id if mine else None,
            undecided=to_decide,
        )
        found = await self.queries.page(selected, limit=limit + 1, before=before)
        seen = await self._seen_all(caller, found[:limit])
        if to_decide:
            seen = [each for each in seen if "approve" in each.may]
        if (states := selected.states) is not None:
            # The time may have changed a request since its row was written.
            seen = [each for each in seen if each.request.state in states]
        last = found[limit - 1] if len(found) > limit else None
        return SeenPage(tuple(seen), (last.created_at, last.id) if last is not None else None)

    async def decide(
        self,
        caller: Caller,
        request_id: str,
        *,
        approves: bool,
        reason: str | None,
        part: AccessRequestPart | None = None,
    ) -> SeenRequest:
        """Approve or deny the part of a request that waits for decisions.

        Access that was used before the approval waits for decisions also after its end.

        Raises NotFound, Forbidden if the caller may not decide, or Conflict if nothing waits for a decision.

        Args:
            part: the part that the caller decides about; None for the part that waits for decisions.
        """
        everywhere = await self.with_all_roles(caller)
        request = await self._visible(everywhere, request_id)
        now = self.now()
        reason = checked_reason(reason)
        if request.user_id == caller.user.id:
            raise Forbidden("You can't decide your own request. Ask somebody else.")
        # Roles in `everywhere` are up to date; a role of the token may have been removed meanwhile.
        met = self._met(caller, request) & self._met(everywhere, request)
        if not met and (approves or not operates(caller)):
            raise self._not_an_approver(everywhere, request)
        offer = self._offer(request.rule)
        decision = AccessDecision(
            part=part or request.open_part or "access",
            by=caller.user.id,
            by_name=caller.user.shown_name,
            at=now,
            approves=approves,
            met=met,
            reason=reason,
        )
        conditions = offer.clauses if offer is not None else request.conditions
        # The periodic job may be late.
        await self._change(request_id, steps.lapse(now))
        return await self._changed(everywhere, request_id, steps.decide(decision, conditions, caller.actor))

    async def extend(self, caller: Caller, request_id: str, duration: timedelta, reason: str) -> SeenRequest:
        """Ask for more time. Raises NotFound, Forbidden for another user's request, InvalidRequest or Conflict."""
        everywhere = await self.with_all_roles(caller)
        request = await self._visible(everywhere, request_id)
        if request.user_id != caller.user.id:
            raise Forbidden("Only the user who created the request can ask for more time.")
        now = self.now()
        cluster = await self._cluster(caller, request.cluster_id)
        offered = {rule.name: rule.offer for rule in self.policy.offers(caller, cluster, now)}
        offer = offered.get(request.rule)
        if offer is None:
            raise Forbidden(f"The policy's rule {request.rule} does not offer you this access any more.")
        refusal = self._refusal(request, now)
        if refusal is not None:
            raise Forbidden(refusal)
        checked = checked_terms(request.rule, offer, duration, reason)
        return await self._changed(everywhere, request_id, steps.extend(duration, checked, now, caller.actor))

    async def end(self, caller: Caller, request_id: str, reason: str | None) -> SeenRequest:
        """End an open request, and revoke its certificates. Raises NotFound or Forbidden."""
        everywhere = await self.with_all_roles(caller)
        request = await self._visible(everywhere, request_id)
        now = self.now()
        reason = checked_reason(reason)
        is_own = request.user_id == caller.user.id
        if not (is_own or operates(caller) or self._met(caller, request)):
            raise self._not_an_approver(everywhere, request)
        return await self._changed(everywhere, request_id, steps.end(caller, now, reason))

    async def access(
        self, caller: Caller, cluster: Cluster, request_id: str, now: datetime
    ) -> RequestedAccess:
        """Return the access of the caller's request for a certificate that is issued now.

        Raises NotFound if the caller has no such request, or Conflict if the request is not for this cluster or can't
        be used.
        """
        own = RequestFilter(asked_by=caller.user.id)
        request = await self.queries.find(request_id, own) if is_id(request_id) else None
        if request is None:
            raise no_such_request()
        if request.cluster_id != cluster.id:
            raise Conflict(
                f"The access request is for the cluster {request.project_name}/{request.cluster_name}, not for"
                f" {cluster.shown_name}."
            )
        access = request.lapsed(now).access(now)
        if access is None:
            raise Conflict(f"The access request can't be used: {request.obstacle(now)}.")
        steps.require_early_use(request, (await self._early_use_refusals([request], now)).get(request.id))
        return access

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Record a certificate of a request. The first certificate starts the request's clock.

        Raises Conflict if the request can't be used any more, or Unavailable.
        """
        actor = Actor(record.user_id, Origin(record.source_address, record.request_id))
        claim = steps.claim(record.issued_at, actor, self._early_use_limit)
        request, is_first = await self.queries.record(record, event, claim)
        if is_first and request.approved_at is None:
            metrics.ACCESS_BEFORE_APPROVAL.inc()

    async def expire_due(self) -> int:
        """Close the requests whose time is over. Returns how many were found, at most `EXPIRED_AT_ONCE`.

        A request that can't be closed is logged and left for later, so that it doesn't delay other requests. Raises
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
        """Close the user's open request for a cluster if the request's time is over: the periodic job may be late."""
        selected = RequestFilter(asked_by=user_id, cluster=cluster_id, state="open")
        for request in await self.queries.page(selected, limit=1):
            if request.lapsed(now) is not request:
                await self._change(request.id, steps.lapse(now))

    async def _changed(self, caller: Caller, request_id: str, step: Step) -> SeenRequest:
        return await self._seen(caller, await self._change(request_id, step))

    async def _change(self, request_id: str, step: Step) -> AccessRequest:
        was_open = False

        def observed(before: AccessRequest) -> StepResult | None:
            nonlocal was_open
            was_open = before.is_open
            return step(before)

        request, _ = await self.queries.change(request_id, observed)
        if was_open and not request.is_open:
            metrics.ACCESS_REQUESTS_CLOSED.labels(request.state).inc()
        return request

    async def _cluster(self, caller: Caller, cluster_id: str, project_id: str | None = None) -> Cluster:
        projects = caller.roles.keys() if project_id is None else caller.roles.keys() & {project_id}
        cluster = await self.clusters.reachable(cluster_id, projects)
        if cluster is None:
            raise NotFound(
                "There is no such cluster in a project in which your token gives you a role. Check the cluster's id,"
                " and the project of your token."
            )
        return cluster

    def _early_use_limit(self, request: AccessRequest) -> int:
        """Return how many uses before an approval the request's rule allows."""
        offer = self._offer(request.rule)
        # Without an offer, the policy refuses each certificate of the request.
        return offer.uses_before_approval if offer is not None else 1

    async def _early_use_refusals(
        self, requests: Sequence[AccessRequest], now: datetime
    ) -> dict[str, EarlyUseRefusal]:
        """Return why requests can't be used before their approval now, by id. Omits all other requests."""
        early = [each for each in requests if each.state == "pending" and each.before_approval]
        if not early:
            return {}
        users, clusters = {each.user_id for each in early}, {each.cluster_id for each in early}
        uses = defaultdict[tuple[str, str], list[AccessRequest]](list)
        for each in await self.queries.early_uses(users, clusters, now):
            uses[each.user_id, each.cluster_id].append(each)
        found = {
            each.id: each.early_use_refusal(
                uses[each.user_id, each.cluster_id], self._early_use_limit(each), now
            )
            for each in early
        }
        return {request_id: refusal for request_id, refusal in found.items() if refusal is not None}

    def _offer(self, rule_name: str) -> Offer | None:
        rule = self.policy.offering_rule(rule_name)
        return rule.offer if rule is not None else None

    async def _visible(self, caller: Caller, request_id: str) -> AccessRequest:
        """Return a request. Raises NotFound if the caller, who has all roles, may see no such request."""
        selected = RequestFilter(visible_to=self._visibility(caller))
        request = await self.queries.find(request_id, selected) if is_id(request_id) else None
        if request is None:
            raise no_such_request()
        return request

    def _met(self, caller: Caller, request: AccessRequest) -> frozenset[str]:
        """Return the clauses of the approval conditions that the caller meets now."""
        return self.policy.met_conditions(caller, request.project_id).get(request.rule, frozenset())

    def _visibility(self, caller: Caller) -> Visibility | None:
        """Return which requests the caller may see; None for all requests."""
        if reads_everything(caller):
            return None
        projects = defaultdict[frozenset[str], list[str]](list)
        for project_id in caller.roles:
            if rules := frozenset(self.policy.met_conditions(caller, project_id)):
                projects[rules].append(project_id)
        return Visibility(
            caller.user.id,
            administered_projects(caller),
            tuple((tuple(ids), tuple(rules)) for rules, ids in projects.items()),
        )

    def _not_an_approver(self, everywhere: Caller, request: AccessRequest) -> Forbidden:
        """Return the error for a caller, given with all roles, who may see the request, but not decide about it."""
        if self._met(everywhere, request):
            return Forbidden(
                f"Your token is not for the request's project ({request.project_id}), so it can't decide about this"
                " request. Log in to this project."
            )
        needed = "; ".join(request.conditions)
        return Forbidden(
            "You can't decide about this request. Approvers need a role in the project, and must meet a"
            f" condition: {needed}."
            if needed
            else "You can't decide about this request, because it needs no approval."
        )

    def _refusal(self, request: AccessRequest, now: datetime) -> str | None:
        """Return why the policy would refuse every certificate of this request.

        Returns None if the policy would not refuse, or if the request can't be used now.
        """
        access = request.access(now)
        return self.policy.access_refusal(access) if access is not None else None

    async def _seen(self, caller: Caller, request: AccessRequest) -> SeenRequest:
        return (await self._seen_all(caller, [request]))[0]

    async def _seen_all(self, caller: Caller, requests: Sequence[AccessRequest]) -> list[SeenRequest]:
        """Return the requests, which the caller may see, with what the caller may do."""
        now = self.now()
        live = await self.queries.live_certificates([each.id for each in requests], now)
        lapsed = [each.lapsed(now) for each in requests]
        early_refusals = await self._early_use_refusals(lapsed, now)
        entitled = await self.users.entitled(lapsed, self.policy, now)
        seen = []
        for request in lapsed:
            early = early_refusals.get(request.id)
            refusal = self._refusal(request, now)
            may = possible_steps(
                request, caller, self._met(caller, request), now, is_refused=refusal is not None
            )
            is_usable = request.usable_until(now) is not None and early is None
            seen.append(
                SeenRequest(
                    request,
                    may,
                    is_usable,
                    live.get(request.id, 0),
                    refusal,
                    early,
                    is_user_entitled=entitled.get(request.id),
                )
            )
        return seen


def no_such_request() -> NotFound:
    """Return the error for a request that does not exist or that the caller may not see."""
    return NotFound("There is no such access request, or you may not see it. Check its id.")
