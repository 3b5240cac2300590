"""Compares live certificates with a policy, which decides again about the request for each certificate."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from clustercert.policy.decision import Policy
from clustercert.policy.replay import RecordedDecision, ReplayOutcome, replay_event

NO_EVENT = "the audit event was deleted, or is not sealed yet"


class LiveChange(StrEnum):
    """Ways in which another policy grants less than an issued certificate contains."""

    REFUSED = "refused"
    SHORTER = "shorter"
    FEWER_GROUPS = "fewer_groups"


def live_changes(issued: ReplayOutcome, outcome: ReplayOutcome) -> Iterator[LiveChange]:
    """Compare the recorded outcome of a request with the outcome under another policy."""
    if issued.not_after is None or outcome.not_after is None:
        yield LiveChange.REFUSED
        return
    if outcome.not_after < issued.not_after:
        yield LiveChange.SHORTER
    if issued.groups - outcome.groups:
        yield LiveChange.FEWER_GROUPS


@dataclass(frozen=True, slots=True)
class AffectedCertificate:
    """A live certificate that the policy would not issue in the same way.

    Attributes:
        fingerprint: lower-case hex.
        decision: the recorded decision to issue the certificate.
        outcome: what the policy decides about the same request.
    """

    fingerprint: str
    decision: RecordedDecision
    outcome: ReplayOutcome
    changes: tuple[LiveChange, ...]


@dataclass(slots=True)
class LiveComparison:
    """The comparison of live certificates with a policy.

    Attributes:
        not_replayable: number of certificates that can't be compared, by reason.
    """

    policy: Policy
    affected: list[AffectedCertificate] = field(default_factory=list)
    not_replayable: Counter[str] = field(default_factory=Counter)

    def add(self, event: Mapping[str, Any]) -> None:
        """Compare a certificate. `event` is the JSON body of the event in which the certificate was issued."""
        replayed = replay_event(self.policy, event, self.not_replayable)
        if replayed is None:
            return
        decision, outcome = replayed
        if changes := tuple(live_changes(decision.outcome, outcome)):
            self.affected.append(AffectedCertificate(event["subject"], decision, outcome, changes))

    def count(self, change: LiveChange) -> int:
        return sum(change in each.changes for each in self.affected)
