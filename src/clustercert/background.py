"""Background work that stops when an event is set.

Cancelling the work would be unsafe: a cancelled database call may fail with an unrelated error, or leave its
connection open.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine


@contextlib.asynccontextmanager
async def running(work: Callable[[asyncio.Event], Coroutine[object, object, None]]) -> AsyncIterator[None]:
    """Run `work(stop)` during the `with` block.

    At the end of the block, sets the event `stop` and waits until `work` returns. Re-raises the error if `work` failed.
    """
    stop = asyncio.Event()
    task = asyncio.create_task(work(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def wait_for_stop(stop: asyncio.Event, seconds: float) -> None:
    """Sleep for `seconds`, or until `stop` is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
