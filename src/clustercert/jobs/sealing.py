"""Seals new audit events, which adds them to the audit log's Merkle tree, within a second or two."""

import contextlib
from collections.abc import Iterator

from clustercert.audit.sealer import MAX_BATCH, LogSealer
from clustercert.jobs.leader_job import PeriodicWork, every
from clustercert.model.errors import Unavailable
from clustercert.observability import metrics

# The longest and the shortest pause between two batches of events, in seconds.
SEAL_SECONDS = 1.0
SHORTEST_SEAL_SECONDS = 0.005
THIN_SECONDS = 3600


def sealing(sealer: LogSealer) -> list[PeriodicWork]:
    """Create the periodic tasks that seal new events, and delete most of the old checkpoints.

    When the process stops or is no longer the leader, all waiting events are sealed.
    """
    pause = SEAL_SECONDS

    async def seal() -> float:
        nonlocal pause
        # If sealing fails, the next pause is `SEAL_SECONDS`, the longest pause.
        last, pause = pause, SEAL_SECONDS
        with _failures_counted():
            pause = until_next_seal(last, await sealer.seal())
        return pause

    async def seal_all() -> None:
        with _failures_counted():
            await sealer.seal_all()

    return [
        PeriodicWork("seal events", seal, SEAL_SECONDS, finish=seal_all),
        every(THIN_SECONDS, "thin out checkpoints", sealer.thin_checkpoints),
    ]


@contextlib.contextmanager
def _failures_counted() -> Iterator[None]:
    try:
        yield
    except Exception as failure:
        reason = "unavailable" if isinstance(failure, Unavailable) else "other"
        metrics.SEALING_FAILURES.labels(reason).inc()
        raise


def until_next_seal(seconds: float, sealed: int) -> float:
    """Compute the pause before the next batch of events is sealed.

    Args:
        seconds: the previous pause.
        sealed: the number of events in the previous batch.

    Each batch has a fixed cost, so small batches are wasteful. But sealing a large backlog at once delays all writers.
    """
    if sealed == MAX_BATCH:
        return max(SHORTEST_SEAL_SECONDS, seconds / 4)
    return min(SEAL_SECONDS, seconds * 1.25) if sealed < MAX_BATCH / 2 else seconds
