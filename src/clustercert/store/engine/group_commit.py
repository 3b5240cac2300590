"""Group commit: concurrent requests share a transaction.

Requests that arrive during a commit share the next commit. A batch also waits a few milliseconds for more requests,
until it is as large as the last batch. A single request is committed at once.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from clustercert.model.errors import Unavailable
from clustercert.store.engine.writer import NothingBegun

# The maximum size of a batch. A commit takes longer than inserting this many rows. Larger batches would only delay
# entries.
MAX_BATCH = 128
# The maximum number of batches in progress: while one batch is committed, the next batch is prepared and sent. With
# more batches in progress, each batch would be smaller.
BATCHES = 2
# How long a batch that is smaller than the last batch waits for more requests. Most of a commit's cost does not depend
# on the number of rows.
GATHER_SECONDS = 0.005

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[T]):
    """The data that one request writes.

    Attributes:
        key: identifies the entry in the database if a commit's outcome is unknown; None if the entry may
            be written twice.
        done: set when the entry is durable, or when all attempts to write it have failed.
    """

    key: bytes | None
    value: T
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def finish(self, failure: Exception | None = None) -> None:
        # The future is already done if the request was cancelled.
        if not self.done.done():
            if failure is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(failure)


class GroupCommit(Generic[T]):
    """Collects entries and writes them in batches. Use one instance per event loop.

    Attributes:
        write: writes a batch in one transaction. Raises NothingBegun if nothing was written, or else Unavailable.
        find: returns those of the given keys that are in the database. Raises Unavailable.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[None]],
        find: Callable[[Sequence[bytes]], Awaitable[set[bytes]]],
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._write = write
        self._find = find
        self._gather_seconds = gather_seconds
        self._waiting: list[Entry[T]] = []
        self._expected = 1
        self._enough = asyncio.Event()
        self._gathering: asyncio.Task[None] | None = None
        self._committing: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(BATCHES)

    async def commit(self, key: bytes | None, value: T) -> None:
        """Write a value, and return when it is durable. Raises Unavailable.

        A commit that reports an error may have succeeded. So the entries' keys are looked up, and missing entries are
        written once more. Entries without a key can't be looked up, and are always written again. May raise Unavailable
        although the entry is durable.
        """
        entry = Entry(key, value)
        self._waiting.append(entry)
        if len(self._waiting) >= self._expected:
            self._enough.set()
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._commit_waiting())
        await entry.done

    async def _commit_waiting(self) -> None:
        """Commit batches until no entries are waiting."""
        try:
            while self._waiting:
                await self._slots.acquire()
                await self._gather()
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                self._expected = len(batch)
                commit = asyncio.create_task(self._commit(batch))
                self._committing.add(commit)
                commit.add_done_callback(self._committed)
        finally:
            self._gathering = None

    def _committed(self, commit: asyncio.Task[None]) -> None:
        self._committing.discard(commit)
        self._slots.release()

    async def _gather(self) -> None:
        """Wait at most `gather_seconds` for as many entries as were in the last batch.

        Clients that receive responses at the same time also send their next requests at the same time.
        """
        if len(self._waiting) < self._expected:
            self._enough.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._gather_seconds):
                    await self._enough.wait()

    async def _commit(self, batch: Sequence[Entry[T]]) -> None:
        """Write a batch, and report the outcome to every entry."""
        try:
            left = await self._try(batch)
            if left:
                left = await self._try([entry for entry, _ in left])
            for entry, failure in left:
                entry.finish(failure)
        except Unavailable as failure:
            for entry in batch:
                entry.finish(failure)
        except Exception as refusal:  # noqa: BLE001 - every entry has a request that waits for it
            # The database rejected a row. Commit each entry separately, so that the other entries succeed.
            if len(batch) > 1:
                for entry in batch:
                    await self._commit([entry])
            else:
                await self._finish_refused(batch[0], refusal)

    async def _finish_refused(self, entry: Entry[T], refusal: Exception) -> None:
        """Report the error, or success if an earlier commit with unknown outcome already stored the rejected row."""
        try:
            found = await self._found([entry])
        except Unavailable as failure:
            entry.finish(failure)
        else:
            entry.finish(None if entry.key in found else refusal)

    async def _try(self, batch: Sequence[Entry[T]]) -> list[tuple[Entry[T], Unavailable]]:
        """Write a batch once. Finishes the entries that are durable, and returns the other entries with the error.

        Raises NothingBegun, or the database's error if the database rejects a row.
        """
        try:
            await self._write([entry.value for entry in batch])
        except NothingBegun:
            # The database is busy or down. An immediate retry would not help.
            raise
        except Unavailable as failure:
            found = await self._found(batch)
            left = [(entry, failure) for entry in batch if entry.key not in found]
        else:
            left = []
        waiting = {entry for entry, _ in left}
        for entry in batch:
            if entry not in waiting:
                entry.finish()
        return left

    async def _found(self, batch: Sequence[Entry[T]]) -> set[bytes]:
        return await self._find([entry.key for entry in batch if entry.key is not None])
