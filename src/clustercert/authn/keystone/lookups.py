"""Caches Keystone's answers about credentials. Concurrent lookups of one credential share one request to Keystone."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import TLRUCache, TTLCache

from clustercert.model.errors import CredentialUnverified, Unauthenticated

# A user with many groups takes about 20 KiB.
MAX_ENTRIES = 4_000
# How long refusals are remembered. An entry takes less than 1 KiB.
REFUSAL_SECONDS = 5.0
MAX_REFUSALS = 10_000
# The maximum number of concurrent lookups. More would use up the worker's limit of requests, and delay other identity
# systems.
MAX_UNDER_WAY = 128

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Found(Generic[V]):
    """An answer of Keystone, and for how many seconds after the request it may be used. Zero: only for this request."""

    value: V
    seconds: float


Ask = Callable[[], Awaitable[Found[V]]]


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    ends_at: float


class Lookups(Generic[V]):
    """Answers by key. Keys are hashes, so that no credential is kept."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        size: int = MAX_ENTRIES,
        refusals: int = MAX_REFUSALS,
        under_way: int = MAX_UNDER_WAY,
    ) -> None:
        self._clock = clock
        self._found: TLRUCache[bytes, _Entry[V]] = TLRUCache(size, _end_of, clock)
        self._refused: TTLCache[bytes, Unauthenticated] = TTLCache(refusals, REFUSAL_SECONDS, clock)
        self._under_way: dict[bytes, asyncio.Task[V]] = {}
        self._most_under_way = under_way

    def cached(self, key: bytes) -> V | None:
        """Return the cached answer, or None if there is none."""
        entry = self._found.get(key)
        return entry.value if entry is not None else None

    async def get(self, key: bytes, ask: Ask[V]) -> V:
        """Return the cached answer, or ask. Raises Unauthenticated or CredentialUnverified."""
        if (value := self.cached(key)) is not None:
            return value
        if (refused := self._refused.get(key)) is not None:
            # Raise a new exception, because an exception object collects the tracebacks of all its raises.
            raise Unauthenticated(refused.reason, known=refused.known)
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= self._most_under_way:
                raise CredentialUnverified(
                    "The identity service responds slowly. Try again in a moment.", retry_after=1
                )
            task = self._under_way[key] = asyncio.create_task(self._ask(key, ask))
            task.add_done_callback(_retrieve)
        # A cancelled request does not cancel the lookup for others.
        return await asyncio.shield(task)

    async def _ask(self, key: bytes, ask: Ask[V]) -> V:
        began = self._clock()
        try:
            found = await ask()
        except Unauthenticated as refusal:
            self._refused[key] = Unauthenticated(refusal.reason, known=refusal.known)
            raise
        finally:
            del self._under_way[key]
        if found.seconds > 0:
            self._found[key] = _Entry(found.value, began + found.seconds)
        return found.value


def _end_of(_key: bytes, entry: _Entry[V], _now: float) -> float:
    return entry.ends_at


def _retrieve(task: "asyncio.Task[V]") -> None:
    """Fetch the task's exception, or asyncio logs it if all requests that waited were cancelled."""
    if not task.cancelled():
        task.exception()
