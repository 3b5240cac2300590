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
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future


class Turn:
    """The lock files of one database; they are made at the first use and never removed.

    Who holds `next` is the one to hold `turn` after its present holder. So a process that has just written finds
    another one waiting in front of it, however soon it comes back.
    """

    def __init__(self, database_path: str) -> None:
        self._turn = f"{database_path}-turn"
        self._next = f"{database_path}-next"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the turn while the block runs, in a thread that may wait as long as others hold it. Raises OSError."""
        turn = self._wait()
        try:
            yield
        finally:
            os.close(turn)

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Hold the turn while the block runs. Waits as long as others hold it, so bound it. Raises OSError."""
        turn = self._take()
        if turn is None:
            turn = await self._waited_for()
        try:
            yield
        finally:
            os.close(turn)

    def _take(self) -> int | None:
        """The locked file, if it can be had at once."""
        try:
            next_one = _locked(self._next, fcntl.LOCK_NB)
            try:
                return _locked(self._turn, fcntl.LOCK_NB)
            finally:
                os.close(next_one)
        except BlockingIOError:
            return None

    def _wait(self) -> int:
        """The locked file, when its time has come."""
        next_one = _locked(self._next)
        try:
            return _locked(self._turn)
        finally:
            os.close(next_one)

    async def _waited_for(self) -> int:
        """`_wait`, in a thread that is left behind where its caller gives up; what it gets then is let go."""
        found: Future[int] = Future()
        # Not to be called off: what comes of it is in `found`, and nowhere else.
        found.set_running_or_notify_cancel()

        def wait() -> None:
            try:
                found.set_result(self._wait())
            except OSError as failure:
                found.set_exception(failure)

        # As a daemon, since a process must be able to end while another one keeps the turn.
        threading.Thread(target=wait, name="turn-to-write", daemon=True).start()
        try:
            return await asyncio.wrap_future(found)
        except asyncio.CancelledError:
            # It may have come at this very moment, or come later.
            found.add_done_callback(_let_go)
            raise


def _let_go(found: Future[int]) -> None:
    if found.exception() is None:
        os.close(found.result())


def _locked(path: str, flags: int = 0) -> int:
    """The file, open and locked. Raises OSError, and leaves nothing open then."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
