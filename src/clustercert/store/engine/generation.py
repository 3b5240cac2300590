"""The generation, a number in the store that tells processes when their caches are out of date.

Every change that could make a cache stale raises the number, in the same transaction. Each process reads the number
several times a second, and drops all caches when the number has changed. While a process can't read the number, it uses
no caches. When the process can read the number again, it drops all caches: a failover may have lost changes, and other
changes may have raised the number to the same value.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from cachetools import LRUCache

from clustercert.background import running, wait_for_stop
from clustercert.store.engine.outage import Outage

K = TypeVar("K")
V = TypeVar("V")


class Generation:
    """The generation number as last read; -1 before the first read. Caches are used only while `watch` runs.

    Attributes:
        interruptions: how many times reading succeeded again after a failed read, or after `STALE_AFTER` had passed.
    """

    # The name of `watch` in the log and in metrics.
    WORK = "read the generation"
    # Every process must apply a change within one second of its commit.
    STALE_AFTER = 1.0
    INTERVAL = 0.25
    # After this time, no process uses a cached value from before the change.
    PROPAGATION = STALE_AFTER + INTERVAL

    def __init__(
        self,
        read: Callable[[], Awaitable[int]],
        clock: Callable[[], float] = time.monotonic,
        outage: Outage | None = None,
    ) -> None:
        """Create a generation that is not read yet. `outage`: is told by `watch` whether each read succeeded."""
        self._read = read
        self._clock = clock
        self._outage = outage
        self._disabled_at: float | None = None
        self._asked_at = float("-inf")
        self._failed = False
        self.value = -1
        self.interruptions = 0

    @property
    def state(self) -> tuple[int, int]:
        """The state that caches compare: a value that was loaded in a different state may be out of date."""
        return self.value, self.interruptions

    def fresh(self) -> bool:
        """Whether caches may be used: the number was read less than `STALE_AFTER` seconds ago."""
        return self._clock() - self._asked_at < self.STALE_AFTER

    async def refresh(self) -> None:
        """Read the generation once. Raises Unavailable."""
        # Read the clock before the query, because the number may be as old as the start of the query.
        asked_at = self._clock()
        try:
            self.value = await self._read()
        except BaseException:
            self._failed = True
            raise
        if self._failed or not self.fresh():
            self.interruptions += 1
        self._failed, self._asked_at = False, asked_at

    async def watch(self, stop: asyncio.Event) -> None:
        """Read the generation periodically until `stop` is set. Each worker runs this method."""
        while not stop.is_set():
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - any error may be temporary, such as during a restore
                self._note_failure(error)
            else:
                self._note_success()
            await wait_for_stop(stop, self.INTERVAL)

    def _note_failure(self, error: Exception) -> None:
        # Import these here, because the imports are slow, and store commands need no log and no metrics.
        import structlog  # noqa: PLC0415

        from clustercert.observability import metrics  # noqa: PLC0415

        metrics.BACKGROUND_FAILURES.labels(self.WORK).inc()
        if self._outage is not None:
            self._outage.failed(error)
        if self._disabled_at is None and not self.fresh():
            self._disabled_at = self._clock()
            cause = repr(error.__cause__ or error)
            structlog.get_logger().warning("caches disabled", work=self.WORK, cause=cause)

    def _note_success(self) -> None:
        if self._outage is not None:
            self._outage.ended()
        if self._disabled_at is None:
            return
        import structlog  # noqa: PLC0415

        seconds, self._disabled_at = round(self._clock() - self._disabled_at, 1), None
        structlog.get_logger().info("caches enabled again", work=self.WORK, seconds=seconds)

    def watching(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Run `watch` during the `with` block."""
        return running(self.WORK, self.watch)


class Cache(Generic[K, V]):
    """Caches at most `size` values.

    Evicts the least recently used value, and all values if the generation's state changes. The absence of a value is
    not cached, so creating an object makes no cache stale.
    """

    def __init__(self, generation: Generation, size: int) -> None:
        self._generation = generation
        self._seen = generation.state
        self._entries: LRUCache[K, V] = LRUCache(size)

    def cached(self, key: K) -> V | None:
        """Return the cached value, or None if it must be loaded."""
        state = self._generation.state
        if self._seen != state:
            self._entries.clear()
            self._seen = state
        return self._entries.get(key) if self._generation.fresh() else None

    async def get(self, key: K, load: Callable[[K], Awaitable[V | None]]) -> V | None:
        """Return the cached value, or the result of `load`."""
        if (value := self.cached(key)) is not None:
            return value
        before = self._seen
        value = await load(key)
        # A value that was read before the state changed must not be cached afterwards.
        if value is not None and self._generation.state == before == self._seen:
            self._entries[key] = value
        return value
