"""Limits failed authentications by source address, and counts those of one account."""

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

ACCOUNT_WINDOW_SECONDS = 600
# Somebody who forgot a password fails fewer times than this in a window.
MANY_OF_ACCOUNT = 10


@dataclass(slots=True)
class _Window:
    """The number of failures from one source, or of one account. The window begins with the first failure."""

    ends_at: float
    count: int = 0


class FailureLimit:
    """Counts failures in windows of one minute, by IPv4 address or IPv6 /64 network.

    A metric shows that many failures concern one account, from any addresses. The account is not locked.

    `per_minute`: 0 means no limit.
    """

    def __init__(
        self, per_minute: int, max_sources: int = MAX_SOURCES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = per_minute
        self._clock = clock
        self._windows: TTLCache[str, _Window] = TTLCache(max_sources, WINDOW_SECONDS, clock)
        self._accounts: TTLCache[str, _Window] = TTLCache(max_sources, ACCOUNT_WINDOW_SECONDS, clock)

    def count(self, origin: Origin, account: str = "") -> None:
        """Count a failure. `account`: the id of the existing user or access key that the request named, if any."""
        self._count(self._windows, origin.network)
        if account and self._count(self._accounts, account) == MANY_OF_ACCOUNT:
            metrics.ACCOUNTS_WITH_FAILURES.inc()

    def _count(self, windows: TTLCache[str, _Window], key: str) -> int:
        # Change the window in place: a new cache entry would have a new time to live, and so extend the window.
        window = windows.get(key)
        if window is None:
            window = windows[key] = _Window(self._clock() + windows.ttl)
        window.count += 1
        return window.count

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
            unknown=failure.unknown if failure is not None else "",
        ) from failure
