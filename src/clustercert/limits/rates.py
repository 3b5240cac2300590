"""Rates such as `20/1h`, and token buckets that enforce them.

This module imports neither metrics nor logging, because the settings import it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cachetools import LRUCache

from clustercert.policy.lifetime import parse_lifetime

Kind = Literal["caller", "project", "source"]

MAX_COUNT = 1_000_000
# Subtract this before rounding up, so that a floating-point error does not add a second to the wait.
ROUNDING_SECONDS = 1e-6
# The maximum number of buckets, which take about 2 MB of memory. The least recently used buckets are dropped first. A
# dropped bucket is full when it is used again.
MAX_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of requests in a period, which may all come at once. The bucket then refills at a constant rate."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{self.seconds:g}s"


def parse_rate(value: object) -> Rate:
    """Parse a rate such as `20/1h`. Raises ValueError."""
    if isinstance(value, Rate):
        return value
    count, slash, period = str(value).partition("/")
    if not slash or not count.isascii() or not count.isdigit() or not 1 <= int(count) <= MAX_COUNT:
        raise ValueError(f"expected a number from 1 to {MAX_COUNT} and a period, like 20/1h")
    seconds = parse_lifetime(period).total_seconds()
    if not 1 <= seconds <= 30 * 86400:
        raise ValueError("the period must be 1s to 30d")
    return Rate(int(count), seconds)


# A user can create 300 tokens and 300 temporary keys at once, and then 60 tokens and 20 temporary keys a minute. The
# rates are high, because a pipeline may log in once for each of its jobs.
TOKENS = Rate(300, 300)
TEMPORARY_KEYS = Rate(300, 900)
# A caller can send 300 revocations at once, and then one a second. A project has five times as many, so that one admin
# can't use up the revocations of other admins. After an incident, an admin revokes a cluster, or hundreds of users.
REVOCATIONS = Rate(300, 300)
PROJECT_REVOCATIONS = Rate(1500, 300)


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class TokenBuckets:
    """One token bucket for each key, such as a user id, in the memory of this process."""

    def __init__(
        self, rate: Rate, max_keys: int = MAX_KEYS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: LRUCache[str, _Bucket] = LRUCache(max_keys)

    def seconds_until_token(self, key: str) -> int:
        """Return the number of whole seconds until a token is available; 0 if one is available now."""
        missing = 1 - self._refilled(key).tokens
        return max(0, math.ceil(missing * self._rate.seconds / self._rate.count - ROUNDING_SECONDS))

    def add(self, key: str, tokens: int) -> None:
        """Add tokens, or take tokens if the number is negative. The balance never falls below minus one full bucket."""
        bucket = self._refilled(key)
        limit = self._rate.count
        bucket.tokens = min(limit, max(-limit, bucket.tokens + tokens))

    def _refilled(self, key: str) -> _Bucket:
        now, limit = self._clock(), self._rate.count
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(limit, now)
        bucket.tokens = min(limit, bucket.tokens + (now - bucket.at) * limit / self._rate.seconds)
        bucket.at = now
        return bucket
