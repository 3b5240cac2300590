"""What a worker does beside answering, for as long as it serves."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine

import structlog

from clustercert import metrics
from clustercert.audit.sealer import MAX_BATCH, LogSealer
from clustercert.background import pause
from clustercert.errors import ClustercertError, LogDamaged, Unavailable
from clustercert.identity import Identity
from clustercert.store.database import Database
from clustercert.store.leader import Leader

logger = structlog.get_logger()

PRUNE_SECONDS = 3600
# Between two batches of events that are sealed, at most and at least.
SEAL_SECONDS = 1.0
SHORTEST_SEAL_SECONDS = 0.005
THIN_SECONDS = 3600
# How long nothing is sealed, at most, after a process that did it was killed.
SEALING_LEASE_SECONDS = 10


def pruning(
    database: Database, identity: Identity
) -> Callable[[asyncio.Event], Coroutine[object, object, None]]:
    """Drop expired tokens and temporary keys now and then, in one process of all that share the database."""
    leader = Leader(database, "prune")

    async def prune(stop: asyncio.Event) -> None:
        pruned_at = float("-inf")
        while not stop.is_set():
            try:
                if await leader.leads() and time.monotonic() - pruned_at >= PRUNE_SECONDS:
                    await identity.prune()
                    pruned_at = time.monotonic()
            except Unavailable as failure:
                logger.warning("expired tokens were not dropped", cause=repr(failure.__cause__))
            # Early enough to keep the lease.
            await pause(stop, leader.seconds / 3)
        with contextlib.suppress(Unavailable):
            await leader.resign()

    return prune


def until_next_seal(seconds: float, sealed: int) -> float:
    """How long to pause before the next batch, given the pause before the last one and how many events it had.

    So that batches are spread over the time, and not much smaller than they may be, for each has a cost of its own: to
    seal all of a second at once is to have whoever writes then wait for all of it.
    """
    if sealed == MAX_BATCH:
        return max(SHORTEST_SEAL_SECONDS, seconds / 4)
    return min(SEAL_SECONDS, seconds * 1.25) if sealed < MAX_BATCH / 2 else seconds


def sealing(
    database: Database, sealer: LogSealer
) -> Callable[[asyncio.Event], Coroutine[object, object, None]]:
    """Give every event its place in the audit log within a second or two, in one process of all.

    Two that do it at once do no harm; the lease keeps the others from asking the database for nothing.
    """
    leader = Leader(database, "seal", SEALING_LEASE_SECONDS)

    async def seal(stop: asyncio.Event) -> None:
        leads, asked_at, thinned_at, seconds = False, float("-inf"), float("-inf"), SEAL_SECONDS
        while not stop.is_set():
            try:
                if time.monotonic() - asked_at >= leader.seconds / 3:
                    asked_at = time.monotonic()
                    leads = await leader.leads()
                seconds = until_next_seal(seconds, await sealer.seal()) if leads else SEAL_SECONDS
                if leads and time.monotonic() - thinned_at >= THIN_SECONDS:
                    await sealer.thin()
                    thinned_at = time.monotonic()
            except Exception as failure:  # noqa: BLE001 - whatever it is, what happens next has to be sealed too
                _not_sealed(failure)
                seconds = SEAL_SECONDS
            await pause(stop, seconds)
        # What the last requests did is not left for whoever starts next.
        try:
            if leads:
                await sealer.seal_all()
        except Exception as failure:  # noqa: BLE001 - whatever it is, another one may lead now
            _not_sealed(failure)
        with contextlib.suppress(ClustercertError):
            await leader.resign()

    return seal


def _not_sealed(failure: Exception) -> None:
    metrics.SEALING_FAILURES.inc()
    if isinstance(failure, Unavailable):
        logger.warning("events were not sealed into the audit log", cause=repr(failure.__cause__))
    elif isinstance(failure, LogDamaged):
        logger.error("events can't be sealed into the audit log", problem=failure.message)
    else:
        logger.error("events were not sealed into the audit log", exc_info=failure)
