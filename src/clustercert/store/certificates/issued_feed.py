"""Reads the certificates that all processes issue, in the order of the audit log."""

import json
from collections.abc import Sequence

import structlog
from sqlalchemy import select

from clustercert.model import RecordedIssue
from clustercert.observability import metrics
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.engine.queries import Queries

_event, _place, _log = tables.audit_event, tables.audit_place, tables.audit_log

logger = structlog.get_logger()

BATCH = 5000


class IssuedFeed(Queries):
    """Follows the sealed events. Leaf indexes have no gaps and follow the order of commits, so no event is missed."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._next: int | None = None

    async def read(self) -> Sequence[RecordedIssue]:
        """Return the certificates in the next batch of events. The first call skips all existing events."""
        async with self._database.read() as connection:
            size = (await connection.execute(select(_log.c.size))).scalar() or 0
            start = size if self._next is None else self._next
            end = min(size, start + BATCH)
            query = (
                select(_event.c.id, _event.c.actor, _event.c.project_id, _event.c.body)
                .join(_place, _place.c.event_id == _event.c.id)
                .where(_place.c.leaf_index >= start, _place.c.leaf_index < end)
                .where(_event.c.kind == "certificate.issued")
            )
            rows = (await connection.execute(query)).all() if end > start else []
        self._next = end
        return [
            issued
            for row in rows
            if (issued := _issued(row.id, row.actor, row.project_id, row.body)) is not None
        ]


def _issued(event_id: int, user_id: str, project_id: str | None, body: bytes) -> RecordedIssue | None:
    """Return the issued certificate that an event records. If the event is damaged, log an error and return None."""
    try:
        event = json.loads(body)
        return RecordedIssue(event["request_id"], user_id, project_id or "", event["source"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        metrics.RATE_READ_FAILURES.inc()
        cause = type(error).__name__
        logger.error("unreadable event not counted for rates", event_id=event_id, cause=cause)  # noqa: TRY400 - no traceback needed
        return None
