"""Limits failed authentications by source address."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache

from clustercert.model import Origin
from clustercert.model.errors import NoCredential, TooManyFailures, Unauthenticated
from clustercert.observability import metrics
from clustercert.policy.lifetime import waiting_time

WINDOW_SECONDS = 60
# A worker counts failures for at most this many sources, which take a few megabytes of memory. The least recently used
# sources are dropped first.
MAX_SOURCES = 20_000


@dataclass(slots=True)
class _Window:
    """The number of failures from one source in a minute. The minute begins with the first failure."""

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
        # Change the window in place: a new cache entry would have a new time to live, and so extend the window.
        window = self._windows.get(origin.network)
        if window is None:
            window = self._windows[origin.network] = _Window(self._clock() + WINDOW_SECONDS)
        window.count += 1

    def check(self, origin: Origin, failure: Unauthenticated | None = None) -> None:
        """Raise TooManyFailures if the source has reached the limit.

        `failure`: the failed authentication of this request, if any. Never raises for a request without a credential.
        """
        window = self._windows.get(origin.network) if self._limit else None
        if window is None or window.count < self._limit or isinstance(failure, NoCredential):
            return
        metrics.LIMITED.labels("failures").inc()
        seconds = max(1, round(window.ends_at - self._clock()))
        raise TooManyFailures(
            f"Too many failed authentications from your address. Try again in {waiting_time(seconds)}.",
            retry_after=seconds,
            known=failure.known if failure is not None else "",
        ) from failure
