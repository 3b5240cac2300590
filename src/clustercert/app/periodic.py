"""What a worker does beside answering, for as long as it serves."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine

import structlog

from clustercert.background import pause
from clustercert.errors import Unavailable
from clustercert.identity import Identity
from clustercert.store.database import Database
from clustercert.store.leader import Leader

logger = structlog.get_logger()

PRUNE_SECONDS = 3600


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


async def end_with_parent(stop: asyncio.Event) -> None:
    """End a worker whose server was killed: left alone it would hold the port and serve on, unseen."""
    parent = os.getppid()
    while not stop.is_set():
        if os.getppid() != parent:
            logger.error("the server's main process is gone; this worker ends too")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        await pause(stop, 0.5)
