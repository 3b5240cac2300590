"""Decides recorded requests again by another policy, and compares the outcomes. Pure: no I/O, no clock."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from clustercert.model import Grant
from clustercert.model.errors import ClustercertError
from clustercert.policy.credential_roles import bound_grant
from clustercert.policy.decision import Policy
from clustercert.policy.recorded_decisions import (
    FAILED,
    ISSUED,
    MALFORMED,
    REFUSED,
    REPEATED,
    NotReplayable,
    Outcome,
    RecordedDecision,
    cluster_role_group,
    count_repeated,
    parse_decision,
    refused_outcome,
)

ONLY_COUNTED = "the refusal was only counted, without its cluster, as one of many of the same caller"
NOT_SIGNED = "the policy allowed the request, but the signer did not sign"
# The maximum number of example decisions for each kind of change.
MAX_EXAMPLES = 5


class Change(StrEnum):
    """How the outcome under the other policy differs from the recorded outcome."""

    DENIED = "allow_to_deny"
    ALLOWED = "deny_to_allow"
    SHORTER = "shorter"
    LONGER = "longer"
    GROUPS = "other_groups"
    USERNAME = "other_username"


@dataclass(frozen=True, slots=True)
class Example:
    """A decision whose outcome differs."""

    decision: RecordedDecision
    outcome: Outcome


@dataclass(slots=True)
class Tally:
    """The decisions with one kind of change.

    Attributes:
        users: number of decisions by user id and qualified name.
        clusters: number of decisions by cluster id and name.
        recorded_rules, rules: number of decisions by rule: those that decided then, and those of the other policy.
        examples: the first few decisions.
    """

    decisions: int = 0
    users: Counter[tuple[str, str]] = field(default_factory=Counter)
    clusters: Counter[tuple[str, str]] = field(default_factory=Counter)
    recorded_rules: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    def add(self, decision: RecordedDecision, outcome: Outcome) -> None:
        user, cluster = decision.caller.user, decision.cluster
        self.decisions += 1
        self.users[user.id, user.shown_name] += 1
        self.clusters[cluster.id, cluster.name] += 1
        self.recorded_rules.update(decision.outcome.rules)
        self.rules.update(outcome.rules)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(Example(decision, outcome))


@dataclass(slots=True)
class Replay:
    """The comparison of recorded decisions with a policy.

    Attributes:
        decisions: number of decisions that were computed again.
        not_replayable: number of those that could not be, by reason.
    """

    policy: Policy
    decisions: int = 0
    unchanged: int = 0
    changes: dict[Change, Tally] = field(default_factory=lambda: {change: Tally() for change in Change})
    not_replayable: Counter[str] = field(default_factory=Counter)

    def add(self, event: Mapping[str, Any]) -> None:
        """Compare the decision in an event, given as its JSON body. Ignores events of other kinds."""
        if event.get("kind") == REPEATED:
            self._add_repeated(event)
        elif event.get("kind") == FAILED:
            self.not_replayable[NOT_SIGNED] += 1
        elif event.get("kind") in (ISSUED, REFUSED):
            self._add_decision(event)

    def _add_repeated(self, event: Mapping[str, Any]) -> None:
        if count := count_repeated(event):
            self.not_replayable[ONLY_COUNTED] += count

    def _add_decision(self, event: Mapping[str, Any]) -> None:
        try:
            decision = parse_decision(event)
            outcome = decide_again(self.policy, decision)
        except NotReplayable as reason:
            self.not_replayable[str(reason)] += 1
            return
        except (OverflowError, ValueError):
            # Its times or its duration are out of range.
            self.not_replayable[MALFORMED] += 1
            return
        self.decisions += 1
        changed = False
        for change in changes(decision.outcome, outcome):
            self.changes[change].add(decision, outcome)
            changed = True
        self.unchanged += not changed


def decide_again(policy: Policy, decision: RecordedDecision) -> Outcome:
    """Return what the policy decides about a recorded request, at the recorded time."""
    if policy.key_type != decision.key_type:
        policy = replace(policy, key_type=decision.key_type)
    roles = decision.cluster.options.credential_roles
    try:
        grant = policy.decide(decision.caller, decision.cluster, decision.request, decision.at)
        outcome = granted_outcome(grant, roles)
    except ClustercertError as refused:
        return refused_outcome(refused.message, refused.trace)
    if grant.username == decision.taken:
        return refused_outcome(f"The user name {grant.username} belongs to another user.", grant.trace)
    return outcome


def granted_outcome(grant: Grant, roles: Mapping[str, str] | None) -> Outcome:
    """Return the outcome of a grant in a cluster with these `credential_roles`. Raises Forbidden."""
    if roles:
        grant = bound_grant(grant, roles)
    groups = [cluster_role_group(roles.get(grant.rule or ""))] if roles else grant.groups
    return Outcome(grant.not_after, grant.username, frozenset(groups), grant.rules)


def changes(before: Outcome, after: Outcome) -> Iterator[Change]:
    """Yield how an outcome differs from the one before."""
    if before.not_after is None or after.not_after is None:
        if before.is_allowed != after.is_allowed:
            yield Change.DENIED if before.is_allowed else Change.ALLOWED
        return
    if before.not_after != after.not_after:
        yield Change.SHORTER if after.not_after < before.not_after else Change.LONGER
    if before.groups != after.groups:
        yield Change.GROUPS
    if before.username != after.username:
        yield Change.USERNAME
