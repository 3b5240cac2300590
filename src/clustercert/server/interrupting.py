"""Runs an event loop that Ctrl-C always stops."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run_interruptible(work: Coroutine[object, object, T]) -> T:
    """`asyncio.run`, but Ctrl-C raises KeyboardInterrupt even if the work swallowed the cancellation.

    A cancelled database call may fail with an unrelated error, which the work may retry or raise.
    """
    interrupted = False

    async def watched() -> T:
        nonlocal interrupted
        task = asyncio.ensure_future(work)

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
        try:
            return await task
        finally:
            # Before the handler above is set, Ctrl-C makes asyncio cancel this task, and thereby the work.
            this = asyncio.current_task()
            interrupted = interrupted or (this is not None and this.cancelling() > 0)

    try:
        result = asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    if interrupted:
        raise KeyboardInterrupt
    return result
