"""Deadlines do what `asyncio.timeout` does, whoever else is late or cancelled."""

import asyncio

import pytest

from clustercert.web.deadlines import Deadlines


async def test_what_ends_in_time_is_left_alone() -> None:
    with Deadlines().within(60):
        await asyncio.sleep(0)


async def test_what_takes_too_long_ends_in_a_timeout() -> None:
    with pytest.raises(TimeoutError), Deadlines().within(0.01):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_of_many_the_late_ones_end_each_at_its_time() -> None:
    deadlines, order = Deadlines(), []

    async def hang(name: str, seconds: float) -> None:
        try:
            with deadlines.within(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            order.append(name)

    patient = asyncio.create_task(hang("patient", 60))
    # Begun in another order than they end in.
    await asyncio.gather(hang("third", 0.09), hang("first", 0.01), hang("second", 0.05))
    assert order == ["first", "second", "third"]
    assert not patient.done()
    patient.cancel()


async def test_the_inner_of_two_bounds_is_the_one_that_ends() -> None:
    deadlines, ended = Deadlines(), []
    with deadlines.within(60):
        try:
            with deadlines.within(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append("inner")
        await asyncio.sleep(0)
        ended.append("outer goes on")
    assert ended == ["inner", "outer goes on"]


@pytest.mark.parametrize("seconds", [60, 0])
async def test_a_cancellation_by_somebody_else_stays_one_even_where_it_is_late_too(seconds: float) -> None:
    async def hang() -> None:
        with Deadlines().within(seconds):
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await asyncio.sleep(0)
    # A deadline that is over by now and this arrive before the task runs again.
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failure_of_the_block_itself_goes_through() -> None:
    with pytest.raises(ValueError, match="its own"), Deadlines().within(60):
        raise ValueError("its own")


async def test_a_deadline_that_is_renewed_begins_anew() -> None:
    deadlines = Deadlines()
    with deadlines.within(60) as deadline:
        first = deadline.at
        while asyncio.get_running_loop().time() + 60 <= first:
            await asyncio.sleep(0)
        deadline.renew()
        assert deadline.at > first
