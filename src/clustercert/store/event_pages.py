"""Every SQL statement that reads events back: one, a run of them in the log's order, or pages of what is looked for.

Only what has its place in the log is listed: places are in the order of commits, so whoever goes on behind the last
one that they saw misses nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, literal, select, true
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnCollection

from clustercert.store import tables
from clustercert.store.audit import StoredEvent
from clustercert.store.database import Database
from clustercert.store.walk import BEHIND_ALL, FIRST, Walk, compares_rows, walk

_event, _checkpoint = tables.audit_event, tables.audit_checkpoint
_COLUMNS = [_event.c[field.name] for field in fields(StoredEvent)]

# As the indexes say it: PostgreSQL doesn't see that it follows from a comparison of rows.
_HAS_PLACE = _event.c.leaf_index.is_not(None)

# A page looks at no more events than this, however few of them it finds: it costs the same whatever is asked for.
SCANNED = 10_000
# An event is sealed within seconds of its time; clocks may differ by this much.
SLACK = timedelta(minutes=5)
# Bounds of the calendar: a time that is asked for may be as near to one as it likes.
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are looked for; None is all of them.

    Attributes:
        kind: a kind, or with an asterisk at its end all that begin so.
        since, until: bounds of the event's time, both inclusive.
    """

    project_id: str | None = None
    kind: str | None = None
    actor: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some of what is looked for, in order.

    Attributes:
        cursor: go on behind this leaf index; None where there is nothing more. A page may be short, even empty, and
            not be the last.
    """

    events: tuple[StoredEvent, ...]
    cursor: int | None


class EventPages:
    """The events of the log, to be read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def event(self, event_id: int, project_id: str | None = None) -> StoredEvent | None:
        """One event, sealed or not; with a project, only if it is that one's."""
        query = select(*_COLUMNS).where(_event.c.id == event_id)
        if project_id is not None:
            query = query.where(_event.c.project_id == project_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else StoredEvent(**row)

    async def run(self, start: int, limit: int) -> list[StoredEvent]:
        """At most `limit` events from a leaf index on, in the log's order. What was deleted is missing."""
        query = (
            select(*_COLUMNS).where(_event.c.leaf_index >= start).order_by(_event.c.leaf_index).limit(limit)
        )
        async with self._database.read() as connection:
            return [StoredEvent(**row) for row in (await connection.execute(query)).mappings()]

    async def page(
        self, wanted: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        """At most `limit` events, behind the cursor in the order that is asked for."""
        async with self._database.read() as connection:
            first, behind = await _places(connection, wanted, cursor, newest_first=newest_first)
            scope = _scope(wanted.project_id, first, behind, by_rows=compares_rows(self._database))
            found = await _found(connection, scope, wanted, limit, newest_first=newest_first)
            if len(found) == limit:
                return EventPage(found, found[-1].leaf_index)
            last = (
                _in_order(scope, _event.c.leaf_index, newest_first=newest_first).offset(SCANNED - 1).limit(1)
            )
            return EventPage(found, (await connection.execute(last)).scalar())


async def _places(
    connection: AsyncConnection, wanted: EventFilter, cursor: int | None, *, newest_first: bool
) -> tuple[int, int]:
    """Where in the log to look: from the first place to before the second."""
    first, behind = FIRST, BEHIND_ALL
    if (size := await _sealed_by(connection, wanted.since)) is not None:
        first = size
    if (size := await _sealed_after(connection, wanted.until)) is not None:
        behind = size
    if cursor is not None and newest_first:
        behind = min(behind, cursor)
    elif cursor is not None:
        first = max(first, min(cursor + 1, BEHIND_ALL))
    return first, behind


def _scope(project_id: str | None, first: int, behind: int, *, by_rows: bool) -> Walk:
    """The events to look at, as an index has them."""
    place, project = _event.c.leaf_index, _event.c.project_id
    owned = None if project_id is None else (project, literal(project_id, project.type))
    return walk(place, literal(first, place.type), literal(behind, place.type), owned, by_rows=by_rows)


def _in_order(scope: Walk, *columns: Column[Any], newest_first: bool) -> Select[Any]:
    order = scope.order(_event, newest_first=newest_first)
    return select(*columns).where(_HAS_PLACE, scope.condition).order_by(*order)


async def _sealed_by(connection: AsyncConnection, time: datetime | None) -> int | None:
    """How large the log was before a time: what happened after it has a place behind that."""
    if time is None or time - _EARLIEST < SLACK:
        return None
    older = select(_checkpoint.c.size).where(_checkpoint.c.at <= time - SLACK)
    return (await connection.execute(older.order_by(_checkpoint.c.at.desc()).limit(1))).scalar()


async def _sealed_after(connection: AsyncConnection, time: datetime | None) -> int | None:
    """A size of the log within which everything has its place that happened before a time."""
    if time is None or _LATEST - time < SLACK:
        return None
    late = time + SLACK
    newer = select(_checkpoint.c.size).where(_checkpoint.c.at >= late)
    size: int | None = (await connection.execute(newer.order_by(_checkpoint.c.at).limit(1))).scalar()
    # What has its place behind it happened after it, unless more had waited than is sealed at a time.
    step = 1
    while size is not None and (at := await _at(connection, size)) is not None and at <= late:
        size, step = size + step, 2 * step
    return size


async def _at(connection: AsyncConnection, place: int) -> datetime | None:
    """When the first event at or behind a place happened."""
    query = select(_event.c.at).where(_event.c.leaf_index >= place).order_by(_event.c.leaf_index).limit(1)
    return (await connection.execute(query)).scalar()


async def _found(
    connection: AsyncConnection, scope: Walk, wanted: EventFilter, limit: int, *, newest_first: bool
) -> tuple[StoredEvent, ...]:
    looked_at = _in_order(scope, *_COLUMNS, newest_first=newest_first).limit(SCANNED).subquery("looked_at")
    query = (
        select(looked_at)
        .where(true(), *_conditions(wanted, looked_at.c))
        .order_by(*scope.order(looked_at, newest_first=newest_first))
        .limit(limit)
    )
    return tuple(StoredEvent(**row) for row in (await connection.execute(query)).mappings())


def _conditions(wanted: EventFilter, column: ColumnCollection[str, Any]) -> Iterator[ColumnElement[bool]]:
    """Those that follow no index."""
    if wanted.kind is not None and wanted.kind.endswith("*"):
        yield column.kind.startswith(wanted.kind[:-1], autoescape=True)
    elif wanted.kind is not None:
        yield column.kind == wanted.kind
    if wanted.actor is not None:
        yield column.actor == wanted.actor
    if wanted.subject is not None:
        yield column.subject == wanted.subject
    if wanted.since is not None:
        yield column.at >= wanted.since
    if wanted.until is not None:
        yield column.at <= wanted.until
