"""Requests that proved nothing are counted, and recorded together, so that nobody can buy a disk write with each.

An event a minute and worker at most, however many requests there are and wherever they come from.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from clustercert.background import pause
from clustercert.errors import Unavailable
from clustercert.model import AuditEvent, Origin
from clustercert.store.database import Database

logger = structlog.get_logger()

FLUSH_SECONDS = 60
# Addresses that are told apart in one event; a network of them costs no more than that.
MAX_SOURCES = 64
MAX_KNOWN = 16
OTHER = "other"


@dataclass(slots=True)
class _Count:
    """How often one source failed.

    Attributes:
        known: ids of users and access keys that there are, which it named.
    """

    first: datetime
    last: datetime
    count: int = 0
    known: set[str] = field(default_factory=set)

    def add(self, other: "_Count") -> None:
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.count += other.count
        for one in other.known:
            if len(self.known) < MAX_KNOWN:
                self.known.add(one)

    def detail(self, source: str) -> dict[str, object]:
        return {
            "source": source,
            "count": self.count,
            "first": self.first.isoformat(),
            "last": self.last.isoformat(),
            "known": sorted(self.known),
        }


class FailedAuthentications:
    """Counts by source. One for each worker.

    `known` names users and access keys of the service by their ids; what else a caller claims to be isn't kept: it
    may be a secret in the wrong place.
    """

    def __init__(
        self, now: Callable[[], datetime], max_sources: int = MAX_SOURCES, seconds: float = FLUSH_SECONDS
    ) -> None:
        self._now = now
        self._max_sources = max_sources
        self._seconds = seconds
        self._counts: dict[str, _Count] = {}

    def count(self, source: str, known: str = "") -> None:
        """Count one request of an address that was not let in."""
        now = self._now()
        self._add(source, _Count(now, now, 1, {known} if known else set()))

    def _add(self, source: str, count: _Count) -> None:
        if source not in self._counts and len(self._counts) >= self._max_sources:
            source = OTHER
        if source in self._counts:
            self._counts[source].add(count)
        else:
            self._counts[source] = count

    async def flush(self, database: Database) -> None:
        """Record what was counted since the last time, if anything was. Raises Unavailable, and nothing is lost."""
        if not self._counts:
            return
        counts, self._counts = self._counts, {}
        try:
            async with database.write(self._event(counts)):
                pass
        except Unavailable:
            for source, count in counts.items():
                self._add(source, count)
            raise

    def _event(self, counts: dict[str, _Count]) -> AuditEvent:
        total = sum(count.count for count in counts.values())
        return AuditEvent(
            at=self._now(),
            kind="authentication.failed",
            project_id=None,
            actor="unknown",
            subject="clustercert",
            origin=Origin.local(),
            detail={
                "count": total,
                "sources": [
                    counts[source].detail(source)
                    for source in sorted(counts, key=lambda source: (-counts[source].count, source))
                ],
            },
        )

    def flushing(self, database: Database) -> Callable[[asyncio.Event], Coroutine[object, object, None]]:
        """Record what was counted once a minute, and at the end, for as long as the worker serves."""

        async def flush(stop: asyncio.Event) -> None:
            while not stop.is_set():
                await pause(stop, self._seconds)
                with contextlib.suppress(Unavailable):
                    await self.flush(database)
            if self._counts:
                logger.error("failed authentications could not be recorded", sources=len(self._counts))

        return flush
