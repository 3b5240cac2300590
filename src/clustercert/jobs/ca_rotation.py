"""Starts the steps of the rotations of client CAs, so that one cluster never delays the others."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import structlog

from clustercert.jobs.leader_job import PeriodicWork, every
from clustercert.model.errors import Unavailable
from clustercert.store.clusters.ca_rotations import RunningRotation

logger = structlog.get_logger()

INTERVAL = 1.0
MAX_AT_ONCE = 64
# The limit for rotations with a problem is lower, so that silent API servers leave capacity for the others.
MAX_WITH_PROBLEMS = 32
RETRY_SECONDS = 10.0
KEY_DELETION_SECONDS = 60.0


class RunningRotations(Protocol):
    """The running rotations in the store; implemented by `store.ca_rotations`."""

    async def running(self) -> tuple[RunningRotation, ...]: ...


@dataclass(slots=True)
class RotationScheduler:
    """Starts the steps that are due. Runs only in the elected leader.

    Attributes:
        advance: makes a step of one cluster's rotation, and returns the time until the next one.
        clock: returns monotonic seconds.
    """

    rotations: RunningRotations
    advance: Callable[[str], Awaitable[timedelta]]
    clock: Callable[[], float] = time.monotonic
    _due: dict[str, float] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)
    _running: dict[str, tuple[RunningRotation, asyncio.Task[None]]] = field(default_factory=dict)

    async def step(self) -> float:
        """Start the steps that are due. Returns the seconds until the next call. Raises Unavailable."""
        found = await self.rotations.running()
        for rotation in self._chosen(found):
            task = asyncio.create_task(self._advance(rotation))
            self._running[rotation.cluster_id] = rotation, task
        known = {each.cluster_id for each in found}
        for cluster_id in self._due.keys() - known:
            del self._due[cluster_id]
        self._versions = {each.cluster_id: each.version for each in found}
        return INTERVAL

    async def finish(self) -> None:
        """Cancel the running steps. A later step repeats them."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()
        self._due.clear()

    def _chosen(self, found: Sequence[RunningRotation]) -> list[RunningRotation]:
        """Choose as many due rotations as can be advanced now. Rotations without problems come first."""
        now = self.clock()
        for each in found:
            # The rotation has changed, so the next step may succeed. The pause bounds the rate of steps that change it.
            if self._versions.get(each.cluster_id, each.version) != each.version:
                self._due[each.cluster_id] = min(self._due.get(each.cluster_id, now), now + INTERVAL)
        due = [
            each
            for each in found
            if each.cluster_id not in self._running and self._due.setdefault(each.cluster_id, now) <= now
        ]
        # A rotation at whose steps the process dies must not come first after each start.
        random.shuffle(due)
        due.sort(key=lambda each: self._due[each.cluster_id])
        first = [each for each in due if not each.has_problem]
        again = [each for each in due if each.has_problem]
        retried = sum(rotation.has_problem for rotation, _ in self._running.values())
        room = max(MAX_WITH_PROBLEMS - retried, 0)
        return [*first, *again[:room]][: MAX_AT_ONCE - len(self._running)]

    async def _advance(self, rotation: RunningRotation) -> None:
        cluster_id = rotation.cluster_id
        wait = RETRY_SECONDS
        try:
            wait = (await self.advance(cluster_id)).total_seconds()
        except Unavailable as failure:
            logger.warning("client CA rotation failed", cluster=cluster_id, error=failure.message)
        except Exception:
            logger.exception("client CA rotation failed", cluster=cluster_id)
        finally:
            del self._running[cluster_id]
        self._due[cluster_id] = self.clock() + wait


def ca_rotation(scheduler: RotationScheduler) -> PeriodicWork:
    """Create the periodic task that advances rotations."""
    return PeriodicWork("rotate client CAs", scheduler.step, retry_seconds=INTERVAL, finish=scheduler.finish)


def key_deletion(delete_keys: Callable[[], Awaitable[object]]) -> PeriodicWork:
    """Create the periodic task that deletes the keys of discarded CAs."""
    return every(KEY_DELETION_SECONDS, "delete keys of discarded client CAs", delete_keys)
