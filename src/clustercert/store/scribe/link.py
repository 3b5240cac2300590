"""A worker's connection to the scribe."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from clustercert.store.scribe.frames import Answer, Frames, Job, Outcome, job_frame
from clustercert.store.writer import NotBegun, Statement

# For how long the scribe isn't asked for again where it wasn't there: another one is started after a second.
_AWAY_SECONDS = 1.0
# What was begun in time may take so much longer before the scribe is taken for stopped.
_GRACE_SECONDS = 1.0


class Scribe:
    """The scribe, as one event loop reaches it."""

    def __init__(self, path: Path) -> None:
        """`path` is the Unix socket's."""
        self._path = path
        self._link: _Link | None = None
        self._away_until = 0.0
        self._connecting = asyncio.Lock()

    async def reached(self) -> bool:
        """Whether it is there. One that has just gone is not tried again at once: it may be going still."""
        if self._link is not None and self._link.is_lost():
            self._link, self._away_until = None, time.monotonic() + _AWAY_SECONDS
        if self._link is None:
            async with self._connecting:
                await self._connect()
        return self._link is not None

    async def write(self, statements: Sequence[Statement], begin_seconds: float) -> None:
        """Return once all is durable, in one transaction, which others may share.

        Raises NotBegun; what the driver raised; OSError where the scribe went away or stands still, and nobody knows.
        """
        if self._link is None:
            raise NotBegun
        answer = await self._link.ask(Job(time.monotonic() + begin_seconds, statements), begin_seconds)
        if answer.outcome is Outcome.NOT_BEGUN:
            raise NotBegun(answer.message)
        if answer.outcome is Outcome.FAILED:
            raise answer.failure()

    def close(self) -> None:
        """Hang up."""
        if self._link is not None:
            self._link.close()

    async def _connect(self) -> None:
        if self._link is not None or time.monotonic() < self._away_until:
            return
        loop = asyncio.get_running_loop()
        try:
            _, self._link = await loop.create_unix_connection(_Link, str(self._path))
        except OSError:
            self._away_until = time.monotonic() + _AWAY_SECONDS


class _Link(asyncio.Protocol):
    """One connection; answers come in the order of the jobs."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._transport: asyncio.WriteTransport | None = None

    def is_lost(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def ask(self, job: Job, begin_seconds: float) -> Answer:
        """What came of a job. Raises OSError where the connection ends before that is known."""
        if self._transport is None:
            raise ConnectionError("the scribe is gone")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(answer)
        self._transport.write(job_frame(job))
        timer = loop.call_later(begin_seconds + _GRACE_SECONDS, self._hang_up)
        try:
            return await answer
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        """On a scribe that stands still: it may be in the midst of any of what it was given."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # of a stream, it can be written to

    def data_received(self, data: bytes) -> None:
        for answer in self._frames.answers(data):
            _settle(self._waiting.popleft(), answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(ConnectionError(f"the scribe is gone: {error}"))
        self._waiting.clear()


def _settle(waiting: "asyncio.Future[Answer]", answer: Answer) -> None:
    # Whoever asked may have given up meanwhile.
    if not waiting.done():
        waiting.set_result(answer)
