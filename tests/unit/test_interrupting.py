"""Ctrl-C while an event loop runs, and work that swallows what is done to it then."""

import asyncio
import contextlib
import os
import signal

import pytest

from clustercert.server.serving import run_interruptible


async def swallowing() -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(20)
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
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            raise OSError("the connection is closed") from None

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work())


def test_work_that_fails_by_itself_has_failed() -> None:
    async def work() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        run_interruptible(work())
