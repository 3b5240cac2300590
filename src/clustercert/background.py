"""Work beside the requests, which ends when it is told to and never in the middle of something.

It is told by an event rather than cancelled: a cancellation that arrives inside a database call may come out as that
call's failure, or leave its connection open.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine


@contextlib.asynccontextmanager
async def running(work: Callable[[asyncio.Event], Coroutine[object, object, None]]) -> AsyncIterator[None]:
    """Run `work(stop)` for as long as the block runs, and wait for its end. What it raises, comes out there."""
    stop = asyncio.Event()
    task = asyncio.create_task(work(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not beyond the end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
