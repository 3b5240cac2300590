"""Work in an event loop that Ctrl-C ends, whatever the work makes of being cancelled."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run_interruptible(work: Coroutine[object, object, T]) -> T:
    """`asyncio.run`, but Ctrl-C ends in KeyboardInterrupt even where the work swallowed it.

    A cancellation that arrives inside a database call may come out as that call's failure, which is then tried again.
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
        result = await task
        # Before the handler is there, asyncio's own cancels this task, which hands that on to the work.
        this = asyncio.current_task()
        interrupted = interrupted or (this is not None and this.cancelling() > 0)
        return result

    try:
        result = asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    if interrupted:
        raise KeyboardInterrupt
    return result
