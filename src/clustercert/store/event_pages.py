"""Queries that read audit events: a single event, a range of the log, or a page of a filtered list.

Lists contain only sealed events. Leaf indexes follow the order of commits, so a reader that continues after the last
event it has seen misses none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, literal, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.store import tables
from clustercert.store.audit import StoredEvent
from clustercert.store.engine.keyset_pagination import (
    AFTER_LAST_ID,
    FIRST_ID,
    KeysetPagination,
    compares_row_values,
    keyset_range,
)
from clustercert.store.engine.queries import Queries

_event, _place, _checkpoint = tables.audit_event, tables.audit_place, tables.audit_checkpoint

# A page scans at most this many events, even if few match. So its cost does not depend on the filter.
SCANNED = 5_000
# Events are sealed within seconds of their time, but clocks may differ by this much.
SLACK = timedelta(minutes=5)
# The earliest and latest times in Python. Near them, adding or subtracting the slack would overflow.
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Selects events. A field that is `None` does not filter.

    Attributes:
        kind: an event kind, or a prefix followed by an asterisk.
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
    """A page of events, which may be short or empty even if there is a next page.

    The next page begins after the leaf index `cursor`, which is None on the last page.
    """

    events: tuple[StoredEvent, ...]
    cursor: int | None


class EventPages(Queries):
    """Reads audit events."""

    async def event(self, leaf_index: int, project_id: str | None = None) -> StoredEvent | None:
        """Return a sealed event. If a project is given, only an event in that project."""
        query = select(_event, _place.c.leaf_index, _place.c.project_id.label("place_project_id"))
        query = query.join_from(_place, _event, _event.c.id == _place.c.event_id)
        query = query.where(_place.c.leaf_index == leaf_index)
        if project_id is not None:
            query = query.where(_event.c.project_id == project_id)
        row = await self._row(query)
        return None if row is None else StoredEvent(**row._asdict())

    async def page(
        self, wanted: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        """Return at most `limit` events that follow the cursor in the requested order."""
        async with self._database.read() as connection:
            first, behind = await _places(connection, wanted, cursor, newest_first=newest_first)
            scope = _scope(
                wanted.project_id, first, behind, by_row_values=compares_row_values(self._database)
            )
            places = select(_place).where(scope.condition)
            places = places.order_by(*scope.order(_place, newest_first=newest_first))
            # The subquery has a fixed limit. Without it, outdated statistics can make PostgreSQL start from the filter
            # and read every event.
            count = limit if wanted == EventFilter(project_id=wanted.project_id) else SCANNED
            scanned = places.limit(count).subquery("scanned")
            query = select(_event, scanned.c.leaf_index, scanned.c.project_id.label("place_project_id"))
            query = query.where(true(), *_conditions(wanted))
            query = query.join_from(scanned, _event, _event.c.id == scanned.c.event_id)
            query = query.order_by(*scope.order(scanned, newest_first=newest_first)).limit(limit)
            found = tuple(StoredEvent(**row) for row in (await connection.execute(query)).mappings())
            if len(found) == limit:
                return EventPage(found, found[-1].leaf_index)
            last = places.with_only_columns(_place.c.leaf_index).offset(count - 1).limit(1)
            return EventPage(found, (await connection.execute(last)).scalar())


def _scope(project_id: str | None, first: int, behind: int, *, by_row_values: bool) -> KeysetPagination:
    """Return the rows to scan: a range of leaf indexes, optionally only in one project."""
    place, project = _place.c.leaf_index, _place.c.project_id
    owner = None if project_id is None else (project, literal(project_id, project.type))
    return keyset_range(
        place, literal(first, place.type), literal(behind, place.type), owner, by_row_values=by_row_values
    )


async def _places(
    connection: AsyncConnection, wanted: EventFilter, cursor: int | None, *, newest_first: bool
) -> tuple[int, int]:
    """Return the range of leaf indexes to scan, with the end excluded."""
    first, behind = FIRST_ID, AFTER_LAST_ID
    if (size := await size_before(connection, wanted.since)) is not None:
        first = size
    if (size := await _sealed_after(connection, wanted.until)) is not None:
        behind = size
    if cursor is not None and newest_first:
        behind = min(behind, cursor)
    elif cursor is not None:
        first = max(first, min(cursor + 1, AFTER_LAST_ID))
    return first, behind


async def size_before(connection: AsyncConnection, time: datetime | None) -> int | None:
    """Return a size that the log had before a time: events after that time have this or a higher leaf index."""
    if time is None or time - _EARLIEST < SLACK:
        return None
    older = select(_checkpoint.c.size).where(_checkpoint.c.at <= time - SLACK)
    return (await connection.execute(older.order_by(_checkpoint.c.at.desc()).limit(1))).scalar()


async def _sealed_after(connection: AsyncConnection, time: datetime | None) -> int | None:
    """Return a log size that includes all events up to a time."""
    if time is None or _LATEST - time < SLACK:
        return None
    late = time + SLACK
    newer = select(_checkpoint.c.size).where(_checkpoint.c.at >= late)
    size: int | None = (await connection.execute(newer.order_by(_checkpoint.c.at).limit(1))).scalar()
    # A backlog may be sealed in several batches, so events up to that time may follow after this size. Search on.
    step = 1
    while size is not None and (at := await _at(connection, size)) is not None and at <= late:
        size, step = size + step, 2 * step
    return size


async def _at(connection: AsyncConnection, place: int) -> datetime | None:
    """Return the time of the first event at or after a leaf index."""
    query = select(_event.c.at).join_from(_place, _event, _event.c.id == _place.c.event_id)
    query = query.where(_place.c.leaf_index >= place).order_by(_place.c.leaf_index).limit(1)
    return (await connection.execute(query)).scalar()


def _conditions(wanted: EventFilter) -> Iterator[ColumnElement[bool]]:
    """Return the filter conditions that no index covers."""
    if wanted.project_id is not None:
        yield _event.c.project_id == wanted.project_id
    if wanted.kind is not None and wanted.kind.endswith("*"):
        yield _event.c.kind.startswith(wanted.kind[:-1], autoescape=True)
    elif wanted.kind is not None:
        yield _event.c.kind == wanted.kind
    for column in (_event.c.actor, _event.c.subject):
        if (value := getattr(wanted, column.name)) is not None:
            yield column == value
    if wanted.since is not None:
        yield _event.c.at >= wanted.since
    if wanted.until is not None:
        yield _event.c.at <= wanted.until
