"""Ctrl-C while an event loop runs, and work that swallows what is done to it then."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import pytest
import uvicorn

from clustercert.server.serving import _stopping, run_interruptible
from support.wait import SECONDS


async def swallowing() -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(SECONDS)
    return "done all the same"


def test_work_that_swallows_its_cancellation_is_interrupted_all_the_same() -> None:
    async def work() -> str:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        return await swallowing()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work())


def test_so_it_is_where_asyncios_own_handler_came_first() -> None:
    async def work() -> str:
        (outer,) = asyncio.all_tasks() - {asyncio.current_task()}
        # What asyncio's handler of SIGINT does to the task that it was given.
        asyncio.get_running_loop().call_soon(outer.cancel)
        return await swallowing()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work())


def test_work_that_fails_by_its_cancellation_is_interrupted_too() -> None:
    async def work() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            raise OSError("the connection is closed") from None

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work())


def test_work_that_fails_by_itself_has_failed() -> None:
    async def work() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        run_interruptible(work())


def test_ctrl_c_while_the_garbage_collector_calls_back_ends_the_process() -> None:
    """Python would print the KeyboardInterrupt and continue."""
    program = """
import os, signal, weakref
from clustercert.server.serving import end_on_interrupt
end_on_interrupt()
collected = set()
watched = weakref.ref(collected, lambda _: os.kill(os.getpid(), signal.SIGINT))
del collected
print("still running")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_the_handler_of_before_is_back_after_the_work() -> None:
    def before(_number: int, _frame: object) -> None: ...

    async def work() -> str:
        return "done"

    previous = signal.signal(signal.SIGINT, before)
    try:
        assert run_interruptible(work()) == "done"
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_a_service_that_starts_notices_a_signal_from_before_its_application_was_created(when: str) -> None:
    async def start() -> bool:
        server = uvicorn.Server(uvicorn.Config("", log_config=None))
        with server.capture_signals():
            if when == "before":
                signal.raise_signal(signal.SIGTERM)
            stopping = _stopping()
            if when == "after":
                signal.raise_signal(signal.SIGTERM)
            # uvicorn would raise them again.
            server._captured_signals.clear()
        await asyncio.sleep(0)
        return stopping.is_set()

    assert asyncio.run(start()) == (when != "never")
