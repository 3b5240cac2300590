"""Orders password checks, so that many attackers delay genuine users only briefly.

The next check is the one with the fewest recent failures, first for its user name and source address, then for its
source address. So an attacker waits behind everyone else, even with a new user name or connection for each attempt.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from cachetools import TTLCache

from clustercert.model.errors import Unavailable

# How long failed checks count after the last attempt from the same source, or with the same user name.
COUNTED_SECONDS = 60
# The maximum number of counts, a few megabytes. Beyond that, the least recently used ones are dropped.
MAX_COUNTED = 40_000


@dataclass(frozen=True, slots=True)
class Contender:
    """The source address and user of a password check. `user` is a user name or id as sent."""

    source: str
    user: str


@dataclass(slots=True, eq=False)
class _Waiting:
    rank: tuple[int, int, int]
    turn: asyncio.Future[None]


class PasswordQueue:
    """Lets `running` checks run at once, and at most `max_waiting` wait. Use one queue per event loop."""

    def __init__(self, running: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = running
        self._max_waiting = max_waiting
        self._waiting: list[_Waiting] = []
        self._arrivals = itertools.count()
        # Attempts that are in progress or have failed. Keys are hashes, because user names can be long.
        self._attempts: TTLCache[int, int] = TTLCache(MAX_COUNTED, COUNTED_SECONDS, clock)

    @contextlib.asynccontextmanager
    async def turn(self, contender: Contender | None) -> AsyncIterator[None]:
        """Wait for a turn, and keep it while the `with` block runs. The contender `None` comes before all others.

        Raises Unavailable if this attempt is the last in a full queue, now or later.
        """
        rank = self._rank(contender)
        try:
            await self._enter(rank)
        except Unavailable:
            self.forget(contender)
            raise
        try:
            yield
        finally:
            self._leave()

    def forget(self, contender: Contender | None) -> None:
        """Stop counting an attempt that succeeded or was rejected."""
        for key in _keys(contender):
            if self._attempts.get(key, 0) > 0:
                self._attempts[key] -= 1

    def _rank(self, contender: Contender | None) -> tuple[int, int, int]:
        counts = [-1, -1]
        for place, key in enumerate(_keys(contender)):
            counts[place] = self._attempts.get(key, 0)
            self._attempts[key] = counts[place] + 1
        return counts[0], counts[1], next(self._arrivals)

    async def _enter(self, rank: tuple[int, int, int]) -> None:
        if self._free:
            self._free -= 1
            return
        mine = _Waiting(rank, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        if len(self._waiting) > self._max_waiting:
            self._reject(max(self._waiting, key=_rank_of))
        try:
            await mine.turn
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif not mine.turn.cancelled() and mine.turn.exception() is None:
                self._leave()
            raise

    def _reject(self, last: _Waiting) -> None:
        self._waiting.remove(last)
        if not last.turn.done():
            message = "Too many logins are waiting. Try again in a moment."
            last.turn.set_exception(Unavailable(message, retry_after=2))

    def _leave(self) -> None:
        """Pass the turn to the first in the queue, or free it if nobody waits."""
        while self._waiting:
            first = min(self._waiting, key=_rank_of)
            self._waiting.remove(first)
            # A cancelled attempt is in the queue until its task runs.
            if not first.turn.done():
                first.turn.set_result(None)
                return
        self._free += 1


def _rank_of(waiting: _Waiting) -> tuple[int, int, int]:
    return waiting.rank


def _keys(contender: Contender | None) -> tuple[int, ...]:
    """Return the key for the user name and source, and the key for the source."""
    if contender is None:
        return ()
    return hash((contender.source, contender.user)), hash(contender.source)
