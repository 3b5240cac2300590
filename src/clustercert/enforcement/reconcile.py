"""One process of all keeps the clusters up to date: at once where something was revoked, and all of them now and then.

A cluster whose API server does not answer is tried again, ever less often, and holds up none of the others.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import structlog

from clustercert import metrics
from clustercert.background import pause
from clustercert.errors import ClustercertError, Unavailable
from clustercert.kubeapi import Refused
from clustercert.model import Cluster
from clustercert.store.enforcement import Touched
from clustercert.store.leader import Leader

logger = structlog.get_logger()

INTERVAL = 0.25
SWEEP_SECONDS = 60.0
# A leader that dies is missed for as long, at most.
LEASE_SECONDS = 15
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
MAX_AT_ONCE = 16
# So that those which fail, slowly, leave room for what was revoked just now.
MAX_RETRIED_AT_ONCE = 8
_PAGE = 200


class Feed(Protocol):
    """The store's revocations; `store.enforcement` fills it."""

    async def newest(self) -> int: ...

    async def touched(self, since: int, now: datetime) -> Touched: ...


class Guarded(Protocol):
    """The store's clusters."""

    async def guarded(self, after: str, limit: int) -> tuple[Cluster, ...]: ...

    async def some(self, ids: frozenset[str]) -> tuple[Cluster, ...]: ...


@dataclass(frozen=True, slots=True)
class _Due:
    """A cluster that has to be brought up to date.

    Attributes:
        since: when that was seen first, of the clock.
        at: not before.
        failures: in a row, so far.
    """

    since: float
    at: float
    failures: int = 0

    def again(self, now: float) -> "_Due":
        wait = min(FIRST_RETRY_SECONDS * 2 ** min(self.failures, 16), LONGEST_RETRY_SECONDS)
        return _Due(self.since, now + wait, self.failures + 1)


@dataclass(slots=True)
class Reconciler:
    """Runs in every process, and works in the one that leads.

    Attributes:
        sync: brings one cluster up to date.
        generation: the number that rises with every revocation, as this process knows it; without asking anybody.
        now: the time, aware, UTC.
        clock: seconds that only go forward.
        patience: how many seconds the end waits for API servers that don't answer.
    """

    feed: Feed
    clusters: Guarded
    leader: Leader
    sync: Callable[[Cluster], Awaitable[None]]
    generation: Callable[[], int]
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    patience: float = 3.0
    _due: dict[str, _Due] = field(default_factory=dict)
    _running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _retried: set[str] = field(default_factory=set)
    _touched_again: set[str] = field(default_factory=set)
    _seen: int = -1
    _looked_at: int = -1
    _swept_at: float = float("-inf")

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop; what is under way then is finished, unless an API server holds it up."""
        leads, asked_at = False, float("-inf")
        while not stop.is_set():
            try:
                if self.clock() - asked_at >= LEASE_SECONDS / 3:
                    asked_at = self.clock()
                    leads = await self._leads(leads)
                if leads:
                    await self.look()
            except Unavailable as failure:
                logger.warning("clusters are not kept up to date now", cause=repr(failure.__cause__))
            except Exception:
                # Nobody would notice its end until the process ends.
                logger.exception("clusters are not kept up to date now, for a reason that nobody thought of")
            await pause(stop, INTERVAL)
        await self._end()
        with contextlib.suppress(Unavailable):
            await self.leader.resign()

    async def look(self) -> None:
        """See what is due, and begin with it. Raises Unavailable."""
        generation = self.generation()
        if self.clock() - self._swept_at >= SWEEP_SECONDS:
            await self._sweep()
        elif generation != self._looked_at:
            touched = await self.feed.touched(self._seen, self.now())
            if touched.cluster_ids is None:
                await self._sweep()
            else:
                for cluster_id in touched.cluster_ids:
                    self._mark(cluster_id, urgent=True)
                self._seen = touched.newest
        # Only after what it brought was seen.
        self._looked_at = generation
        await self._begin()

    async def idle(self) -> None:
        """Return when nothing is under way."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def _end(self) -> None:
        if not self._running:
            return
        _, pending = await asyncio.wait(self._running.values(), timeout=self.patience)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self._running.clear()

    async def _leads(self, led: bool) -> bool:
        leads = await self.leader.leads()
        if not leads:
            self._due.clear()
        elif not led:
            # Whoever led before may have left anything undone.
            self._swept_at = float("-inf")
        return leads

    async def _sweep(self) -> None:
        """Every cluster is due whose options ask for it."""
        newest = await self.feed.newest()
        after = ""
        while page := await self.clusters.guarded(after, _PAGE):
            for cluster in page:
                self._mark(cluster.id, urgent=False)
            after = page[-1].id
        self._seen, self._swept_at = newest, self.clock()

    def _mark(self, cluster_id: str, *, urgent: bool) -> None:
        now = self.clock()
        if cluster_id in self._running:
            # It may have read the store before this came.
            self._touched_again.add(cluster_id)
        elif cluster_id not in self._due:
            self._due[cluster_id] = _Due(since=now, at=now)
        elif urgent:
            self._due[cluster_id] = replace(self._due[cluster_id], at=now)

    async def _begin(self) -> None:
        """Start with what is due, first with what hasn't failed, as far as there is room."""
        chosen = self._chosen()
        if not chosen:
            return
        for cluster in await self.clusters.some(chosen):
            due = self._due.pop(cluster.id)
            if cluster.options.admission or cluster.options.credential_roles is not None:
                if due.failures:
                    self._retried.add(cluster.id)
                self._running[cluster.id] = asyncio.create_task(self._bring_up_to_date(cluster, due))
        for gone in chosen & self._due.keys():
            del self._due[gone]

    def _chosen(self) -> frozenset[str]:
        now = self.clock()
        ready = sorted(
            (due.failures, due.since, cluster_id) for cluster_id, due in self._due.items() if due.at <= now
        )
        first = [cluster_id for failures, _, cluster_id in ready if not failures]
        again = [cluster_id for failures, _, cluster_id in ready if failures]
        room = max(MAX_RETRIED_AT_ONCE - len(self._retried), 0)
        return frozenset([*first, *again[:room]][: MAX_AT_ONCE - len(self._running)])

    async def _bring_up_to_date(self, cluster: Cluster, due: _Due) -> None:
        """Do it, and say when it has to be done again. Raises nothing: nobody waits for it."""
        again: _Due | None = None
        try:
            await self.sync(cluster)
            metrics.ENFORCEMENT_SECONDS.observe(self.clock() - due.since)
        except ClustercertError as failure:
            again = due.again(self.clock())
            _log(cluster, due, failure)
        except Exception:
            again = due.again(self.clock())
            logger.exception(
                "a cluster is not up to date, for a reason that nobody thought of", cluster=cluster.id
            )
        del self._running[cluster.id]
        self._retried.discard(cluster.id)
        if cluster.id in self._touched_again:
            self._touched_again.discard(cluster.id)
            again = again or _Due(since=self.clock(), at=self.clock())
        if again is not None:
            self._due[cluster.id] = again
        metrics.ENFORCEMENT_FAILING.set(sum(due.failures > 0 for due in self._due.values()))


def _log(cluster: Cluster, due: _Due, failure: ClustercertError) -> None:
    cause = failure.said if isinstance(failure, Refused) else repr(failure.__cause__)
    logger.warning(
        "a cluster's API server is not up to date: what is revoked may still work there",
        cluster=cluster.id,
        failures=due.failures + 1,
        error=failure.message,
        cause=cause,
    )
