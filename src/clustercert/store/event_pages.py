"""Every SQL statement that reads events back: one, a run of them in the log's order, or pages of what is looked for.

Only what has its place in the log is listed: places are in the order of commits, so whoever goes on behind the last
one that they saw misses nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, literal, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.store import tables
from clustercert.store.audit import StoredEvent
from clustercert.store.database import Database
from clustercert.store.walk import BEHIND_ALL, FIRST, Walk, compares_rows, walk

_event, _place, _checkpoint = tables.audit_event, tables.audit_place, tables.audit_checkpoint
_FIELDS = [field.name for field in fields(StoredEvent)]

# A page looks at no more events than this, however few of them it finds: it costs the same whatever is asked for.
SCANNED = 5_000
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
        query = select(*(_event.c[name] for name in _FIELDS if name in _event.c), _place.c.leaf_index)
        query = query.join_from(_event, _place, _event.c.id == _place.c.event_id, isouter=True)
        query = query.where(_event.c.id == event_id)
        if project_id is not None:
            query = query.where(_event.c.project_id == project_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else StoredEvent(**row)

    async def run(self, start: int, limit: int) -> list[StoredEvent]:
        """At most `limit` events from a leaf index on, in the log's order. What was deleted is missing."""
        query = _events_at(_place).where(_place.c.leaf_index >= start)
        query = query.order_by(_place.c.leaf_index).limit(limit)
        async with self._database.read() as connection:
            return [StoredEvent(**row) for row in (await connection.execute(query)).mappings()]

    async def page(
        self, wanted: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        """At most `limit` events, behind the cursor in the order that is asked for."""
        async with self._database.read() as connection:
            first, behind = await _places(connection, wanted, cursor, newest_first=newest_first)
            scope = _scope(wanted.project_id, first, behind, by_rows=compares_rows(self._database))
            places = select(_place).where(scope.condition)
            places = places.order_by(*scope.order(_place, newest_first=newest_first))
            # Places that are chosen first, by a number that is known: else PostgreSQL's planner, which may not have
            # counted for a while, starts from the conditions and reads every event.
            count = limit if wanted == EventFilter(project_id=wanted.project_id) else SCANNED
            looked_at = places.limit(count).subquery("looked_at")
            query = _events_at(looked_at).where(true(), *_conditions(wanted))
            query = query.order_by(*scope.order(looked_at, newest_first=newest_first)).limit(limit)
            found = tuple(StoredEvent(**row) for row in (await connection.execute(query)).mappings())
            if len(found) == limit:
                return EventPage(found, found[-1].leaf_index)
            last = places.with_only_columns(_place.c.leaf_index).offset(count - 1).limit(1)
            return EventPage(found, (await connection.execute(last)).scalar())


def _events_at(places: FromClause) -> Select[Any]:
    columns = ((places if name in places.c else _event).c[name] for name in _FIELDS)
    return select(*columns).join_from(places, _event, _event.c.id == places.c.event_id)


def _scope(project_id: str | None, first: int, behind: int, *, by_rows: bool) -> Walk:
    """The places to look at, as an index has them."""
    place, project = _place.c.leaf_index, _place.c.project_id
    owned = None if project_id is None else (project, literal(project_id, project.type))
    return walk(place, literal(first, place.type), literal(behind, place.type), owned, by_rows=by_rows)


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
    query = select(_event.c.at).join_from(_place, _event, _event.c.id == _place.c.event_id)
    query = query.where(_place.c.leaf_index >= place).order_by(_place.c.leaf_index).limit(1)
    return (await connection.execute(query)).scalar()


def _conditions(wanted: EventFilter) -> Iterator[ColumnElement[bool]]:
    """Those that follow no index."""
    if wanted.kind is not None and wanted.kind.endswith("*"):
        yield _event.c.kind.startswith(wanted.kind[:-1], autoescape=True)
    elif wanted.kind is not None:
        yield _event.c.kind == wanted.kind
    if wanted.actor is not None:
        yield _event.c.actor == wanted.actor
    if wanted.subject is not None:
        yield _event.c.subject == wanted.subject
    if wanted.since is not None:
        yield _event.c.at >= wanted.since
    if wanted.until is not None:
        yield _event.c.at <= wanted.until
