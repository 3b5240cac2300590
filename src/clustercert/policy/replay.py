"""Replays recorded decisions with another policy."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from clustercert.model import (
    Caller,
    ClientCA,
    Cluster,
    ClusterOptions,
    Domain,
    Grant,
    Group,
    IssueRequest,
    Origin,
    PrivateKey,
    User,
    parse_rfc3339,
    without_credential_group,
)
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.errors import ClustercertError
from clustercert.model.identity import ProjectName, domain_by_issuer
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key, sample_key
from clustercert.policy.cluster_grant import cluster_grant
from clustercert.policy.decision import Policy

ISSUED, REFUSED, REPEATED = "certificate.issued", "certificate.refused", "refusals.repeated"
# The policy allowed the request, but the signer did not sign.
FAILED = "certificate.failed"
MALFORMED = "the event is malformed"


class NotReplayable(Exception):
    """A recorded decision can't be computed again. The message is the reason.

    `Replay` counts how often each reason occurs.
    """


@dataclass(frozen=True, slots=True)
class DecisionFilter:
    """Selects events. A field that is `None` does not filter.

    Attributes:
        since, until: bounds of the event's time, both inclusive.
        cluster: the cluster's id, or the cluster's name at the time of the event. Events of kind `REPEATED` contain no
            cluster, so they are always selected.
    """

    since: datetime | None = None
    until: datetime | None = None
    project_id: str | None = None
    cluster: str | None = None

    def includes(self, event: Mapping[str, Any]) -> bool:
        """Whether the filter selects an event (a JSON body). Malformed events are selected only by an empty filter."""
        try:
            at = _time(event["at"])
            any_cluster = self.cluster is None or event["kind"] == REPEATED
            cluster = {} if any_cluster else event["detail"].get("cluster") or {}
            return (
                (self.since is None or self.since <= at)
                and (self.until is None or at <= self.until)
                and self.project_id in (None, event["project_id"])
                and (any_cluster or self.cluster in (cluster.get("id"), cluster.get("name")))
            )
        except (LookupError, TypeError, ValueError, AttributeError):
            return self == DecisionFilter()


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """The outcome of a decision.

    Attributes:
        not_after: the end of the certificate's validity; None if the request was refused.
        username: the certificate's common name (CN); empty if the request was refused.
        groups: the certificate's groups without its credential group. In a cluster with per-credential RBAC, this field
            contains the name of the ClusterRole instead.
        rules: the rules that granted the request, or the rule that denied it.
        message: why the request was refused.
    """

    not_after: datetime | None = None
    username: str = ""
    groups: frozenset[str] = frozenset()
    rules: tuple[str, ...] = ()
    message: str = ""

    @property
    def is_allowed(self) -> bool:
        return self.not_after is not None


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A decision from an audit event.

    Attributes:
        key_type: the type of the CSR's key, or of the key that the service generated or would have generated.
        taken: the user name chosen by the policy, if the request was refused because the name belongs to another user.
        access: the access of the caller's access request, as it was at the time of the decision, or None.
    """

    caller: Caller
    cluster: Cluster
    request: IssueRequest
    at: datetime
    key_type: str
    outcome: ReplayOutcome
    taken: str | None = None
    access: RequestedAccess | None = None


def parse_decision(event: Mapping[str, Any]) -> RecordedDecision:
    """Read a decision from the body of an event of kind `ISSUED` or `REFUSED`. Raises NotReplayable."""
    try:
        return _decision(event, event["detail"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise NotReplayable(MALFORMED) from error


def count_repeated(event: Mapping[str, Any]) -> int:
    """Return the number of refused certificates in an event of kind `REPEATED`; 0 if the event is malformed."""
    try:
        return sum(int(each["count"]) for each in event["detail"]["refusals"] if each["kind"] == REFUSED)
    except (LookupError, TypeError, ValueError):
        return 0


def cluster_role_group(name: str | None) -> str:
    """Return the string that represents a ClusterRole in `ReplayOutcome.groups`."""
    return f"ClusterRole {name}"


def _decision(event: Mapping[str, Any], detail: Mapping[str, Any]) -> RecordedDecision:
    is_issued, trace = event["kind"] == ISSUED, detail["trace"]
    if "decided_at" not in trace:
        raise NotReplayable(
            "the service issued the certificate for itself"
            if is_issued
            else f"the request was refused, but not by the policy ({_text(detail['error'])[:64]})"
        )
    if detail["cluster"] is None or detail["request"] is None:
        raise NotReplayable("the cluster was removed during the request")
    project_id = _text(event["project_id"] if is_issued else detail["requested_project_id"])
    key_type = _text(trace["key_type"])
    taken = trace.get("username_taken")
    return RecordedDecision(
        caller=_caller(event, detail["caller"], project_id),
        cluster=_cluster(detail["cluster"], project_id),
        request=_request(detail["request"], key_type),
        at=_time(trace["decided_at"]),
        key_type=key_type,
        outcome=_issued(detail, trace) if is_issued else refused_outcome(_text(detail["message"]), trace),
        taken=None if taken is None else _text(taken),
        access=_access(detail.get("access_request")),
    )


def _issued(detail: Mapping[str, Any], trace: Mapping[str, Any]) -> ReplayOutcome:
    number, roles = detail["credential_number"], detail["cluster"]["credential_roles"]
    groups = without_credential_group(_texts(detail["organizations"]), number)
    bound = (cluster_role_group(roles.get(detail["rule"])),) if roles else ()
    return ReplayOutcome(
        not_after=_time(detail["not_after"]),
        username=_text(detail["common_name"]),
        groups=frozenset(groups or bound),
        rules=_texts(trace["rules"]),
    )


def refused_outcome(message: str, trace: Mapping[str, Any]) -> ReplayOutcome:
    """Return the outcome of a request that was refused with this error message and decision trace."""
    denied_by = trace.get("denied_by")
    return ReplayOutcome(
        message=message, rules=_texts(trace.get("rules", ()) if denied_by is None else [denied_by])
    )


def _caller(event: Mapping[str, Any], recorded: Mapping[str, Any], project_id: str) -> Caller:
    issuer = _text(recorded["issuer"])
    return Caller(
        user=User(_text(event["actor"]), _text(recorded["name"]), _domain(recorded, issuer)),
        roles={project_id: _texts(recorded["roles"])},
        method=_text(recorded["auth_method"]),
        origin=Origin(_text(event["source"]), _text(event["request_id"])),
        service_roles=_texts(recorded["service_roles"]),
        credential_id=_text(recorded["credential_id"]),
        groups=tuple(
            Group(_text(group["id"]), _text(group["name"]), _domain(group, issuer))
            for group in recorded["groups"]
        ),
        issuer=issuer,
    )


def _domain(recorded: Mapping[str, Any], issuer: str) -> Domain:
    return domain_by_issuer(issuer, _text(recorded["domain_id"]), _text(recorded["domain_name"]))


def _request(recorded: Mapping[str, Any], key_type: str) -> IssueRequest:
    duration, reason = recorded["duration"], recorded["reason"]
    expire_at, expires_in = recorded["expire_at"], recorded["expires_in"]
    return IssueRequest(
        duration=None if duration is None else int(duration),
        expire_at=None if expire_at is None else _time(expire_at),
        expires_in=None if expires_in is None else timedelta(seconds=int(expires_in)),
        shorten=recorded["shorten"] is True,
        public_key=sample_key(key_type) if recorded["csr"] is True else None,
        reason=None if reason is None else _text(reason),
    )


def _access(recorded: Mapping[str, Any] | None) -> RequestedAccess | None:
    if recorded is None:
        return None
    return RequestedAccess(
        request_id=_text(recorded["id"]),
        rule=_text(recorded["rule"]),
        groups=_texts(recorded["groups"]),
        until=_time(recorded["until"]),
        is_approved=recorded["is_approved"] is True,
        met=tuple(frozenset(_texts(clauses)) for clauses in recorded["met"]),
    )


def _cluster(recorded: Mapping[str, Any], project_id: str) -> Cluster:
    """Return the recorded cluster. Fields that the policy does not read are empty."""
    roles, ca_id, cluster_id = recorded["credential_roles"], _text(recorded["ca_id"]), _text(recorded["id"])
    if (ca_end := recorded["ca_not_after"]) is None:
        ca = ClientCA(id=ca_id, cluster_id=cluster_id, certificate=None, sealed_key=None)
    else:
        ca = _sample_ca(ca_id, cluster_id, _time(ca_end))
    return Cluster(
        id=cluster_id,
        project_id=project_id,
        name=_text(recorded["name"]),
        internal_url="",
        server_ca_pem=b"",
        signer=_text(recorded["signer"]),
        labels=_text_mapping(recorded["labels"]),
        created_at=ca.not_after,
        updated_at=ca.not_after,
        client_ca=ca,
        options=ClusterOptions(
            credential_roles=None if roles is None else _text_mapping(roles),
            group_roles={
                _text(group): _texts(texts) for group, texts in recorded.get("group_roles", {}).items()
            },
        ),
        project_name=_project(recorded["project"]),
    )


def _project(recorded: Mapping[str, Any] | None) -> ProjectName | None:
    if recorded is None:
        return None
    domain = Domain(_text(recorded["domain_id"]), _text(recorded["domain_name"]))
    return ProjectName(_text(recorded["name"]), domain, recorded["is_unique"] is True)


@functools.lru_cache(maxsize=4096)
def _sample_ca(ca_id: str, cluster_id: str, not_after: datetime) -> ClientCA:
    """Return a sample CA that expires at the same time as the recorded CA."""
    lifetime = timedelta(days=1)
    certificate = new_client_ca("recorded", _sample_ca_key(), not_after - lifetime, lifetime)
    return ClientCA(id=ca_id, cluster_id=cluster_id, certificate=certificate, sealed_key=None)


@functools.cache
def _sample_ca_key() -> PrivateKey:
    return new_key("ec-p256")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(_text, values))


def _text_mapping(values: Mapping[object, object]) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in values.items()}


def _time(value: object) -> datetime:
    return parse_rfc3339(_text(value))


ONLY_COUNTED = (
    "the caller had many refusals, so the event contains only the number of refusals, not the clusters"
)
NOT_SIGNED = "the policy allowed the request, but the signer did not sign"
# The maximum number of example decisions for each kind of change.
MAX_EXAMPLES = 5


class OutcomeChange(StrEnum):
    """How the outcome under the other policy differs from the recorded outcome."""

    DENIED = "allow_to_deny"
    ALLOWED = "deny_to_allow"
    SHORTER = "shorter"
    LONGER = "longer"
    GROUPS = "other_groups"
    USERNAME = "other_username"


@dataclass(frozen=True, slots=True)
class Example:
    """A recorded decision, and its different outcome under the other policy."""

    decision: RecordedDecision
    outcome: ReplayOutcome


@dataclass(slots=True)
class Tally:
    """Statistics of the decisions with one kind of change.

    Attributes:
        users: number of decisions by user id and qualified name.
        clusters: number of decisions by cluster id and name.
        recorded_rules, rules: number of decisions by rule, for the recorded outcome and for the other policy.
        examples: the first few of these decisions.
    """

    decisions: int = 0
    users: Counter[tuple[str, str]] = field(default_factory=Counter)
    clusters: Counter[tuple[str, str]] = field(default_factory=Counter)
    recorded_rules: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    def add(self, decision: RecordedDecision, outcome: ReplayOutcome) -> None:
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
        not_replayable: number of decisions that could not be computed again, by reason.
    """

    policy: Policy
    decisions: int = 0
    unchanged: int = 0
    changes: dict[OutcomeChange, Tally] = field(
        default_factory=lambda: {change: Tally() for change in OutcomeChange}
    )
    not_replayable: Counter[str] = field(default_factory=Counter)

    def add(self, event: Mapping[str, Any]) -> None:
        """Replay and compare the decision in an event (a JSON body). Ignores events that are not decisions."""
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
        replayed = replay_event(self.policy, event, self.not_replayable)
        if replayed is None:
            return
        decision, outcome = replayed
        self.decisions += 1
        changed = False
        for change in changes(decision.outcome, outcome):
            self.changes[change].add(decision, outcome)
            changed = True
        self.unchanged += not changed


def replay_event(
    policy: Policy, event: Mapping[str, Any], not_replayable: Counter[str]
) -> tuple[RecordedDecision, ReplayOutcome] | None:
    """Return the decision in an event of kind `ISSUED` or `REFUSED`, and what the policy decides about the request.

    If the decision can't be computed again, returns None and counts the reason in `not_replayable`.
    """
    try:
        decision = parse_decision(event)
        return decision, decide_again(policy, decision)
    except NotReplayable as reason:
        not_replayable[str(reason)] += 1
    except (OverflowError, ValueError):
        # The recorded times or the lifetime are out of range.
        not_replayable[MALFORMED] += 1
    return None


def decide_again(policy: Policy, decision: RecordedDecision) -> ReplayOutcome:
    """Return what the policy decides about a recorded request, at the recorded time."""
    if policy.key_type != decision.key_type:
        policy = replace(policy, key_type=decision.key_type)
    try:
        grant = policy.decide(
            decision.caller, decision.cluster, decision.request, decision.at, decision.access
        )
        outcome = granted_outcome(grant, decision.cluster)
    except ClustercertError as refused:
        return refused_outcome(refused.message, refused.trace)
    if grant.username == decision.taken:
        return refused_outcome(f"The user name {grant.username} belongs to another user.", grant.trace)
    return outcome


def granted_outcome(grant: Grant, cluster: Cluster) -> ReplayOutcome:
    """Return what a grant gives in a cluster: end, user name, groups and rules. Raises Forbidden."""
    roles, grant = cluster.options.credential_roles, cluster_grant(grant, cluster)
    groups = [cluster_role_group(roles.get(grant.rule or ""))] if roles else grant.groups
    return ReplayOutcome(grant.not_after, grant.username, frozenset(groups), grant.rules)


def changes(before: ReplayOutcome, after: ReplayOutcome) -> Iterator[OutcomeChange]:
    """Yield the differences between two outcomes of the same request."""
    if before.not_after is None or after.not_after is None:
        if before.is_allowed != after.is_allowed:
            yield OutcomeChange.DENIED if before.is_allowed else OutcomeChange.ALLOWED
        return
    if before.not_after != after.not_after:
        yield OutcomeChange.SHORTER if after.not_after < before.not_after else OutcomeChange.LONGER
    if before.groups != after.groups:
        yield OutcomeChange.GROUPS
    if before.username != after.username:
        yield OutcomeChange.USERNAME
