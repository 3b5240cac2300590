"""Access requests: a user asks for access, others approve, and the access ends by itself. A state machine without I/O.

A method that changes a request returns a new `AccessRequest`, or raises Conflict if the state does not allow the step.
The store saves the result while it holds the lock on the request's row.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clustercert.model.choices import AccessRequestPart, AccessRequestState, RequestSeverity
from clustercert.model.errors import Conflict
from clustercert.model.times import rfc3339

# The period in which uses before an approval, and denials, count.
EARLY_USE_PERIOD = timedelta(days=1)
OPEN_STATES: tuple[AccessRequestState, ...] = ("pending", "approved", "active")
CLOSED_STATES: tuple[AccessRequestState, ...] = ("denied", "expired", "ended", "finished")


@dataclass(frozen=True, slots=True)
class RequestedAccess:
    """The access that a request gives to one certificate, as input of the policy's decision.

    Attributes:
        request_id: the request's id.
        rule: the name of the policy rule that offers the access.
        groups: the requested Kubernetes groups, sorted.
        until: the latest end of the certificate.
        is_approved: whether the approvals are complete. If not, the rule must allow use before the approval.
        met: for each approver, the clauses of the approval conditions that the approver met.
    """

    request_id: str
    rule: str
    groups: tuple[str, ...]
    until: datetime
    is_approved: bool
    met: tuple[frozenset[str], ...]

    def satisfies(self, conditions: Sequence[str]) -> bool:
        """Whether each condition can be assigned to an approver who met it, with one approver for one condition."""
        return all_assigned(conditions, self.met)


@dataclass(frozen=True, slots=True)
class AccessDecision:
    """What one user decided about one part of a request.

    Attributes:
        part: the access itself, or its extension.
        by, by_name: the user's id, and the user's name with the domain.
        approves: whether the user approved; False if the user denied.
        met: the clauses of the approval conditions that the user met at the time of the decision.
        reason: the user's reason; None if the user gave no reason.
    """

    part: AccessRequestPart
    by: str
    by_name: str
    at: datetime
    approves: bool
    met: frozenset[str]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class EarlyUseRefusal:
    """Why a request can't be used before its approval, although its rule allows this.

    Attributes:
        why: a sentence about the user.
        until: when the refusal ends.
    """

    why: str
    until: datetime

    @property
    def message(self) -> str:
        return f"{self.why} The next use before an approval is possible at {rfc3339(self.until)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """A user's request for Kubernetes groups in one cluster. A user has at most one open request for a cluster.

    Attributes:
        cluster_name, project_name: the names when the request was created. The project's name contains the domain.
        user_id, user_name: the user who asks. The name contains the domain.
        groups: the requested Kubernetes groups, sorted, without duplicates.
        rule: the name of the policy rule that offers the groups.
        offered_groups: all groups that the rule offered when the request was created, sorted.
        duration: how long the access lasts, from the first certificate.
        conditions: the clauses of the approval conditions. Each condition needs a different approver.
        before_approval: whether the access may be used before the approval (break-glass).
        claim_within: the longest time between the approval and the first certificate.
        approve_by: the end of the time for the approvals.
        state: `pending`: waits for approvals, not used. `approved`: not used yet. `active`: certificates were issued;
            with `before_approval`, the approvals may be missing. `denied`; `expired`: not approved or not used in time;
            `ended`: ended early, or used without an approval in time; `finished`: its time was over.
        approved_at: when the approvals were complete; after `closed_at` if approvers decided after the end.
        claim_by: the end of the time for the first certificate; set by the approval.
        started_at: when the first certificate was issued.
        ends_at: the end of the access; no certificate of the request is valid longer.
        extension: the additional time that the user asked for; None if the user asked for no extension.
        extension_state: the state of the extension: `pending`, `approved`, `denied`, or None.
        closed_at, closed_by, closed_why: when and by whom the request was closed, and the reason that was given.
            `closed_by` is a user's name with the domain; None for a request that ended by itself.
        decisions: the decisions, oldest first.
    """

    id: str
    project_id: str
    cluster_id: str
    cluster_name: str
    project_name: str
    user_id: str
    user_name: str
    groups: tuple[str, ...]
    rule: str
    offered_groups: tuple[str, ...]
    duration: timedelta
    reason: str
    ticket: str | None
    conditions: tuple[str, ...]
    before_approval: bool
    claim_within: timedelta
    created_at: datetime
    approve_by: datetime
    state: AccessRequestState = "pending"
    approved_at: datetime | None = None
    claim_by: datetime | None = None
    started_at: datetime | None = None
    ends_at: datetime | None = None
    extension: timedelta | None = None
    extension_reason: str | None = None
    extension_state: str | None = None
    closed_at: datetime | None = None
    closed_by: str | None = None
    closed_why: str | None = None
    decisions: tuple[AccessDecision, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def open_part(self) -> AccessRequestPart | None:
        """The part that waits for approvals, or None. Access that was used unapproved also waits after it ended."""
        if self.approved_at is None:
            waits = self.is_open or (self.was_used_unapproved and not self.denied_at)
            return "access" if waits else None
        return "extension" if self.is_open and self.extension_state == "pending" else None

    @property
    def was_used_unapproved(self) -> bool:
        """Whether the access was used before its approval, and is not approved yet."""
        return self.started_at is not None and self.approved_at is None

    @property
    def denied_at(self) -> datetime | None:
        """When the access was denied; None if nobody denied the access."""
        denials = (each.at for each in self.decisions if each.part == "access" and not each.approves)
        return max(denials, default=None)

    def assigned_approvers(self, part: AccessRequestPart) -> "list[AccessDecision | None]":
        """Return for each condition the approval that is assigned to the condition, or None."""
        given = self.approvals(part)
        indexes = assignment(self.conditions, [each.met for each in given])
        return [given[index] if index is not None else None for index in indexes]

    @property
    def due_at(self) -> datetime | None:
        """When the request changes by itself, or None if the request is closed."""
        if self.state == "active" and self.approved_at is None and self.ends_at is not None:
            return min(self.approve_by, self.ends_at)
        return {"pending": self.approve_by, "approved": self.claim_by, "active": self.ends_at}.get(self.state)

    @property
    def label(self) -> str:
        """The state in a few words, with the part that waits for approvals."""
        if self.was_used_unapproved:
            return f"{self.state}, not approved"
        return "active, extension pending" if self.open_part == "extension" else self.state

    @property
    def severity(self) -> RequestSeverity:
        if self.was_used_unapproved or self.state == "denied":
            return "bad"
        if self.open_part is not None:
            return "warn"
        return "good" if self.is_open else "plain"

    def asks_the_same(self, other: "AccessRequest") -> bool:
        """Whether another request of the same user asks for the same access to the same cluster."""
        return (self.cluster_id, self.groups, self.rule, self.duration) == (
            other.cluster_id,
            other.groups,
            other.rule,
            other.duration,
        )

    def approvals(self, part: AccessRequestPart) -> tuple[AccessDecision, ...]:
        return tuple(each for each in self.decisions if each.part == part and each.approves)

    def usable_until(self, now: datetime) -> datetime | None:
        """Return the latest end of a certificate that is issued now, or None if no certificate may be issued."""
        end: datetime | None = None
        if self.state == "active":
            end = self.ends_at
        elif (self.state == "approved" and self.claim_by is not None and now < self.claim_by) or (
            self.state == "pending" and self.before_approval
        ):
            end = now + self.duration
        if end is not None and self.approved_at is None:
            end = min(end, self.approve_by)
        return end if end is not None and now < end else None

    def access(self, now: datetime) -> RequestedAccess | None:
        """Return the access for a certificate that is issued now, or None if no certificate may be issued."""
        until = self.usable_until(now)
        if until is None:
            return None
        met = tuple(each.met for each in self.approvals("access"))
        return RequestedAccess(self.id, self.rule, self.groups, until, self.approved_at is not None, met)

    def early_use_refusal(
        self, others: "Iterable[AccessRequest]", limit: int, now: datetime
    ) -> EarlyUseRefusal | None:
        """Return why a pending request, whose rule allows use before the approval, can't be used now; else None.

        A use is the first certificate of a request before its approval. After an approval, even a late approval, the
        use does not count any more. Uses and denials of a request count if its rule offers one of the same groups.

        Args:
            others: other requests of the same user for the same cluster; requests without a use or a denial within
                `EARLY_USE_PERIOD` may be missing.
            limit: the maximum number of uses within `EARLY_USE_PERIOD`.
        """
        if self.state != "pending" or not self.before_approval:
            return None
        related = [
            each for each in others if each.id != self.id and {*each.offered_groups} & {*self.offered_groups}
        ]
        since = now - EARLY_USE_PERIOD
        uses = sorted(
            each.started_at
            for each in related
            if each.was_used_unapproved and each.started_at is not None and each.started_at > since
        )
        denials = [
            each.denied_at for each in related if each.denied_at is not None and each.denied_at > since
        ]
        refusals = []
        if denials:
            why = "An approver has denied this user such access within the last 24 hours."
            refusals.append(EarlyUseRefusal(why, max(denials) + EARLY_USE_PERIOD))
        if len(uses) >= limit:
            why = f"This user has reached the rule's limit for such uses before an approval: {limit} within 24 hours."
            refusals.append(EarlyUseRefusal(why, uses[-limit] + EARLY_USE_PERIOD))
        return max(refusals, key=lambda each: each.until, default=None)

    def lapsed(self, now: datetime) -> "AccessRequest":
        """Return the request, changed if one of its time limits is over. Else, returns the request itself."""
        due = self.due_at
        if due is None or now < due:
            return self
        if self.state in ("pending", "approved"):
            why = "not approved in time" if self.state == "pending" else "not used in time"
            return _closed(self, "expired", now, None, why)
        if self.approved_at is None:
            return _closed(self, "ended", now, None, "used before the approval, and not approved in time")
        return _closed(self, "finished", now, None, None)

    def decided(self, decision: AccessDecision, conditions: tuple[str, ...]) -> "AccessRequest":
        """Return the request with a decision. An approval may complete the approvals; a denial closes the access.

        A decision about access that was used before the approval, and has ended, does not change the state. Returns the
        request itself if the user has made the same decision before. An approval that meets further conditions, such as
        conditions of a changed policy, replaces the user's earlier approval. Raises Conflict if the request waits for
        no decision on this part, if the user asked for the access, or if an approver meets no condition. A denial needs
        no condition, because operators may deny.

        Args:
            conditions: the clauses of the present approval conditions of the policy.
        """
        if decision.by == self.user_id:
            raise Conflict("You can't decide your own request. Ask somebody else.")
        earlier = [each for each in self.decisions if (each.by, each.part) == (decision.by, decision.part)]
        same = [each for each in earlier if each.approves == decision.approves]
        if any(not each.approves or decision.met <= each.met for each in same):
            return self
        if self.open_part != decision.part:
            raise Conflict(self._no_decision(decision.part))
        if decision.approves and not decision.met:
            raise Conflict("You meet none of the conditions for approvers of this request.")
        others = tuple(each for each in self.decisions if each not in earlier)
        after = replace(self, decisions=(*others, decision), conditions=conditions)
        if not decision.approves:
            return _with_denial(after, decision)
        if not all_assigned(conditions, [each.met for each in after.approvals(decision.part)]):
            return after
        return _with_approval(after, decision.part, decision.at)

    def _no_decision(self, part: AccessRequestPart) -> str:
        if self.open_part is not None:
            option = "Add" if self.open_part == "extension" else "Leave out"
            return (
                f"The request waits for a decision about its {self.open_part}, not about its {part}."
                f" {option} --extension, or send the part {self.open_part}."
            )
        return f"The request waits for no decision: it is {self.state}."

    def approved_at_once(self, now: datetime) -> "AccessRequest":
        """Return a new request as approved if the request needs no approvers. Else, returns the request itself."""
        return self if self.conditions else _with_approval(self, "access", now)

    def claimed(self, now: datetime) -> "AccessRequest":
        """Return the request after its first certificate, which starts the clock. Raises Conflict if it can't be used.

        Returns the request unchanged if its time has already started.
        """
        if self.usable_until(now) is None:
            raise Conflict(f"The access request can't be used: {self.obstacle(now)}.")
        if self.state == "active":
            return self
        return replace(self, state="active", started_at=now, ends_at=now + self.duration)

    def obstacle(self, now: datetime) -> str:
        """Return in a few words why no certificate may be issued."""
        lapsed = self.lapsed(now)
        if lapsed.state == "pending":
            return "it waits for approvals"
        if lapsed.closed_why is not None:
            return f"it is {lapsed.state} ({lapsed.closed_why})"
        return "its time is over" if lapsed.is_open else f"it is {lapsed.state}"

    def ended(self, now: datetime, by: str | None, why: str | None) -> "AccessRequest":
        """Return the request, ended early. Returns the request itself if it is closed already."""
        return _closed(self, "ended", now, by, why) if self.is_open else self

    def can_be_extended(self, now: datetime) -> bool:
        """Whether the user can ask for more time: the access is approved and in use, and was not extended before."""
        in_use = self.state == "active" and self.approved_at is not None
        return in_use and self.extension is None and self.usable_until(now) is not None

    def with_extension(self, duration: timedelta, reason: str, now: datetime) -> "AccessRequest":
        """Return the request with the request for an extension.

        Returns the request itself if the same extension was asked for before. Raises Conflict if the access is not in
        use, is not approved, or was extended before.
        """
        if self.extension is not None and self.extension_state != "denied" and self.extension == duration:
            return self
        if self.extension is not None:
            raise Conflict(
                "A request can be extended only once. Create a new request when this request has ended."
            )
        if not self.can_be_extended(now):
            raise Conflict(
                f"Only a request that is approved and in use can be extended. This request is {self.label}."
            )
        asked = replace(self, extension=duration, extension_reason=reason, extension_state="pending")
        return asked if self.conditions else _with_approval(asked, "extension", now)


def all_assigned(conditions: Sequence[str], met: Sequence[Collection[str]]) -> bool:
    """Whether each condition can be assigned to an approver who met it, with one approver for one condition."""
    return None not in assignment(conditions, met)


def assignment(conditions: Sequence[str], met: Sequence[Collection[str]]) -> list[int | None]:
    """Assign as many conditions as possible to approvers who met them, one approver to one condition.

    Returns for each condition the index of its approver, or None. Searches for a largest matching of the bipartite
    graph of conditions and approvers, by augmenting paths.
    """
    assigned: dict[int, int] = {}

    def assign(condition: int, seen: set[int]) -> bool:
        for approver, clauses in enumerate(met):
            if approver in seen or conditions[condition] not in clauses:
                continue
            seen.add(approver)
            if approver not in assigned or assign(assigned[approver], seen):
                assigned[approver] = condition
                return True
        return False

    for condition in range(len(conditions)):
        assign(condition, set())
    approvers = {condition: approver for approver, condition in assigned.items()}
    return [approvers.get(condition) for condition in range(len(conditions))]


def _with_denial(request: AccessRequest, decision: AccessDecision) -> AccessRequest:
    if decision.part == "extension":
        return replace(request, extension_state="denied")
    if not request.is_open:
        return request
    state: AccessRequestState = "denied" if request.state == "pending" else "ended"
    return _closed(request, state, decision.at, decision.by_name, decision.reason)


def _with_approval(request: AccessRequest, part: AccessRequestPart, now: datetime) -> AccessRequest:
    if part == "access" and not request.is_open:
        return replace(request, approved_at=now)
    if part == "access":
        state: AccessRequestState = "approved" if request.state == "pending" else request.state
        return replace(request, state=state, approved_at=now, claim_by=now + request.claim_within)
    if request.ends_at is None or request.extension is None:
        raise Conflict("The request has no extension to approve.")
    return replace(request, extension_state="approved", ends_at=request.ends_at + request.extension)


def _closed(
    request: AccessRequest, state: AccessRequestState, now: datetime, by: str | None, why: str | None
) -> AccessRequest:
    return replace(request, state=state, closed_at=now, closed_by=by, closed_why=why)
