"""Background work that stops when an event is set, and event loops in threads of their own.

Cancelling background work would be unsafe: a cancelled database call may fail with an unrelated error, or leave its
connection open.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
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

    At the end of the block, tells the work to stop, and waits until the work returns. Re-raises an error of the work.
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


async def until_stopped(stop: asyncio.Event, seconds: float) -> AsyncIterator[bool]:
    """Yield False every `seconds` until `stop` is set, and then yield True once.

    If `stop` is set while the caller works, True still follows, because new work may have come in meanwhile.
    """
    is_last = False
    while not is_last:
        await wait_for_stop(stop, seconds)
        is_last = stop.is_set()
        yield is_last


class LoopThread:
    """An event loop in a thread of its own, for work that another host can make slow. The first work starts the thread.

    The thread helps only where the work releases the interpreter lock, as OpenSSL does, or takes many short steps.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._started: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work in the thread. If the calling task is cancelled, the work is cancelled too.

        Raises RuntimeError if the system can't start another thread, or any error that the work raises.
        """
        try:
            loop, _ = self._start()
        except RuntimeError:
            work.close()
            raise
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    async def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run the last work, and let the thread end.

        If the thread never started, the last work runs in the caller's loop.
        """
        if self._started is None:
            return await last
        try:
            await self.run(last)
        finally:
            (loop, stop), self._started = self._start(), None
            loop.call_soon_threadsafe(stop.set)

    def _start(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Event]:
        if self._started is None:
            started = loop, _ = asyncio.new_event_loop(), asyncio.Event()
            # A daemon thread, so that a name server that does not answer can't delay the end of the process.
            thread = threading.Thread(target=_serve, args=started, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                loop.close()
                raise
            # Store the loop only after its thread has started: work in a loop without a thread would never end.
            self._started = started
        return self._started


def _serve(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(stop.wait())
