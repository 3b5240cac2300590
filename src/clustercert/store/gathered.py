"""Many who ask at the same moment are answered by one reading of the database."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Gathered(Generic[K, V]):
    """Reads values by key: whoever asks while a reading is under way shares the next one with all others who do.

    Who asks alone waits for nobody. Who asks for what is being read, gets that. A reading goes on when one who asked
    for it gives up.
    """

    def __init__(self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], at_once: int) -> None:
        self._read = read
        self._at_once = at_once
        self._asked: dict[K, asyncio.Future[V | None]] = {}
        self._waiting: list[K] = []
        self._reading: asyncio.Task[None] | None = None

    async def __call__(self, key: K) -> V | None:
        """The value, or None where the reading found none. What the reading raises, everybody gets."""
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
            self._waiting.append(key)
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_waiting())
        return await asyncio.shield(answer)

    async def _read_waiting(self) -> None:
        """Batch after batch, until nobody waits."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._at_once], self._waiting[self._at_once :]
                await self._read_batch(batch)
        finally:
            self._reading = None

    async def _read_batch(self, batch: Sequence[K]) -> None:
        try:
            found = await self._read(batch)
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is for those who asked
            for key in batch:
                answer = self._asked.pop(key)
                answer.set_exception(failure)
                # Where all of them gave up, it is nobody's.
                answer.exception()
        else:
            for key in batch:
                self._asked.pop(key).set_result(found.get(key))
