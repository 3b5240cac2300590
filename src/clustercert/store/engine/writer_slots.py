"""Limits concurrent write transactions in PostgreSQL, including transactions that this process no longer waits for.

A commit that waits for a lost synchronous standby continues in the server after its client has closed the connection.
Without this limit, each attempt to write would leave a server process behind, until the server accepts no connections,
not even for reading.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

from clustercert.store.engine.writer import NOT_NOW, NothingBegun

# The maximum number of remembered server processes. A read that times out also adds its server process, but only
# writers remove processes that have ended.
MAX_ABANDONED = 64


class WriterSlots:
    """Slots for writers. The slot of a writer that timed out stays taken until the writer's server process has ended.

    Attributes:
        running: returns those of the given server processes that still run a statement. Raises Unavailable.
    """

    def __init__(self, count: int, running: Callable[[Collection[int]], Awaitable[set[int]]]) -> None:
        self._count = count
        self._running = running
        self._free = asyncio.Semaphore(count)
        self._abandoned: set[int] = set()
        self._withheld = 0

    def abandon(self, process_id: int) -> None:
        """Remember the server process of a connection that was closed after a time-out."""
        if len(self._abandoned) < MAX_ABANDONED:
            self._abandoned.add(process_id)

    @contextlib.asynccontextmanager
    async def hold(self, seconds: float) -> AsyncIterator[None]:
        """Hold a slot during the `with` block. Raises NothingBegun if no slot is free in time, or Unavailable."""
        if self._abandoned:
            await self._free_ended()
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError as failure:
            raise NothingBegun(NOT_NOW) from failure
        try:
            yield
        finally:
            if self._withheld < len(self._abandoned):
                self._withheld += 1
            else:
                self._free.release()

    async def _free_ended(self) -> None:
        """Free the slots whose server processes have ended.

        Raises NothingBegun if all slots belong to server processes that still run.
        """
        asked = frozenset(self._abandoned)
        self._abandoned -= asked - await self._running(asked)
        while self._withheld > len(self._abandoned):
            self._withheld -= 1
            self._free.release()
        if self._withheld >= self._count:
            raise NothingBegun(NOT_NOW)
