"""What a process may remember of the store, and how it learns that it must forget.

Every change that could contradict something cached raises one number in the store, in the change's own
transaction. Each process reads that number a few times a second; when it has risen, every cache is dropped.
While the number can't be read, nothing is answered from memory.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import structlog
from cachetools import LRUCache

from clustercert.background import pause, running

K = TypeVar("K")
V = TypeVar("V")

logger = structlog.get_logger()


class Generation:
    """The number, as this process last read it. Until `watch` runs, nothing counts as fresh.

    Attributes:
        value: -1 before the first reading.
    """

    # A change must hold everywhere within one second of its commit.
    STALE_AFTER = 1.0
    INTERVAL = 0.25

    def __init__(
        self, read: Callable[[], Awaitable[int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._asked_at = float("-inf")
        self.value = -1

    def fresh(self) -> bool:
        """Whether what is cached may be answered from: the number was read less than a second ago."""
        return self._clock() - self._asked_at < self.STALE_AFTER

    async def refresh(self) -> None:
        """Read the number once. Raises Unavailable."""
        # The time of asking, not of the answer: the answer may be as old as that.
        asked_at = self._clock()
        self.value = await self._read()
        self._asked_at = asked_at

    async def watch(self, stop: asyncio.Event) -> None:
        """Read the number again and again until told to stop; each worker does."""
        failing = False
        while not stop.is_set():
            try:
                await self.refresh()
                failing = False
            except Exception as error:  # noqa: BLE001 - whatever it is, it may pass: a backup is being restored
                if not failing:
                    logger.warning(
                        "caches are off: the store does not answer", cause=repr(error.__cause__ or error)
                    )
                failing = True
            await pause(stop, self.INTERVAL)

    def watching(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Watch for as long as the block runs."""
        return running(self.watch)


class Cache(Generic[K, V]):
    """At most `size` values, the least recently used go first; all of them go when the generation moves.

    Absence is never cached, so that creating a thing contradicts no cache.
    """

    def __init__(self, generation: Generation, size: int) -> None:
        self._generation = generation
        self._seen = generation.value
        self._entries: LRUCache[K, V] = LRUCache(size)

    async def get(self, key: K, load: Callable[[K], Awaitable[V | None]]) -> V | None:
        """The cached value, or what `load` finds. What `load` raises passes through."""
        before = self._generation.value
        if self._seen != before:
            self._entries.clear()
            self._seen = before
        if self._generation.fresh() and (value := self._entries.get(key)) is not None:
            return value
        value = await load(key)
        # A value read before the number rose must not survive it.
        if value is not None and self._generation.value == before == self._seen:
            self._entries[key] = value
        return value
