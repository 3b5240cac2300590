"""Hashes and checks passwords in threads."""

import asyncio
import functools
import os
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from clustercert.identity.password_queue import Contender, PasswordQueue
from clustercert.model.errors import InvalidRequest

T = TypeVar("T")

MIN_CHARACTERS = 8
MAX_BYTES = 1024
# NFC composes at most three code points into two bytes, so a longer string can't fit. Reject it before normalization,
# which blocks the event loop for a time quadratic in the number of consecutive combining characters.
_MAX_CODE_POINTS = MAX_BYTES * 3 // 2

# OWASP Password Storage Cheat Sheet: 19 MiB, two passes, one lane.
DEFAULT_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

# Two threads limit the memory that a worker uses. One core stays free for other requests.
THREADS = max(1, min(2, (os.cpu_count() or 1) - 1))
# The maximum number of waiting checks, which take a few seconds. More are rejected: their clients would time out.
MAX_WAITING = 128


class Passwords:
    """Runs Argon2id in threads. A check takes as long for an unknown user as for a known one."""

    def __init__(self, hasher: PasswordHasher = DEFAULT_HASHER, *, max_waiting: int = MAX_WAITING) -> None:
        self._hasher = hasher
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._queue = PasswordQueue(THREADS, max_waiting)
        self._dummy_hash = _dummy_hash(hasher)

    async def hashed(self, password: str) -> str:
        """Hash a password for storage. Raises Unavailable, or InvalidRequest if it is too short or too long."""
        raw = _bytes(password)
        if raw is None or len(password) < MIN_CHARACTERS:
            raise InvalidRequest(
                f"password: it must have at least {MIN_CHARACTERS} characters and at most {MAX_BYTES} bytes."
            )
        return await self._in_turn(lambda: self._hasher.hash(raw))

    async def matches(self, password: str, stored: str | None, contender: Contender | None = None) -> bool:
        """Whether the password matches the stored hash. Takes as long if `stored` is None. Raises Unavailable."""
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
            # Otherwise the time of a failed login would tell that the user exists and has logged in from this network.
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
    """The hash of a random password, made once by each process."""
    return hasher.hash(secrets.token_urlsafe())


def _bytes(password: str) -> bytes | None:
    """Return the bytes to hash, or None if the string is empty, too long, or not encodable in UTF-8."""
    if len(password) > _MAX_CODE_POINTS:
        return None
    try:
        # RFC 8265, OpaqueString. Keyboards compose accents in different ways, so normalize them.
        raw = unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError:
        return None
    return raw if 1 <= len(raw) <= MAX_BYTES else None
