"""Aggregates repeated refusals of the same caller, so that a caller can't cause a disk write with each request."""

import asyncio
import functools
from collections import Counter

import structlog

from clustercert.audit.flushing import FLUSH_SECONDS, flush_until_stopped
from clustercert.model import Actor, Origin
from clustercert.model.errors import Unavailable
from clustercert.model.events.issuance import CertificateRefused
from clustercert.model.events.operation import (
    AuditBatchRefused,
    RefusalCount,
    RefusalsRepeated,
    RequestRefused,
)
from clustercert.store.engine.database import Database

logger = structlog.get_logger()

# At most this many refusals of one caller are recorded individually between two flushes.
SINGLE_EVENTS = 10
# At most this many callers and projects are counted separately.
MAX_COUNTED = 1000
OTHER = "other"

Refusal = CertificateRefused | RequestRefused | AuditBatchRefused
_Counts = dict[tuple[str, str], RefusalCount]


class RepeatedRefusals:
    """Counts refusals by caller and project, after each caller's first few. Each worker has one instance."""

    def __init__(
        self,
        single_events: int = SINGLE_EVENTS,
        max_counted: int = MAX_COUNTED,
        seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._single_events = single_events
        self._max_counted = max_counted
        self._seconds = seconds
        self._singles: Counter[str] = Counter()
        self._counts: dict[tuple[str, str | None], _Counts] = {}

    def is_repeated(self, event: Refusal) -> bool:
        """Count a refusal for a later event. Returns False if it must be recorded as a separate event instead."""
        caller = event.actor.id
        if self._singles[caller] < self._single_events:
            self._singles[caller] += 1
            return False
        self._add(
            (caller, event.project_id),
            {
                "kind": event.kind,
                "error": event.reason if isinstance(event, AuditBatchRefused) else event.error,
                "count": 1,
                "first": event.at,
                "last": event.at,
                "last_subject": event.subject,
                "last_source": event.actor.origin.address,
            },
        )
        return True

    def _add(self, key: tuple[str, str | None], refusals: RefusalCount) -> None:
        if key not in self._counts and len(self._counts) >= self._max_counted:
            key = OTHER, None
        counts = self._counts.setdefault(key, {})
        kind = refusals["kind"], refusals["error"]
        counts[kind] = _sum(counts[kind], refusals) if kind in counts else refusals

    async def flush(self, database: Database) -> None:
        """Record the refusals since the last flush. If this raises Unavailable, keeps them for the next flush."""
        self._singles.clear()
        if not self._counts:
            return
        counts, self._counts = self._counts, {}
        try:
            await database.record(*(_event(*key, tuple(each.values())) for key, each in counts.items()))
        except Unavailable:
            for key, each in counts.items():
                for refusals in each.values():
                    self._add(key, refusals)
            raise

    async def flush_periodically(self, database: Database, stop: asyncio.Event) -> None:
        """Flush periodically until `stop` is set, and then once more."""
        await flush_until_stopped(functools.partial(self.flush, database), self._seconds, stop)
        if self._counts:
            logger.error("repeated refusals could not be recorded", callers=len(self._counts))


def _event(caller: str, project_id: str | None, refusals: tuple[RefusalCount, ...]) -> RefusalsRepeated:
    last = max(refusals, key=lambda each: each["last"])
    return RefusalsRepeated(
        at=last["last"],
        project_id=project_id,
        actor=Actor(caller, Origin(last["last_source"], Origin.local().request_id)),
        subject=caller,
        count=sum(each["count"] for each in refusals),
        refusals=refusals,
    )


def _sum(one: RefusalCount, other: RefusalCount) -> RefusalCount:
    later = other if other["last"] >= one["last"] else one
    return {
        **later,
        "count": one["count"] + other["count"],
        "first": min(one["first"], other["first"]),
    }
