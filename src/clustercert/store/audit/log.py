"""Queries that create the audit log, append to it, and read its events.

The module `events` records the events themselves. Once assigned, an event's leaf index never changes. Lists of events
contain only sealed events. Leaf indexes follow the order of commits, so a reader that continues after the last event it
has seen misses no event.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    TextClause,
    UpdateBase,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.merkle.tiles import TileId
from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.engine.keyset_pagination import (
    AFTER_LAST_ID,
    FIRST_ID,
    KeysetPagination,
    compares_row_values,
    keyset_range,
)
from clustercert.store.engine.queries import Queries

T = TypeVar("T")

_Change = tuple[UpdateBase | TextClause, Mapping[str, object]]

_log, _tile, _unsealed = tables.audit_log, tables.audit_tile, tables.audit_unsealed
_checkpoint, _event, _place = tables.audit_checkpoint, tables.audit_event, tables.audit_place

LOG = "log"
# The maximum number of checkpoints that one call of `thin` reads.
THINNED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class StoredLog:
    """The audit log's name, keys and size, as stored.

    Attributes:
        origin: name of the log, which is also the name of its key.
        public_key: 32 bytes, Ed25519.
        sealed_key: the 32 bytes of the private key, encrypted by a data key.
    """

    origin: str
    public_key: bytes
    sealed_key: bytes
    size: int


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint: the size of the log, its root hash (32 bytes), and the signed note that is published."""

    size: int
    at: datetime
    root: bytes
    note: str


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An audit event, as stored.

    The commitment covers only `body` and `salt`. Verification checks the other fields against `body` and `salt`.

    Attributes:
        id: the id of the event's row, which the commitment does not cover; None in an export.
        leaf_index: the event's position in the log; None until the event is sealed.
        place_project_id: the project id in the event's row of the table `audit_place`. Lists of a project's events use
            this id to find the event.
        body: canonical JSON.
        commitment: SHA-256 of salt and body; stored in the log as the leaf.
    """

    id: int | None
    leaf_index: int | None
    place_project_id: str | None
    at: datetime
    kind: str
    project_id: str | None
    actor: str
    subject: str
    body: bytes
    salt: bytes
    commitment: bytes


class Sealing:
    """Seals one batch: reads the log and unsealed events in one snapshot, and collects the changes to write.

    See `AuditQueries.seal`.

    Attributes:
        size: the size of the log before the sealing.
        changes: statements to run in this order in one transaction. The first statement fails if the log's size has
            changed.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.size: int = connection.execute(_SIZE).scalar_one()
        self.changes: list[_Change] = []
        self._chosen: list[tuple[int, str | None]] = []

    def choose_events(self, limit: int) -> list[bytes]:
        """Choose at most `limit` unsealed events, and return their commitments in the order of their leaf indexes.

        Events are chosen in the order of their ids. An event that commits after this sealing is assigned a higher leaf
        index, even if its id is lower.
        """
        waiting = self._connection.execute(_WAITING, {"at_most": limit}).all()
        self._chosen = [(row.event_id, row.project_id) for row in waiting]
        return [row.commitment for row in waiting]

    def tiles(self, ids: Iterable[TileId]) -> dict[TileId, bytes]:
        """Return the requested tiles that exist."""
        return _tiles(self._connection, ids)

    def checkpoint(self) -> StoredCheckpoint | None:
        """Return the newest checkpoint."""
        return _stored_checkpoint(self._connection.execute(_NEWEST).first())

    def write(
        self, tiles: Mapping[TileId, bytes], present: Iterable[TileId], checkpoint: StoredCheckpoint
    ) -> None:
        """Set `changes` to the statements that seal the chosen events and store the changed tiles and a checkpoint.

        `present`: the ids of the tiles that the database already has.
        """
        existing = set(present)
        dialect = self._connection.dialect.name
        self.changes = [
            # This statement must run first. A concurrent sealing waits for the log's row, and then fails because the
            # size has changed.
            (_GROW, {"size_before": self.size, "size_after": checkpoint.size}),
            (_PLACE[dialect], {"first": self.size, "events": json.dumps(self._chosen)}),
            (_TAKE[dialect], {"ids": json.dumps([number for number, _ in self._chosen])}),
            *[
                (
                    _REPLACE_TILE if tile in existing else _ADD_TILE,
                    {"at_level": tile.level, "at_index": tile.index, "holds": hashes},
                )
                for tile, hashes in tiles.items()
            ],
            (_ADD_CHECKPOINT, asdict(checkpoint)),
        ]


_WAITING = select(_unsealed).order_by(_unsealed.c.event_id).limit(bindparam("at_most", type_=Integer))
# The events are passed as JSON arrays, so that one statement takes any number of events. The statements have no joins.
# PostgreSQL has no useful statistics for a table that is emptied all the time, so PostgreSQL would scan the whole
# joined table.
_PLACE = {
    "sqlite": text(
        "INSERT INTO audit_place (leaf_index, event_id, project_id)"
        " SELECT :first + key, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:events)"
    ),
    "postgresql": text(
        "INSERT INTO audit_place (leaf_index, event_id, project_id)"
        " SELECT CAST(:first AS bigint) + place - 1, CAST(event ->> 0 AS bigint), event ->> 1"
        " FROM json_array_elements(CAST(CAST(:events AS text) AS json)) WITH ORDINALITY AS given (event, place)"
    ),
}
_TAKE = {
    "sqlite": text("DELETE FROM audit_unsealed WHERE event_id IN (SELECT value FROM json_each(:ids))"),
    "postgresql": text(
        "DELETE FROM audit_unsealed WHERE event_id = ANY (CAST(translate(:ids, '[]', '{}') AS bigint[]))"
    ),
}
_SIZE = select(_log.c.size)
# If the size has changed since it was read, the CASE is NULL, which violates the NOT NULL constraint.
_GROW = update(_log).values(
    size=case((_log.c.size == bindparam("size_before"), bindparam("size_after", type_=BigInteger)))
)
_NEWEST: Select[Any] = select(_checkpoint).order_by(_checkpoint.c.size.desc()).limit(1)
_TILES = select(_tile).where(tuple_(_tile.c.level, _tile.c.index).in_(bindparam("tile_ids", expanding=True)))
_ADD_CHECKPOINT = insert(_checkpoint)
_HOLDS: dict[str, object] = {"hashes": bindparam("holds")}
_REPLACE_TILE = (
    update(_tile)
    .where(_tile.c.level == bindparam("at_level"), _tile.c.index == bindparam("at_index"))
    .values(_HOLDS)
)
_ADD_TILE = insert(_tile).values({"level": bindparam("at_level"), "index": bindparam("at_index")} | _HOLDS)


class AuditQueries(Queries):
    """Reads and extends the stored audit log."""

    async def log(self) -> StoredLog | None:
        """Return the log, or None if it has not been created yet."""
        row = await self._row(select(*(_log.c[each.name] for each in fields(StoredLog))))
        return None if row is None else StoredLog(*row)

    async def add_log(self, log: StoredLog, event: AuditEvent) -> None:
        """Create the log and record the event, unless another process has created the log."""
        with contextlib.suppress(IntegrityError):
            async with self._database.transaction(event) as connection:
                await connection.execute(insert(_log).values(id=LOG, **asdict(log)))

    async def seal(self, put: Callable[[Sealing], T]) -> T:
        """Call `put` with a snapshot of the log, commit the changes that `put` makes, and return the result of `put`.

        Calls `put` again if another process sealed events while `put` ran. Holds no locks while `put` runs. The log
        must exist. Raises Unavailable. Also raises any error from `put`, and then changes nothing in the database.
        """

        def sealing(connection: Connection) -> tuple[Sealing, T]:
            begun = Sealing(connection)
            return begun, put(begun)

        while True:
            async with self._database.read() as connection:
                begun, result = await connection.run_sync(sealing)
            try:
                await self._database.run(_execute, begun.changes)
            except IntegrityError:
                if await self._scalar(_SIZE) == begun.size:
                    raise
            else:
                return result

    async def unsealed_since(self) -> datetime | None:
        """Return the time of the oldest unsealed event, or None if all events are sealed."""
        oldest = select(func.min(_unsealed.c.event_id)).scalar_subquery()
        return await self._scalar(select(tables.audit_event.c.at).where(tables.audit_event.c.id == oldest))

    async def checkpoint(self, size: int | None = None) -> StoredCheckpoint | None:
        """Return the checkpoint for the given log size, by default the newest, or None if it is not stored."""
        query = _NEWEST if size is None else select(_checkpoint).where(_checkpoint.c.size == size)
        return _stored_checkpoint(await self._row(query))

    async def checkpoints(self, after: int, limit: int) -> list[StoredCheckpoint]:
        """Return at most `limit` checkpoints with sizes above `after`, sorted by size."""
        query = (
            select(_checkpoint).where(_checkpoint.c.size > after).order_by(_checkpoint.c.size).limit(limit)
        )
        return [StoredCheckpoint(**row._asdict()) for row in await self._rows(query)]

    async def thin(self, before: datetime, after: int) -> tuple[int, int]:
        """Read a page of checkpoints older than `before`, and delete all but the last checkpoint in each hour.

        The page contains checkpoints with log sizes above `after`, which is 0 for the first page. Returns the value of
        `after` for the next page, and the number of deleted checkpoints. No page is left when the returned value equals
        `after` and no checkpoint was deleted.
        """
        query = (
            select(_checkpoint.c.size, _checkpoint.c.at)
            .where(_checkpoint.c.size > after, _checkpoint.c.at < before)
            .order_by(_checkpoint.c.size)
            .limit(THINNED_AT_ONCE)
        )
        heads = await self._rows(query)
        last_of_hour = {f"{at:%Y%m%d%H}": size for size, at in heads}
        kept = {*last_of_hour.values()}
        deleted = [{"of_size": size} for size, _ in heads if size not in kept]
        if deleted:
            drop = delete(_checkpoint).where(_checkpoint.c.size == bindparam("of_size"))
            async with self._database.transaction() as connection:
                await connection.execute(drop, deleted)
        # The last hour in this page may continue in the next page, so the next page begins with that hour.
        ended = max((size for size in kept if size < heads[-1][0]), default=after) if heads else after
        return ended, len(deleted)

    async def tiles(self, ids: Iterable[TileId]) -> dict[TileId, bytes]:
        """Return the requested tiles that exist. The last tile in each level may be incomplete."""
        async with self._database.read() as connection:
            return await connection.run_sync(_tiles, ids)


def _execute(connection: Connection, changes: Iterable[_Change]) -> None:
    for change, values in changes:
        connection.execute(change, values)


def _tiles(connection: Connection, ids: Iterable[TileId]) -> dict[TileId, bytes]:
    tile_ids = [(tile.level, tile.index) for tile in ids]
    if not tile_ids:
        return {}
    found = connection.execute(_TILES, {"tile_ids": tile_ids})
    return {TileId(level, index): hashes for level, index, hashes in found}


def _stored_checkpoint(row: Row[Any] | None) -> StoredCheckpoint | None:
    return None if row is None else StoredCheckpoint(**row._asdict())


# A page scans at most this many events, even if few of them match the filter. So the cost of a page does not depend on
# the filter.
SCANNED = 5_000
# An event is sealed within seconds of the event's time, but the clocks of two processes may differ by this much.
SLACK = timedelta(minutes=5)
# The earliest and latest times in Python. Near these times, adding or subtracting `SLACK` would overflow.
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Selects events. A field that is `None` does not filter. The described fields are parameters of the API.

    The canonical JSON of an event must contain the ids in `user_id`, `cluster_id` and `access_request_id`.
    """

    project_id: str | None = None
    kind: Annotated[str | None, "Only events of this kind; a final asterisk matches any ending."] = None
    actor: Annotated[str | None, "Only events of this actor."] = None
    subject: Annotated[str | None, "Only events about the object with this id."] = None
    since: Annotated[datetime | None, "Only events at or after this time, RFC 3339."] = None
    until: Annotated[datetime | None, "Only events at or before this time, RFC 3339."] = None
    user_id: Annotated[str | None, "Only events by or about this user."] = None
    cluster_id: Annotated[
        str | None, "Only events about this cluster, its certificates or its access requests."
    ] = None
    access_request_id: Annotated[
        str | None, "Only events about this access request, or the certificates that it allows."
    ] = None


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page of events, which may be incomplete or empty even if there is a next page.

    The next page begins after the leaf index `cursor`, which is None on the last page.
    """

    events: tuple[StoredEvent, ...]
    cursor: int | None


class EventPages(Queries):
    """Reads audit events."""

    async def size(self) -> int:
        """Return the number of sealed events, which is the leaf index of the next one."""
        return await self._scalar(_SIZE) or 0

    async def event(self, leaf_index: int, project_id: str | None = None) -> StoredEvent | None:
        """Return the sealed event with this leaf index, or None.

        With `project_id`, returns None for an event of another project.
        """
        query = select(_event, _place.c.leaf_index, _place.c.project_id.label("place_project_id"))
        query = query.join_from(_place, _event, _event.c.id == _place.c.event_id)
        query = query.where(_place.c.leaf_index == leaf_index)
        if project_id is not None:
            query = query.where(_event.c.project_id == project_id)
        row = await self._row(query)
        return None if row is None else StoredEvent(**row._asdict())

    async def page(
        self, event_filter: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        """Return at most `limit` events that follow the cursor in the requested order."""
        async with self._database.read() as connection:
            first, behind = await _places(connection, event_filter, cursor, newest_first=newest_first)
            scope = _scope(
                event_filter.project_id, first, behind, by_row_values=compares_row_values(self._database)
            )
            places = select(_place).where(scope.condition)
            places = places.order_by(*scope.order(_place, newest_first=newest_first))
            # The subquery always has a LIMIT. Without a LIMIT, PostgreSQL with outdated statistics may apply the
            # filter first and scan every event.
            count = limit if event_filter == EventFilter(project_id=event_filter.project_id) else SCANNED
            scanned = places.limit(count).subquery("scanned")
            query = select(_event, scanned.c.leaf_index, scanned.c.project_id.label("place_project_id"))
            position = _POSITION[self._database.url.get_backend_name()]
            query = query.where(true(), *_conditions(event_filter, position))
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
    connection: AsyncConnection, event_filter: EventFilter, cursor: int | None, *, newest_first: bool
) -> tuple[int, int]:
    """Return the range of leaf indexes to scan, with the end excluded."""
    first, behind = FIRST_ID, AFTER_LAST_ID
    if (size := await size_before(connection, event_filter.since)) is not None:
        first = size
    if (size := await size_after(connection, event_filter.until)) is not None:
        behind = size
    if cursor is not None and newest_first:
        behind = min(behind, cursor)
    elif cursor is not None:
        first = max(first, min(cursor + 1, AFTER_LAST_ID))
    return first, behind


async def size_before(connection: AsyncConnection, time: datetime | None) -> int | None:
    """Return the size that the log had at some moment before a time, or None if no such size is known.

    Events after the given time have leaf indexes that are equal to or higher than this size.
    """
    if time is None or time - _EARLIEST < SLACK:
        return None
    older = select(_checkpoint.c.size).where(_checkpoint.c.at <= time - SLACK)
    return (await connection.execute(older.order_by(_checkpoint.c.at.desc()).limit(1))).scalar()


async def size_after(connection: AsyncConnection, time: datetime | None) -> int | None:
    """Return a log size that includes all events up to a time, or None if no such size is known."""
    if time is None or _LATEST - time < SLACK:
        return None
    late = time + SLACK
    newer = select(_checkpoint.c.size).where(_checkpoint.c.at >= late)
    size: int | None = (await connection.execute(newer.order_by(_checkpoint.c.at).limit(1))).scalar()
    # If a backlog of events was sealed in several batches, events from before `time` may still follow at leaf index
    # `size` or later. So search further.
    step = 1
    while size is not None and (at := await _at(connection, size)) is not None and at <= late:
        size, step = size + step, 2 * step
    return size


async def _at(connection: AsyncConnection, place: int) -> datetime | None:
    """Return the time of the first event at or after a leaf index."""
    query = select(_event.c.at).join_from(_place, _event, _event.c.id == _place.c.event_id)
    query = query.where(_place.c.leaf_index >= place).order_by(_place.c.leaf_index).limit(1)
    return (await connection.execute(query)).scalar()


# The position of a byte string in another one, from 1 on; 0 if it is not there.
_POSITION = {"sqlite": func.instr, "postgresql": func.pg_catalog.position}


def _conditions(
    event_filter: EventFilter, position: Callable[..., ColumnElement[int]]
) -> Iterator[ColumnElement[bool]]:
    """Return the filter conditions that no index covers."""
    if event_filter.project_id is not None:
        yield _event.c.project_id == event_filter.project_id
    if event_filter.kind is not None and event_filter.kind.endswith("*"):
        yield _event.c.kind.startswith(event_filter.kind[:-1], autoescape=True)
    elif event_filter.kind is not None:
        yield _event.c.kind == event_filter.kind
    for column in (_event.c.actor, _event.c.subject):
        if (value := getattr(event_filter, column.name)) is not None:
            yield column == value
    if event_filter.since is not None:
        yield _event.c.at >= event_filter.since
    if event_filter.until is not None:
        yield _event.c.at <= event_filter.until
    for each in (event_filter.user_id, event_filter.cluster_id, event_filter.access_request_id):
        if each is not None:
            yield position(_event.c.body, literal(each.encode("ascii"), _event.c.body.type)) > 0
