"""Concurrent requests share one query."""

import asyncio
from collections.abc import Sequence

import pytest

from clustercert.model.errors import Unavailable
from clustercert.store.engine.batch_loader import BatchLoader


async def test_keys_that_are_requested_during_a_query_share_the_next_one() -> None:
    read: list[list[str]] = []
    go_on = asyncio.Event()

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        read.append(list(keys))
        await go_on.wait()
        return {key: key.upper() for key in keys if key != "none"}

    loader = BatchLoader(upper, 3)
    first = asyncio.create_task(loader("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(loader(key)) for key in ("b", "a", "none", "b", "c", "d")]
    await asyncio.sleep(0)
    go_on.set()
    assert await first == "A"
    assert await asyncio.gather(*others) == ["B", "A", None, "B", "C", "D"]
    assert read == [["a"], ["b", "none", "c"], ["d"]]
    assert (loader._results, loader._waiting, loader._loading) == ({}, [], None)


async def test_a_cancelled_request_does_not_cancel_the_query() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        begun.set()
        await go_on.wait()
        return {key: key.upper() for key in keys}

    loader = BatchLoader(upper, 10)
    first, second = asyncio.create_task(loader("a")), asyncio.create_task(loader("a"))
    await begun.wait()
    first.cancel()
    go_on.set()
    assert await second == "A"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_an_error_is_raised_for_each_key_and_not_kept() -> None:
    outcomes = [Unavailable("away"), None]

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        await asyncio.sleep(0)
        if failure := outcomes.pop(0):
            raise failure
        return {key: key.upper() for key in keys}

    loader = BatchLoader(upper, 10)
    both = await asyncio.gather(loader("a"), loader("a"), return_exceptions=True)
    assert [type(each) for each in both] == [Unavailable, Unavailable]
    assert await loader("a") == "A"
