"""Background work that fails."""

import asyncio

import pytest

from clustercert.background import running
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
