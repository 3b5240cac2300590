"""The cache of what Keystone said: bounds, times, and questions at the same time."""

import asyncio

import pytest

from clustercert.authn.keystone.client import REFUSAL_SECONDS, Found, Lookups
from clustercert.model.errors import CredentialUnverified, Unauthenticated


class Asked:
    """Lookups with a clock, and a question whose answer the test chooses."""

    def __init__(self, **bounds: int) -> None:
        self.time = 0.0
        self.count = 0
        self.seconds = 60.0
        self.takes = 0.0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.lookups: Lookups[str] = Lookups(lambda: self.time, **bounds)

    async def ask(self) -> Found[str]:
        self.count += 1
        await self.gate.wait()
        self.time += self.takes
        if self.failure is not None:
            raise self.failure
        return Found(f"answer {self.count}", self.seconds)

    async def get(self, key: bytes = b"k") -> str:
        return await self.lookups.get(key, self.ask)


async def test_an_answer_is_used_for_its_time_from_the_question_on() -> None:
    asked = Asked()
    asked.takes = 10
    assert await asked.get() == "answer 1"
    asked.time = 59.9
    assert await asked.get() == "answer 1"
    asked.time = 60
    assert await asked.get() == "answer 2"


async def test_an_answer_without_time_is_used_once() -> None:
    asked = Asked()
    asked.seconds = 0
    assert [await asked.get(), await asked.get()] == ["answer 1", "answer 2"]


async def test_a_refusal_is_remembered_for_five_seconds() -> None:
    asked = Asked()
    asked.failure = Unauthenticated("unknown", known="u")
    for _ in range(3):
        with pytest.raises(Unauthenticated) as refused:
            await asked.get()
        assert (refused.value.reason, refused.value.known) == ("unknown", "u")
    assert asked.count == 1
    asked.time, asked.failure = REFUSAL_SECONDS, None
    assert await asked.get() == "answer 2"


async def test_an_outage_is_not_remembered() -> None:
    asked = Asked()
    asked.failure = CredentialUnverified("away")
    for _ in range(3):
        with pytest.raises(CredentialUnverified):
            await asked.get()
    assert asked.count == 3


async def test_requests_at_the_same_time_ask_once_and_share_the_answer() -> None:
    asked = Asked()
    asked.gate.clear()
    waiting = [asyncio.create_task(asked.get()) for _ in range(100)]
    await asyncio.sleep(0)
    asked.gate.set()
    assert await asyncio.gather(*waiting) == ["answer 1"] * 100


async def test_a_cancelled_request_does_not_cancel_the_others() -> None:
    asked = Asked()
    asked.gate.clear()
    waiting = [asyncio.create_task(asked.get()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    asked.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    assert await asyncio.gather(*waiting[1:]) == ["answer 1"] * 2


async def test_a_question_ends_and_counts_if_all_its_requests_are_cancelled() -> None:
    asked = Asked()
    asked.gate.clear()
    waiting = asyncio.create_task(asked.get())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    asked.gate.set()
    assert await asked.get() == "answer 1"
    assert asked.lookups.cached(b"k") == "answer 1"


async def test_a_failure_that_nobody_waits_for_is_no_unhandled_error() -> None:
    asked = Asked()
    asked.gate.clear()
    asked.failure = CredentialUnverified("away")
    waiting = asyncio.create_task(asked.get())
    await asyncio.sleep(0)
    waiting.cancel()
    asked.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not asked.lookups._under_way


async def test_memory_is_bounded() -> None:
    asked = Asked(size=10, refusals=20)
    for number in range(100):
        await asked.get(b"%d" % number)
    assert len(asked.lookups._found) == 10
    asked.failure = Unauthenticated("unknown")
    for number in range(100, 200):
        with pytest.raises(Unauthenticated):
            await asked.get(b"%d" % number)
    assert len(asked.lookups._refused) == 20


async def test_questions_under_way_are_bounded() -> None:
    asked = Asked(under_way=3)
    asked.gate.clear()
    waiting = [asyncio.create_task(asked.get(b"%d" % number)) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(CredentialUnverified):
        await asked.get(b"one more")
    joined = asyncio.create_task(asked.get(b"1"))
    await asyncio.sleep(0)
    asked.gate.set()
    assert len(await asyncio.gather(*waiting, joined)) == 4
