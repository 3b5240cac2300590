"""Token buckets with rates such as `20/1h`, and the limits of failed authentications."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cachetools import LRUCache, TTLCache

from clustercert.model import Origin
from clustercert.model.errors import NoCredential, TooManyFailures, Unauthenticated
from clustercert.observability import metrics
from clustercert.policy.lifetime import parse_lifetime

Kind = Literal["caller", "project", "source"]

MAX_COUNT = 1_000_000
# Subtract this before rounding up, because a floating-point error must not add a second to a wait.
ROUNDING_SECONDS = 1e-6
# The maximum number of buckets, about 2 MB. Beyond that, the least recently used ones are dropped, so they are full
# again.
MAX_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of requests in a period. All of them may come at once; the bucket then refills at a constant rate."""

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
        """Add tokens, or take them if negative. The debt is at most one full bucket."""
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


WINDOW_SECONDS = 60
# How many sources a worker keeps in memory: a few megabytes. The least recently used sources are dropped first.
MAX_SOURCES = 20_000


@dataclass(slots=True)
class _Window:
    """The failures of one source since its first one."""

    ends_at: float
    count: int = 0


class FailureLimit:
    """Counts failures in windows of one minute, by IPv4 address or IPv6 /64 network.

    `per_minute`: 0 means no limit.
    """

    def __init__(
        self, per_minute: int, max_sources: int = MAX_SOURCES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = per_minute
        self._clock = clock
        self._windows: TTLCache[str, _Window] = TTLCache(max_sources, WINDOW_SECONDS, clock)

    def count(self, origin: Origin) -> None:
        # Changing the value in place keeps the entry's time to live, so the window does not move.
        window = self._windows.get(origin.network)
        if window is None:
            window = self._windows[origin.network] = _Window(self._clock() + WINDOW_SECONDS)
        window.count += 1

    def check(self, origin: Origin, failure: Unauthenticated | None = None) -> None:
        """Raise TooManyFailures if the source has reached the limit.

        `failure`: the failed authentication of this request, if any. A request without a credential is never refused.
        """
        window = self._windows.get(origin.network) if self._limit else None
        if window is None or window.count < self._limit or isinstance(failure, NoCredential):
            return
        metrics.LIMITED.labels("failures").inc()
        seconds = max(1, round(window.ends_at - self._clock()))
        raise TooManyFailures(
            f"Too many failed authentications from your address. Try again in {seconds} seconds.",
            retry_after=seconds,
            known=failure.known if failure is not None else "",
        ) from failure
