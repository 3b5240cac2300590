"""Brings clusters up to date with the ledger: at once if a revocation affects them, and otherwise periodically.

A cluster that fails is retried with exponential back-off, and does not delay others.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import structlog

from clustercert.kubernetes.api_client import Refused
from clustercert.model import Cluster
from clustercert.model.errors import ClustercertError
from clustercert.observability import metrics
from clustercert.store.enforcement import AffectedClusters

logger = structlog.get_logger()

INTERVAL = 0.25
SWEEP_SECONDS = 60.0
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
MAX_AT_ONCE = 16
# The limit of retries is lower, so that slow retries of failed clusters leave capacity for new revocations.
MAX_RETRIED_AT_ONCE = 8
_PAGE = 200


class EnforcementFeed(Protocol):
    """Revocations in the store; implemented by `store.enforcement`."""

    async def newest(self) -> int: ...

    async def affected_clusters(self, since: int, now: datetime) -> AffectedClusters: ...


class EnforcedClusters(Protocol):
    """Clusters in the store; implemented by `store.clusters`."""

    async def enforced(self, after: str, limit: int) -> tuple[Cluster, ...]: ...

    async def some(self, ids: frozenset[str]) -> tuple[Cluster, ...]: ...


@dataclass(frozen=True, slots=True)
class _Due:
    """A cluster to synchronize. Times are from the reconciler's clock.

    Attributes:
        since: when the need to synchronize was first noticed.
        at: earliest time of the next attempt.
        failures: failed attempts in a row.
    """

    since: float
    at: float
    failures: int = 0

    def retry(self, now: float) -> "_Due":
        wait = min(FIRST_RETRY_SECONDS * 2 ** min(self.failures, 16), LONGEST_RETRY_SECONDS)
        return _Due(self.since, now + wait, self.failures + 1)


@dataclass(slots=True)
class Reconciler:
    """Starts the synchronization of clusters. Runs only in the elected leader.

    Attributes:
        sync: synchronizes one cluster.
        forget_others: drops what `sync` has cached about clusters other than these.
        generation: a number that rises with every revocation, read from memory.
        now: returns the current time in UTC.
        clock: returns monotonic seconds.
        patience: maximum seconds that `finish` waits for running work.
    """

    feed: EnforcementFeed
    clusters: EnforcedClusters
    sync: Callable[[Cluster], Awaitable[None]]
    forget_others: Callable[[frozenset[str]], None]
    generation: Callable[[], int]
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    patience: float = 3.0
    _due: dict[str, _Due] = field(default_factory=dict)
    _running: dict[str, tuple[_Due, asyncio.Task[None]]] = field(default_factory=dict)
    _seen: int = -1
    _generation_read: int = -1
    _swept_at: float = float("-inf")

    async def step(self) -> float:
        """Start work on the clusters that are due. Returns the seconds until the next step. Raises Unavailable."""
        generation = self.generation()
        if self.clock() - self._swept_at >= SWEEP_SECONDS:
            await self._sweep()
        elif generation != self._generation_read:
            touched = await self.feed.affected_clusters(self._seen, self.now())
            if touched.cluster_ids is None:
                await self._sweep()
            else:
                for cluster_id in touched.cluster_ids:
                    self._mark(cluster_id, urgent=True)
                self._seen = touched.newest
        # Set this only after all reads succeeded, so that the next step repeats a failed read.
        self._generation_read = generation
        await self._start_due()
        return INTERVAL

    async def finish(self) -> None:
        """Wait for the running work, cancel it after `patience` seconds, and clear the state for the next start."""
        if self._running:
            tasks = [task for _, task in self._running.values()]
            _, pending = await asyncio.wait(tasks, timeout=self.patience)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        self._running.clear()
        self._due.clear()
        self._swept_at = float("-inf")
        self._count_failing()
        self.forget_others(frozenset())

    async def _sweep(self) -> None:
        """Mark every cluster with enforcement options as due."""
        newest = await self.feed.newest()
        enforced: set[str] = set()
        after = ""
        while page := await self.clusters.enforced(after, _PAGE):
            for cluster in page:
                self._mark(cluster.id, urgent=False)
                enforced.add(cluster.id)
            after = page[-1].id
        self.forget_others(frozenset(enforced))
        self._seen, self._swept_at = newest, self.clock()

    def _mark(self, cluster_id: str, *, urgent: bool) -> None:
        now = self.clock()
        # Do so even while the cluster is being synchronized, because that may have read the store before this change.
        if cluster_id not in self._due:
            self._due[cluster_id] = _Due(since=now, at=now)
        elif urgent:
            self._due[cluster_id] = replace(self._due[cluster_id], at=now)

    async def _start_due(self) -> None:
        chosen = self._chosen()
        if not chosen:
            return
        for cluster in await self.clusters.some(chosen):
            due = self._due.pop(cluster.id)
            if cluster.options.admission or cluster.options.credential_roles is not None:
                task = asyncio.create_task(self._bring_up_to_date(cluster, due))
                self._running[cluster.id] = due, task
        for removed in chosen & self._due.keys():
            del self._due[removed]
        self._count_failing()

    def _chosen(self) -> frozenset[str]:
        """Choose due clusters up to the free capacity, first those without failures."""
        now = self.clock()
        ready = sorted(
            (due.failures, due.since, cluster_id)
            for cluster_id, due in self._due.items()
            if due.at <= now and cluster_id not in self._running
        )
        first = [cluster_id for failures, _, cluster_id in ready if not failures]
        again = [cluster_id for failures, _, cluster_id in ready if failures]
        retried = sum(due.failures > 0 for due, _ in self._running.values())
        room = max(MAX_RETRIED_AT_ONCE - retried, 0)
        return frozenset([*first, *again[:room]][: MAX_AT_ONCE - len(self._running)])

    async def _bring_up_to_date(self, cluster: Cluster, due: _Due) -> None:
        """Synchronize one cluster. After a failure, log the error and mark the cluster as due again."""
        try:
            await self.sync(cluster)
            metrics.ENFORCEMENT_SECONDS.observe(self.clock() - due.since)
        except Exception as failure:  # noqa: BLE001 - nothing awaits this task's result
            self._due[cluster.id] = again = due.retry(self.clock())
            _log(cluster, again, failure)
        del self._running[cluster.id]
        self._count_failing()

    def _count_failing(self) -> None:
        failing = {cluster_id for cluster_id, due in self._due.items() if due.failures}
        # Clusters that are being retried count as failing.
        failing |= {cluster_id for cluster_id, (due, _) in self._running.items() if due.failures}
        metrics.ENFORCEMENT_FAILING.set(len(failing))


def _log(cluster: Cluster, due: _Due, failure: Exception) -> None:
    """Log that revoked certificates may still work in a cluster."""
    event, fields = "cluster enforcement failed", {"cluster": cluster.id, "failures": due.failures}
    if isinstance(failure, ClustercertError):
        cause = failure.said if isinstance(failure, Refused) else repr(failure.__cause__)
        logger.warning(event, error=failure.message, cause=cause, **fields)
    else:
        logger.error(event, exc_info=failure, **fields)
