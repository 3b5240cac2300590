"""Whose turn it is to write, among the processes that share one SQLite file.

SQLite lets one process write at a time and has the others ask again after pauses that grow to a tenth of a second, in
no order; under load some of them wait for seconds. So they queue before they ask it: locks on two files beside the
database, which the kernel releases when their holder dies. Correctness doesn't rest on them: SQLite's own lock is
still taken.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator

# A commit takes milliseconds; asking costs a microsecond.
PAUSE = 0.0003


class Turn:
    """The lock files of one database; they are made at the first use and never removed.

    Who holds `next` is the one to hold `turn` after its present holder. So a process that has just written finds
    another one waiting in front of it, however soon it comes back.
    """

    def __init__(self, database_path: str) -> None:
        self._turn = f"{database_path}-turn"
        self._next = f"{database_path}-next"

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Hold the turn while the block runs. Waits as long as others hold it, so bound it. Raises OSError."""
        async with contextlib.AsyncExitStack() as stack:
            async with _locked(self._next):
                await stack.enter_async_context(_locked(self._turn))
            yield


@contextlib.asynccontextmanager
async def _locked(path: str) -> AsyncIterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _lock(descriptor):  # noqa: ASYNC110 - another process lets go, no event of ours
            await asyncio.sleep(PAUSE)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
