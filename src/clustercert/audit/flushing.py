"""Records counts of events periodically."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from clustercert.background import wait_for_stop
from clustercert.model.errors import Unavailable

FLUSH_SECONDS = 60


async def flush_until_stopped(
    flush: Callable[[], Awaitable[None]], seconds: float, stop: asyncio.Event
) -> None:
    """Call `flush` after each pause until `stop` is set, and then once more. If it raises Unavailable, go on."""
    while not stop.is_set():
        await wait_for_stop(stop, seconds)
        with contextlib.suppress(Unavailable):
            await flush()
