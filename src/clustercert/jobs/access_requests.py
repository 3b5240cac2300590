"""Closes access requests whose time is over."""

from collections.abc import Awaitable, Callable

from clustercert.jobs.leader_job import PeriodicWork
from clustercert.requests.service import EXPIRED_AT_ONCE

INTERVAL = 1.0


def expiry(expire_due: Callable[[], Awaitable[int]]) -> PeriodicWork:
    """Create the periodic task that closes the requests whose time is over, within about a second.

    Args:
        expire_due: closes a batch of requests, and returns how many were found; see `AccessRequests`.
    """

    async def run() -> float:
        return 0.0 if await expire_due() == EXPIRED_AT_ONCE else INTERVAL

    return PeriodicWork("close access requests", run, retry_seconds=INTERVAL)
