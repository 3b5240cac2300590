"""Password hashing, and the queue of logins that wait for a password check."""

import asyncio
import contextlib
import functools
import itertools
import os
import secrets
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_interface, ip_network
from typing import NamedTuple, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from cachetools import TTLCache

from clustercert.model.errors import InvalidRequest, Unavailable
from clustercert.model.identity import MIN_PASSWORD_CHARACTERS

# How long a counter of failed checks is kept after the last counted attempt.
COUNTED_SECONDS = 60
# A worker keeps at most this many counters, which take a few megabytes of memory. The least recently used counters are
# dropped first.
MAX_COUNTED = 80_000
# A user who has logged in from this source before gets precedence until this many attempts have failed.
KNOWN_FAILURES = 10

# Allowed attempts by IP version and prefix length. Larger networks have more genuine users, and so get more attempts.
_ALLOWED_ATTEMPTS = {4: {32: 1, 24: 4}, 6: {64: 1, 48: 4, 32: 16}}


@dataclass(frozen=True)
class Contender:
    """The user and source of a login with a password.

    Attributes:
        source: an IPv4 address, or an IPv6 address or /64. Other text is treated like a single address.
        user: a user name or id as sent.
        is_known: whether the user has logged in from this source before.
    """

    source: str
    user: str
    is_known: bool = False

    @cached_property
    def networks(self) -> dict[str, int]:
        """The networks that contain the source, smallest first, with the number of allowed attempts in each."""
        try:
            address = ip_interface(self.source).ip
        except ValueError:
            return {self.source: 1}
        allowed = _ALLOWED_ATTEMPTS[address.version]
        return {str(ip_network((address, prefix), strict=False)): allowed[prefix] for prefix in allowed}


class _Rank(NamedTuple):
    """The position of a check in the queue. The check with the lowest rank runs next."""

    precedence: int
    user_failures: int
    network_failures: int
    arrival: int


_FIRST, _KNOWN, _OTHERS = range(3)


@dataclass(slots=True, eq=False)
class Attempt:
    """A password check that waits or runs.

    Attributes:
        rank_of_others: the rank that the attempt would have with an unknown user.
        has_overtaken: whether the attempt overtook other attempts because its user is known.
    """

    contender: Contender | None
    rank: _Rank
    rank_of_others: _Rank
    turn: asyncio.Future[None] | None = None
    has_overtaken: bool = False


class PasswordQueue:
    """Limits concurrent checks to `running`, and waiting checks to `max_waiting`. Use one queue per event loop."""

    def __init__(self, running: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = running
        self._max_waiting = max_waiting
        self._waiting: list[Attempt] = []
        self._arrivals = itertools.count()
        # The numbers of attempts that are in progress or have failed. Keys are hashes, because user names can be long.
        self._attempts: TTLCache[int, int] = TTLCache(MAX_COUNTED, COUNTED_SECONDS, clock)

    @contextlib.asynccontextmanager
    async def turn(self, contender: Contender | None) -> AsyncIterator[Attempt]:
        """Wait until the attempt may run, then run the `with` block. Attempts with the contender `None` run first.

        Raises Unavailable if the queue is full, and this attempt is the last attempt from the network with the most
        waiting attempts.
        """
        attempt = self._new_attempt(contender)
        try:
            await self._enter(attempt)
        except Unavailable:
            self.forget(contender)
            raise
        try:
            yield attempt
        finally:
            self._leave()

    @contextlib.asynccontextmanager
    async def turn_without_precedence(self, attempt: Attempt) -> AsyncIterator[None]:
        """Wait as long as the attempt would have waited with an unknown user. Raises Unavailable."""
        await self._enter(Attempt(attempt.contender, attempt.rank_of_others, attempt.rank_of_others))
        try:
            yield
        finally:
            self._leave()

    def forget(self, contender: Contender | None) -> None:
        """Remove an attempt from the counters, because it succeeded or was rejected."""
        for key in _keys(contender):
            if self._attempts.get(key, 0) > 0:
                self._attempts[key] -= 1

    def _new_attempt(self, contender: Contender | None) -> Attempt:
        arrival = next(self._arrivals)
        if contender is None:
            first = _Rank(_FIRST, 0, 0, arrival)
            return Attempt(None, first, first)
        of_user, *of_networks = (self._attempts.get(key, 0) for key in _keys(contender))
        for key in _keys(contender):
            self._attempts[key] = self._attempts.get(key, 0) + 1
        allowed = contender.networks.values()
        worst = max(count // attempts for count, attempts in zip(of_networks, allowed, strict=True))
        others = _Rank(_OTHERS, of_user, worst, arrival)
        is_preferred = contender.is_known and of_user < KNOWN_FAILURES
        return Attempt(contender, others._replace(precedence=_KNOWN) if is_preferred else others, others)

    async def _enter(self, attempt: Attempt) -> None:
        if self._free:
            self._free -= 1
            return
        attempt.has_overtaken = any(
            attempt.rank < each.rank < attempt.rank_of_others for each in self._waiting
        )
        attempt.turn = asyncio.get_running_loop().create_future()
        self._waiting.append(attempt)
        if len(self._waiting) > self._max_waiting:
            self._reject(self._last_of_largest_network())
        try:
            await attempt.turn
        except asyncio.CancelledError:
            if attempt in self._waiting:
                self._waiting.remove(attempt)
            elif not attempt.turn.cancelled() and attempt.turn.exception() is None:
                self._leave()
            raise

    def _last_of_largest_network(self) -> Attempt:
        """Return the last attempt of the lowest precedence from the network with the most waiting attempts.

        To compare networks, the number of waiting attempts is divided by the number of attempts that are allowed in the
        network.
        """
        lowest = max(each.rank.precedence for each in self._waiting)
        candidates = [each for each in self._waiting if each.rank.precedence == lowest]
        waiting = Counter(network for each in candidates for network in _networks(each.contender))

        def size(attempt: Attempt) -> int:
            networks = _networks(attempt.contender).items()
            return max((waiting[network] // allowed for network, allowed in networks), default=0)

        return max(candidates, key=lambda each: (size(each), each.rank))

    def _reject(self, last: Attempt) -> None:
        self._waiting.remove(last)
        if last.turn is not None and not last.turn.done():
            message = "Too many logins are waiting. Try again in a moment."
            last.turn.set_exception(Unavailable(message, retry_after=2))

    def _leave(self) -> None:
        """Let the next attempt in the queue run, or free the slot if no attempt waits."""
        while self._waiting:
            first = min(self._waiting, key=lambda each: each.rank)
            self._waiting.remove(first)
            # A cancelled attempt stays in the queue until its task runs again.
            if first.turn is not None and not first.turn.done():
                first.turn.set_result(None)
                return
        self._free += 1


def _networks(contender: Contender | None) -> dict[str, int]:
    return contender.networks if contender is not None else {}


def _keys(contender: Contender | None) -> tuple[int, ...]:
    """Return the keys of the attempt counters: one for user name and source together, and one for each network."""
    if contender is None:
        return ()
    return hash((contender.source, contender.user)), *map(hash, contender.networks)


T = TypeVar("T")

MAX_BYTES = 1024
# NFC composes at most three code points into two bytes, so a longer string exceeds MAX_BYTES. Reject such a string
# before normalization, which takes time quadratic in the number of consecutive combining characters.
_MAX_CODE_POINTS = MAX_BYTES * 3 // 2

# OWASP Password Storage Cheat Sheet: 19 MiB, two passes, one lane.
DEFAULT_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

# Use at most two threads, to limit the memory of a worker, and fewer threads than cores (but at least one), to keep a
# core free for other requests.
THREADS = max(1, min(2, (os.cpu_count() or 1) - 1))
# The maximum number of waiting checks, which together take a few seconds. More checks are rejected, because their
# clients would time out.
MAX_WAITING = 128


class Passwords:
    """Runs Argon2id in threads. A check takes equally long for known and unknown users."""

    def __init__(self, hasher: PasswordHasher = DEFAULT_HASHER, *, max_waiting: int = MAX_WAITING) -> None:
        self._hasher = hasher
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._queue = PasswordQueue(THREADS, max_waiting)
        self._dummy_hash = _dummy_hash(hasher)

    async def hashed(self, password: str) -> str:
        """Hash a password for storage. Raises Unavailable, or InvalidRequest for a password of a wrong length."""
        raw = _bytes(password)
        if raw is None or len(password) < MIN_PASSWORD_CHARACTERS:
            raise InvalidRequest(
                f"password: it must have at least {MIN_PASSWORD_CHARACTERS} characters and at most {MAX_BYTES} bytes."
            )
        return await self._in_turn(lambda: self._hasher.hash(raw))

    async def matches(self, password: str, stored: str | None, contender: Contender | None = None) -> bool:
        """Whether the password matches the stored hash. Takes the same time if `stored` is None. Raises Unavailable."""
        raw = _bytes(password)
        hashed = stored or self._dummy_hash

        def verify() -> bool:
            return self._verify(hashed, raw or b"\0")

        async with self._queue.turn(contender) as attempt:
            verified = await self._run(verify)
        matches = verified and stored is not None and raw is not None
        if matches:
            self._queue.forget(contender)
        elif attempt.has_overtaken:
            # Otherwise a fast failure would reveal that the user exists and has logged in from this source before.
            async with self._queue.turn_without_precedence(attempt):
                await self._run(verify)
        return matches

    async def rehashed(self, password: str, stored: str) -> str | None:
        """Return a new hash of a matching password if the hash parameters have changed, else None."""
        raw = _bytes(password)
        if raw is None or not self._hasher.check_needs_rehash(stored):
            return None
        return await self._in_turn(lambda: self._hasher.hash(raw))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, stored: str, raw: bytes) -> bool:
        try:
            return self._hasher.verify(stored, raw)
        except (VerifyMismatchError, InvalidHashError):
            return False

    async def _in_turn(self, work: Callable[[], T]) -> T:
        async with self._queue.turn(None):
            return await self._run(work)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


@functools.cache
def _dummy_hash(hasher: PasswordHasher) -> str:
    """Return the hash of a random password. Each process computes this hash once."""
    return hasher.hash(secrets.token_urlsafe())


def _bytes(password: str) -> bytes | None:
    """Return the bytes to hash, or None if the string is empty, too long, or not encodable in UTF-8."""
    if len(password) > _MAX_CODE_POINTS:
        return None
    try:
        # RFC 8265, OpaqueString. Keyboards compose accented letters in different ways, so normalize them.
        raw = unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError:
        return None
    return raw if 1 <= len(raw) <= MAX_BYTES else None
