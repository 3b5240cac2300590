"""Background work that fails, and event loops in threads."""

import asyncio
import threading

import pytest

from clustercert.background import LoopThread, running
from clustercert.observability import metrics
from support.log_capture import captured_lines_of_new_loggers
from support.wait import eventually_async


async def test_work_that_fails_starts_again() -> None:
    begun, ended = 0, asyncio.Event()
    before = metrics.BACKGROUND_FAILURES.labels("watch")._value.get()

    async def work(stop: asyncio.Event) -> None:
        nonlocal begun
        begun += 1
        if begun <= 2:
            raise RuntimeError("a fault")
        await stop.wait()
        ended.set()

    with captured_lines_of_new_loggers() as lines:
        async with running("watch", work, restart_seconds=0):
            await eventually_async(lambda: begun == 3)
    assert ended.is_set()
    found = [(line["event"], line["work"]) for line in lines]
    assert found == [("background work failed: starting it again", "watch")] * 2
    assert metrics.BACKGROUND_FAILURES.labels("watch")._value.get() == before + 2


async def test_work_that_waits_to_start_again_is_told_to_stop() -> None:
    stopped = []

    async def work(stop: asyncio.Event) -> None:
        stopped.append(stop.is_set())
        if not stop.is_set():
            raise RuntimeError("a fault")

    with captured_lines_of_new_loggers():
        async with running("watch", work, restart_seconds=3600):
            await eventually_async(lambda: stopped == [False])
    assert stopped == [False, True]


async def test_work_that_fails_at_the_end_is_reported() -> None:
    async def work(stop: asyncio.Event) -> None:
        await stop.wait()
        raise RuntimeError("not stored")

    with pytest.raises(RuntimeError, match="not stored"):
        async with running("watch", work):
            pass


# Event loops in threads


def threads(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == name]


async def test_work_that_blocks_its_thread_blocks_nothing_else() -> None:
    thread, begun, released = LoopThread("blocked"), threading.Event(), threading.Event()

    async def work() -> str:
        begun.set()
        released.wait()
        return threading.current_thread().name

    task = asyncio.create_task(thread.run(work()))
    await eventually_async(begun.is_set)
    released.set()
    assert await task == "blocked"
    await thread.close(asyncio.sleep(0))
    await eventually_async(lambda: threads("blocked") == [])


async def test_work_is_cancelled_with_the_task_that_waits_for_it() -> None:
    thread, begun, cancelled = LoopThread("cancelled"), threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    task = asyncio.create_task(thread.run(work()))
    await eventually_async(begun.is_set)
    task.cancel()
    await eventually_async(cancelled.is_set)
    with pytest.raises(asyncio.CancelledError):
        await task
    await thread.close(asyncio.sleep(0))


async def test_without_work_there_is_no_thread() -> None:
    thread, done = LoopThread("unused"), []

    async def last() -> None:
        done.append(threading.current_thread().name)

    await thread.close(last())
    assert done == ["MainThread"]
    assert threads("unused") == []


async def test_a_thread_that_does_not_start_fails_its_work_and_can_be_closed() -> None:
    """The system may have no thread left."""
    thread, done = LoopThread("unstartable"), []

    async def last() -> None:
        done.append(threading.current_thread().name)

    before = threading.stack_size(1 << 46)
    try:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                async with asyncio.timeout(60):
                    await thread.run(last())
    finally:
        threading.stack_size(before)
    await thread.close(last())
    assert done == ["MainThread"]
