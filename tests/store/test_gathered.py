"""Those who ask for the same at once share one reading."""

import asyncio
from collections.abc import Sequence

import pytest

from clustercert.errors import Unavailable
from clustercert.store.gathered import Gathered


async def test_who_asks_while_another_is_read_waits_for_one_reading_alone() -> None:
    read: list[list[str]] = []
    go_on = asyncio.Event()

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        read.append(list(keys))
        await go_on.wait()
        return {key: key.upper() for key in keys if key != "none"}

    gathered = Gathered(upper, 3)
    first = asyncio.create_task(gathered("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(gathered(key)) for key in ("b", "a", "none", "b", "c", "d")]
    await asyncio.sleep(0)
    go_on.set()
    assert await first == "A"
    assert await asyncio.gather(*others) == ["B", "A", None, "B", "C", "D"]
    assert read == [["a"], ["b", "none", "c"], ["d"]]
    assert (gathered._asked, gathered._waiting, gathered._reading) == ({}, [], None)


async def test_one_who_gives_up_takes_nobody_along() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        begun.set()
        await go_on.wait()
        return {key: key.upper() for key in keys}

    gathered = Gathered(upper, 10)
    first, second = asyncio.create_task(gathered("a")), asyncio.create_task(gathered("a"))
    await begun.wait()
    first.cancel()
    go_on.set()
    assert await second == "A"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    outcomes = [Unavailable("away"), None]

    async def upper(keys: Sequence[str]) -> dict[str, str]:
        await asyncio.sleep(0)
        if failure := outcomes.pop(0):
            raise failure
        return {key: key.upper() for key in keys}

    gathered = Gathered(upper, 10)
    both = await asyncio.gather(gathered("a"), gathered("a"), return_exceptions=True)
    assert [type(each) for each in both] == [Unavailable, Unavailable]
    assert await gathered("a") == "A"
