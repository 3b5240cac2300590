"""Background work that stops when an event is set.

Cancelling the work would be unsafe: a cancelled database call may fail with an unrelated error, or leave its
connection open.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine

Work = Callable[[asyncio.Event], Coroutine[object, object, None]]

# Pause before work that failed with an unexpected error is started again.
RESTART_SECONDS = 5.0


async def keep_running(
    name: str, work: Work, stop: asyncio.Event, restart_seconds: float = RESTART_SECONDS
) -> None:
    """Run `work(stop)`, which returns after `stop` is set.

    If the work fails before that, logs and counts the error under `name`, and starts the work again. Re-raises an error
    after `stop` is set.
    """
    while True:
        try:
            return await work(stop)
        except Exception:
            if stop.is_set():
                raise
            # The imports are in this function, because structlog also imports rich, and store commands write no log.
            import structlog  # noqa: PLC0415

            from clustercert.observability import metrics  # noqa: PLC0415

            structlog.get_logger().exception("background work failed: starting it again", work=name)
            metrics.BACKGROUND_FAILURES.labels(name).inc()
        await wait_for_stop(stop, restart_seconds)


@contextlib.asynccontextmanager
async def running(name: str, work: Work, restart_seconds: float = RESTART_SECONDS) -> AsyncIterator[None]:
    """Run the work during the `with` block, as `keep_running` does.

    At the end of the block, tells the work to stop, and waits until it returns. Re-raises the error if that failed.
    """
    stop = asyncio.Event()
    task = asyncio.create_task(keep_running(name, work, stop, restart_seconds))
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
