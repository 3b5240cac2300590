"""Every SQL statement that reads the whole audit log to check or copy it, a piece at a time; and that deletes events.

What seals the log, and looks up single events and proofs, is elsewhere.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Select, delete, func, null, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.errors import Unavailable
from clustercert.merkle import VerifierKey
from clustercert.merkle.tiles import ENTRIES, WIDTH
from clustercert.merkle.tree import HASH_BYTES
from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.audit import StoredCheckpoint, StoredEvent
from clustercert.store.database import Database
from clustercert.store.events import record_events

_event, _place, _unsealed, _tile, _checkpoint, _log = (
    tables.audit_event,
    tables.audit_place,
    tables.audit_unsealed,
    tables.audit_tile,
    tables.audit_checkpoint,
    tables.audit_log,
)

# What an event that says which events were deleted is called. Such events are never deleted themselves.
DELETED = "events.deleted"
# Few enough that other writers wait only for a moment.
DELETED_AT_ONCE = 1000
MAX_STRAY = 100
_AT_PLACE = _event.c.id == _place.c.event_id
_BYTES = ("body", "salt", "commitment")


@dataclass(frozen=True, slots=True)
class LogHead:
    """Where a log ends.

    Attributes:
        note: its newest checkpoint, signed; None where it has none.
        stray: events at places that the log doesn't have, at most some of them.
        unsealed: how many events have no place yet.
        sizes: how many leaves the log has as it is kept beside the note, by what says so.
    """

    note: str | None
    stray: tuple[StoredEvent, ...] = ()
    unsealed: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)


class EvidenceRows:
    """The log as it is kept. What checks it gets a ValueError or TypeError for a value that is none of its column's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def verifier(self) -> VerifierKey | None:
        """The key that the store says the log is signed with; None where there is no log yet."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(_log.c.origin, _log.c.public_key))).first()
            return VerifierKey(row.origin, row.public_key) if row is not None else None

    async def head(self) -> LogHead:
        """Where the log ends, all in one moment."""
        newest = select(_checkpoint.c.note, _checkpoint.c.size).order_by(_checkpoint.c.size.desc()).limit(1)
        async with self._reading() as connection:
            found = (await connection.execute(newest)).first()
            size = found.size if found is not None else 0
            sizes = {
                "the row of the newest checkpoint": size,
                "the row of the log": (await connection.execute(select(_log.c.size))).scalar() or 0,
            }
            # Of what the tree lacks, the walk over it tells.
            if (leaves := await _leaves(connection, size)) > size:
                sizes["the tree"] = leaves
            outside = _events(or_(_place.c.leaf_index >= size, _place.c.leaf_index < 0)).limit(MAX_STRAY)
            stray = tuple(await _stored(connection, outside))
            unsealed = select(func.count()).select_from(_unsealed)
            count = (await connection.execute(unsealed)).scalar_one()
        return LogHead(found.note if found is not None else None, stray, count, sizes)

    async def tiles(self, level: int, first: int, last: int) -> dict[int, bytes]:
        """The hashes in the tiles of a level from `first` up to `last`, by index, as wide as they are now."""
        query = select(_tile.c.index, _tile.c.hashes).where(
            _tile.c.level == level, _tile.c.index >= first, _tile.c.index < last
        )
        async with self._reading() as connection:
            return {index: _bytes(hashes) for index, hashes in await connection.execute(query)}

    async def events(self, first: int, last: int) -> list[StoredEvent]:
        """The events at the places from `first` up to `last`, in their order."""
        query = _events(_place.c.leaf_index >= first, _place.c.leaf_index < last)
        async with self._reading() as connection:
            return await _stored(connection, query)

    async def checkpoints(self, first: int, last: int) -> list[StoredCheckpoint]:
        """The kept checkpoints of sizes from `first` up to `last`, by size."""
        sizes = _checkpoint.c.size >= first, _checkpoint.c.size < last
        query = select(_checkpoint).where(*sizes).order_by(_checkpoint.c.size)
        async with self._reading() as connection:
            return [StoredCheckpoint(**row) for row in (await connection.execute(query)).mappings()]

    async def markers(self, first: int) -> list[StoredEvent]:
        """The events that say what was deleted, at places from `first` on or without one."""
        sealed = _events(_event.c.kind == DELETED, _place.c.leaf_index >= first)
        waiting = _event.c.id.in_(select(_unsealed.c.event_id))
        unsealed = select(_event, null().label("leaf_index")).where(_event.c.kind == DELETED, waiting)
        async with self._reading() as connection:
            return await _stored(connection, sealed) + await _stored(connection, unsealed)

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read by. Text that is no text, which SQLite keeps too, is no failure of the database."""
        try:
            async with self._database.read() as connection:
                yield connection
        except Unavailable as failure:
            if "Could not decode to UTF-8" in str(failure.__cause__):
                raise ValueError("a column has something else in it than text") from failure
            raise

    async def delete(
        self,
        marker: Callable[[Sequence[int]], AuditEvent],
        *,
        before: datetime | None = None,
        only: int | None = None,
    ) -> list[int]:
        """Delete some of the events of before a time, or the one of an id; their places, none at the end.

        Only what has a place in the log is deleted, so that the log keeps its commitment. `marker` makes the event
        that says so, of the places; it is written in the same transaction.
        """
        which = [_event.c.kind != DELETED]
        if only is not None:
            which.append(_event.c.id == only)
        # The oldest ones, and of those what is old enough: however many are not, they are not walked through.
        columns = _event.c.id, _place.c.leaf_index, _event.c.at
        sealed = select(*columns).join_from(_event, _place, _AT_PLACE)
        oldest = sealed.where(*which).order_by(_event.c.id).limit(DELETED_AT_ONCE)
        async with self._database.write() as connection:
            rows = (await connection.execute(oldest.with_for_update(of=_event))).all()
            old = [row for row in rows if before is None or row.at < before]
            places = sorted(row.leaf_index for row in old)
            if places:
                await connection.execute(delete(_place).where(_place.c.leaf_index.in_(places)))
                await connection.execute(delete(_event).where(_event.c.id.in_([row.id for row in old])))
                await record_events(connection, (marker(places),))
        return places


async def _leaves(connection: AsyncConnection, size: int) -> int:
    """How many leaves the tree has; 0 where it doesn't reach the last tile of this size."""
    query = select(_tile.c.index, func.length(_tile.c.hashes)).where(
        _tile.c.level == ENTRIES, _tile.c.index >= size // WIDTH
    )
    last = (await connection.execute(query.order_by(_tile.c.index.desc()).limit(1))).first()
    return last[0] * WIDTH + last[1] // HASH_BYTES if last is not None else 0


def _events(*conditions: ColumnElement[bool]) -> Select[tuple[object, ...]]:
    query = select(_event, _place.c.leaf_index).join_from(_place, _event, _AT_PLACE)
    return query.where(*conditions).order_by(_place.c.leaf_index)


async def _stored(connection: AsyncConnection, query: Select[tuple[object, ...]]) -> list[StoredEvent]:
    rows = (await connection.execute(query)).mappings()
    return [StoredEvent(**{**row, **{name: _bytes(row[name]) for name in _BYTES}}) for row in rows]


def _bytes(value: object) -> bytes:
    """What stands in a column of bytes: SQLite takes text as well, from whoever writes it there."""
    return value if isinstance(value, bytes) else str(value).encode()
