"""Aggregates failed authentications, so that not every unauthenticated request causes a disk write."""

import asyncio
import functools
from collections.abc import Callable
from datetime import datetime

import structlog

from clustercert.audit.flushing import FLUSH_SECONDS, flush_until_stopped
from clustercert.model import Actor, Origin
from clustercert.model.errors import Unavailable
from clustercert.model.events.operation import AuthenticationsFailed, FailureSource
from clustercert.store.engine.database import Database

logger = structlog.get_logger()

# At most this many addresses are counted separately in one event.
MAX_SOURCES = 64
MAX_KNOWN = 16
OTHER = "other"


class FailedAuthentications:
    """Counts failed authentications by source address. Each worker has one instance.

    Only ids of existing users and access keys are recorded. Any other name may be a secret sent in the wrong field.
    """

    def __init__(
        self, now: Callable[[], datetime], max_sources: int = MAX_SOURCES, seconds: float = FLUSH_SECONDS
    ) -> None:
        self._now = now
        self._max_sources = max_sources
        self._seconds = seconds
        self._counts: dict[str, FailureSource] = {}

    def count(self, source: str, known: str = "") -> None:
        """Count a rejected request. `known`: the existing user or access key that it named, if any."""
        now = self._now()
        self._add(
            {"source": source, "count": 1, "first": now, "last": now, "known": (known,) if known else ()}
        )

    def _add(self, failures: FailureSource) -> None:
        source = failures["source"]
        if source not in self._counts and len(self._counts) >= self._max_sources:
            source = OTHER
        earlier = self._counts.get(source)
        self._counts[source] = (
            _sum(earlier, failures) if earlier is not None else {**failures, "source": source}
        )

    async def flush(self, database: Database) -> None:
        """Record the failures since the last flush. If this raises Unavailable, keeps them for the next flush."""
        if not self._counts:
            return
        counts, self._counts = self._counts, {}
        try:
            await database.record(self._event(counts))
        except Unavailable:
            for failures in counts.values():
                self._add(failures)
            raise

    def _event(self, counts: dict[str, FailureSource]) -> AuthenticationsFailed:
        by_count = sorted(counts.values(), key=lambda failures: (-failures["count"], failures["source"]))
        return AuthenticationsFailed(
            at=self._now(),
            actor=Actor("unknown", Origin.local()),
            subject="clustercert",
            count=sum(failures["count"] for failures in by_count),
            sources=tuple({**failures, "known": tuple(sorted(failures["known"]))} for failures in by_count),
        )

    async def flush_periodically(self, database: Database, stop: asyncio.Event) -> None:
        """Flush periodically until `stop` is set, and then once more."""
        await flush_until_stopped(functools.partial(self.flush, database), self._seconds, stop)
        if self._counts:
            logger.error("failed authentications could not be recorded", sources=len(self._counts))


def _sum(earlier: FailureSource, later: FailureSource) -> FailureSource:
    known = dict.fromkeys((*earlier["known"], *later["known"]))
    return {
        "source": earlier["source"],
        "count": earlier["count"] + later["count"],
        "first": min(earlier["first"], later["first"]),
        "last": max(earlier["last"], later["last"]),
        "known": tuple(known)[:MAX_KNOWN],
    }
