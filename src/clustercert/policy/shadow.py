"""Counts and logs the decisions that a shadow policy would make differently. A shadow policy decides nothing itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from cachetools import TTLCache

from clustercert.model import Caller, Cluster, Grant, IssueRequest
from clustercert.model.errors import ClustercertError
from clustercert.observability import metrics
from clustercert.policy.decision import Policy
from clustercert.policy.recorded_decisions import Outcome, refused_outcome
from clustercert.policy.replay import Change, changes, granted_outcome

logger = structlog.get_logger()

# The share of a worker's time that the shadow policy may take. It may take it for at most this long at once.
SHARE, SAVED_SECONDS = 0.05, 0.5
# After this many decisions in a row that took more CPU time, the shadow policy is switched off: it delays requests.
SLOW_DECISIONS, SLOW_SECONDS = 2, 0.05
# The same difference of a user in a cluster is logged once in this time.
QUIET_SECONDS = 3600
MAX_REMEMBERED = 10_000
MINUTE_SECONDS, LINES_PER_MINUTE = 60, 10
MAX_NAMED = 20

for _change in Change:
    metrics.SHADOW_DIFFERENCES.labels(_change)


class Shadow:
    """Compares decisions with those of a shadow policy, as far as its share of the time allows."""

    def __init__(
        self,
        policy: Policy,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._policy = policy
        self._clock, self._cpu_clock = clock, cpu_clock
        self._slow = 0
        self._saved, self._saved_at = SAVED_SECONDS, clock()
        self._logged: TTLCache[object, bool] = TTLCache(MAX_REMEMBERED, QUIET_SECONDS, clock)
        self._minute, self._lines, self._suppressed = clock(), 0, 0

    def compare(
        self,
        caller: Caller,
        cluster: Cluster,
        request: IssueRequest,
        now: datetime,
        decided: Grant | ClustercertError,
    ) -> None:
        """Count and log how the shadow policy differs from a decision. Never raises an error."""
        if self._slow >= SLOW_DECISIONS:
            metrics.SHADOW_DECISIONS.labels("off").inc()
            return
        started, cpu_started = self._clock(), self._cpu_clock()
        self._saved = min(self._saved + SHARE * (started - self._saved_at), SAVED_SECONDS)
        self._saved_at = started
        if self._saved <= 0:
            metrics.SHADOW_DECISIONS.labels("skipped").inc()
            return
        try:
            self._compare(caller, cluster, request, now, decided)
        except Exception:
            metrics.SHADOW_DECISIONS.labels("failed").inc()
            if self._may_log("failed"):
                logger.exception("shadow policy failed")
        self._saved -= self._clock() - started
        self._note_cpu_time(self._cpu_clock() - cpu_started)

    def _note_cpu_time(self, seconds: float) -> None:
        # A single slow decision may be due to a pause, such as for garbage collection.
        self._slow = self._slow + 1 if seconds > SLOW_SECONDS else 0
        if self._slow == SLOW_DECISIONS:
            logger.error(
                "shadow policy is off", error="its decisions take too long", seconds=round(seconds, 3)
            )

    def _compare(
        self,
        caller: Caller,
        cluster: Cluster,
        request: IssueRequest,
        now: datetime,
        decided: Grant | ClustercertError,
    ) -> None:
        outcome = _outcome(decided, cluster)
        try:
            other = _outcome(self._policy.decide(caller, cluster, request, now), cluster)
        except ClustercertError as refused:
            other = _outcome(refused, cluster)
        kinds = tuple(changes(outcome, other))
        metrics.SHADOW_DECISIONS.labels("different" if kinds else "same").inc()
        for kind in kinds:
            metrics.SHADOW_DIFFERENCES.labels(kind).inc()
        if kinds and self._may_log((caller.user.id, cluster.id, kinds)):
            _log(kinds, caller, cluster, outcome, other, self._suppressed)
            self._suppressed = 0

    def _may_log(self, difference: object) -> bool:
        if difference in self._logged:
            return False
        if self._clock() - self._minute >= MINUTE_SECONDS:
            self._minute, self._lines = self._clock(), 0
        if self._lines >= LINES_PER_MINUTE:
            self._suppressed += 1
            return False
        self._lines += 1
        self._logged[difference] = True
        return True


@dataclass(frozen=True, slots=True)
class ShadowedPolicy(Policy):
    """A policy whose decisions are also made by a shadow policy, for comparison."""

    shadow: Shadow = field(kw_only=True)

    def decide(self, caller: Caller, cluster: Cluster, request: IssueRequest, now: datetime) -> Grant:
        """See `Policy.decide`."""
        try:
            grant = Policy.decide(self, caller, cluster, request, now)
        except ClustercertError as refused:
            self.shadow.compare(caller, cluster, request, now, refused)
            raise
        self.shadow.compare(caller, cluster, request, now, grant)
        return grant


def with_shadow(policy: Policy, shadow: Policy) -> ShadowedPolicy:
    """Return the policy with this shadow policy."""
    return ShadowedPolicy(policy.rules, policy.allowed_system_names, policy.key_type, shadow=Shadow(shadow))


def _outcome(decided: Grant | ClustercertError, cluster: Cluster) -> Outcome:
    try:
        if isinstance(decided, ClustercertError):
            return refused_outcome(decided.message, decided.trace)
        return granted_outcome(decided, cluster.options.credential_roles)
    except ClustercertError as refused:
        return refused_outcome(refused.message, refused.trace)


def _log(
    kinds: tuple[Change, ...],
    caller: Caller,
    cluster: Cluster,
    outcome: Outcome,
    other: Outcome,
    suppressed: int,
) -> None:
    added, removed = other.groups - outcome.groups, outcome.groups - other.groups
    both_allow = outcome.is_allowed and other.is_allowed
    details = {
        "rules": outcome.rules[:MAX_NAMED],
        "shadow_rules": other.rules[:MAX_NAMED],
        "groups_added": sorted(added)[:MAX_NAMED] if both_allow else (),
        "groups_removed": sorted(removed)[:MAX_NAMED] if both_allow else (),
        "refusal": outcome.message or other.message,
        "suppressed": suppressed,
    }
    logger.info(
        "shadow policy decides otherwise",
        differences=[str(kind) for kind in kinds],
        user=caller.user.shown_name,
        cluster=cluster.name,
        project_id=cluster.project_id,
        not_after=outcome.not_after and outcome.not_after.isoformat(),
        shadow_not_after=other.not_after and other.not_after.isoformat(),
        **{name: value for name, value in details.items() if value},
    )
