"""Passwords: hashed and checked without stopping anything else. Whose they are is not known here."""

import asyncio
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from clustercert.errors import InvalidRequest, Unavailable

T = TypeVar("T")

MIN_CHARACTERS = 8
MAX_BYTES = 1024
# Of those bytes, before accents are composed: none makes more than three code points of two bytes. Composing takes
# time with the square of how many there are in a row, while nobody else is answered.
_MAX_CODE_POINTS = MAX_BYTES * 3 // 2

# OWASP Password Storage Cheat Sheet: 19 MiB, two passes, one lane. Two at once stay small in a worker.
DEFAULT_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

THREADS = 2
# About a second's work; who comes later is told so instead of waiting for longer than a client does.
MAX_WAITING = 32


class Passwords:
    """Argon2id in a few threads of its own. A check costs the same whether there is such a user or not."""

    def __init__(self, hasher: PasswordHasher = DEFAULT_HASHER, *, max_waiting: int = MAX_WAITING) -> None:
        self._hasher = hasher
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._under_way = 0
        self._bound = THREADS + max_waiting
        self._nobodys_hash = hasher.hash(secrets.token_urlsafe())

    async def hashed(self, password: str) -> str:
        """The hash to keep. Raises InvalidRequest for one that is too short or too long, or Unavailable."""
        raw = _bytes(password)
        if raw is None or len(password) < MIN_CHARACTERS:
            raise InvalidRequest(
                f"A password has at least {MIN_CHARACTERS} characters and at most {MAX_BYTES} bytes."
            )
        return await self._in_thread(lambda: self._hasher.hash(raw))

    async def matches(self, password: str, kept: str | None) -> bool:
        """Whether it is the password that was hashed; if none was, it costs the same. Raises Unavailable."""
        raw = _bytes(password)
        matches = await self._in_thread(lambda: self._verify(kept or self._nobodys_hash, raw or b"\0"))
        return matches and kept is not None and raw is not None

    async def fresher(self, password: str, kept: str) -> str | None:
        """A new hash of a password that matches, if the kept one's parameters aren't today's; else None."""
        raw = _bytes(password)
        if raw is None or not self._hasher.check_needs_rehash(kept):
            return None
        return await self._in_thread(lambda: self._hasher.hash(raw))

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, kept: str, raw: bytes) -> bool:
        try:
            return self._hasher.verify(kept, raw)
        except (VerifyMismatchError, InvalidHashError):
            return False

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._under_way >= self._bound:
            raise Unavailable("Too many logins are waiting. Try again in a moment.", retry_after=2)
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._under_way -= 1


def _bytes(password: str) -> bytes | None:
    """What is hashed, or None for what can't be a password: nothing, too much, or no text at all."""
    if len(password) > _MAX_CODE_POINTS:
        return None
    try:
        # RFC 8265, OpaqueString: keyboards differ in how they compose an accent.
        raw = unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError:
        return None
    return raw if 1 <= len(raw) <= MAX_BYTES else None
