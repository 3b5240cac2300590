"""Queries that read the whole audit log in parts, to verify or export it, and that delete events."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, func, null, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.merkle.notes import VerifierKey
from clustercert.merkle.tiles import ENTRIES, WIDTH
from clustercert.merkle.tree import HASH_BYTES
from clustercert.model import AuditEvent
from clustercert.model.errors import Unavailable
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.audit.log import LOG, StoredCheckpoint, StoredEvent
from clustercert.store.engine.queries import BATCH, Queries

_event, _place, _unsealed = tables.audit_event, tables.audit_place, tables.audit_unsealed
_tile, _checkpoint, _log = tables.audit_tile, tables.audit_checkpoint, tables.audit_log

# The kind of deletion events, which list the leaf indexes of deleted events. Deletion events are never deleted.
DELETED = "events.deleted"
MAX_STRAY = 100
# The highest level of the tree that a log of 2 ** 63 leaves has.
MAX_LEVEL = 7
_AT_PLACE = _event.c.id == _place.c.event_id
_BYTES = ("body", "salt", "commitment")


@dataclass(frozen=True, slots=True)
class LogHead:
    """The newest state of a log.

    Attributes:
        note: the newest checkpoint, signed; None if the log has no checkpoint.
        stray: events whose leaf index is outside the log, at most `MAX_STRAY`.
        sizes: the log's size as stored in several parts of the database. Each key describes the part.
        logs: the ids of the stored logs. A database has only one log.
    """

    note: str | None
    stray: tuple[StoredEvent, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    logs: tuple[str, ...] = (LOG,)


@dataclass(frozen=True, slots=True)
class UnsealedEvent:
    """An event that waits to be sealed.

    Attributes:
        id: the id of the event's row.
        commitment: the commitment that sealing would add to the log.
        event: the event's row; None if the row is missing. The row's `place_project_id` is the project that
            sealing would store with the event's leaf index.
    """

    id: int
    commitment: bytes
    event: StoredEvent | None


class EvidenceQueries(Queries):
    """Reads the stored log, which may have been tampered with. Values of a wrong type raise ValueError or TypeError."""

    async def verifier(self) -> VerifierKey | None:
        """Return the stored public key of the log, or None if the log has not been created yet."""
        row = await self._row(select(_log.c.origin, _log.c.public_key))
        return None if row is None else VerifierKey(str(row.origin), _bytes(row.public_key))

    async def sealed_key(self) -> bytes:
        """Return the log's sealed private key, or empty bytes if the log has not been created yet."""
        row = await self._row(select(_log.c.sealed_key))
        return b"" if row is None else _bytes(row.sealed_key)

    async def head(self) -> LogHead:
        """Read the newest state of the log in one snapshot."""
        newest = select(_checkpoint.c.note, _checkpoint.c.size).order_by(_checkpoint.c.size.desc()).limit(1)
        async with self._reading() as connection:
            found = (await connection.execute(newest)).first()
            size = found.size if found is not None else 0
            sizes = {
                "the row of the newest checkpoint": size,
                "the row of the log": (await connection.execute(select(_log.c.size))).scalar() or 0,
            }
            # Check only for a tree that is too large, because verification finds a tree that is too small.
            for level, leaves in (await _leaves(connection)).items():
                if leaves > size:
                    sizes["the entry bundles" if level == ENTRIES else f"level {level} of the tree"] = leaves
            logs = tuple((await connection.execute(select(_log.c.id).order_by(_log.c.id))).scalars())
            outside = _events(or_(_place.c.leaf_index >= size, _place.c.leaf_index < 0)).limit(MAX_STRAY)
            stray = tuple(await _stored(connection, outside))
        return LogHead(found.note if found is not None else None, stray, sizes, logs)

    async def tiles(self, level: int, first: int, last: int) -> dict[int, bytes]:
        """Return the tiles in a level by index, from index `first` up to but excluding `last`."""
        query = select(_tile.c.index, _tile.c.hashes).where(
            _tile.c.level == level, _tile.c.index >= first, _tile.c.index < last
        )
        async with self._reading() as connection:
            return {index: _bytes(hashes) for index, hashes in await connection.execute(query)}

    async def events(self, first: int, last: int) -> list[StoredEvent]:
        """Return the events with leaf indexes from `first` up to but excluding `last`, in this order."""
        query = _events(_place.c.leaf_index >= first, _place.c.leaf_index < last)
        async with self._reading() as connection:
            return await _stored(connection, query)

    async def checkpoints(self, first: int, last: int) -> list[StoredCheckpoint]:
        """Return the stored checkpoints with sizes from `first` up to but excluding `last`, sorted by size."""
        sizes = _checkpoint.c.size >= first, _checkpoint.c.size < last
        query = select(_checkpoint).where(*sizes).order_by(_checkpoint.c.size)
        async with self._reading() as connection:
            return [StoredCheckpoint(**row) for row in (await connection.execute(query)).mappings()]

    async def deletion_events(self, first: int) -> list[StoredEvent]:
        """Return the deletion events that are unsealed or have a leaf index of at least `first`."""
        sealed = _events(_event.c.kind == DELETED, _place.c.leaf_index >= first)
        waiting = _event.c.id.in_(select(_unsealed.c.event_id))
        unsealed = select(_event, null().label("leaf_index"), _event.c.project_id.label("place_project_id"))
        unsealed = unsealed.where(_event.c.kind == DELETED, waiting)
        async with self._reading() as connection:
            return await _stored(connection, sealed) + await _stored(connection, unsealed)

    async def unsealed(self, after: int | None) -> list[UnsealedEvent]:
        """Return a batch of events that wait to be sealed, with row ids above `after` if given, sorted by row id."""
        waiting = (_unsealed.c.event_id, _unsealed.c.project_id, _unsealed.c.commitment)
        query = select(
            _event,
            null().label("leaf_index"),
            *(column.label(f"waiting_{column.name}") for column in waiting),
        ).join_from(_unsealed, _event, _event.c.id == _unsealed.c.event_id, isouter=True)
        if after is not None:
            query = query.where(_unsealed.c.event_id > after)
        query = query.order_by(_unsealed.c.event_id).limit(BATCH)
        async with self._reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [_unsealed_event(dict(row)) for row in rows]

    async def events_outside_log(self) -> list[int]:
        """Return the row ids of at most `MAX_STRAY` events that have no leaf index and do not wait to be sealed."""
        query = select(_event.c.id).where(
            ~select(_place.c.leaf_index).where(_AT_PLACE).exists(),
            ~select(_unsealed.c.event_id).where(_unsealed.c.event_id == _event.c.id).exists(),
        )
        async with self._reading() as connection:
            return list((await connection.execute(query.limit(MAX_STRAY))).scalars())

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a read connection. Raises ValueError for a string that is not UTF-8; SQLite can store such strings."""
        try:
            async with self._database.read() as connection:
                yield connection
        except Unavailable as failure:
            if "Could not decode to UTF-8" in str(failure.__cause__):
                raise ValueError("a text column holds bytes that are not UTF-8") from failure
            raise

    async def delete(
        self,
        marker: Callable[[Sequence[int]], AuditEvent],
        *,
        before: datetime | None = None,
        only: int | None = None,
    ) -> list[int]:
        """Delete a batch of events older than a time, or the event at a leaf index. Returns the deleted leaf indexes.

        Deletes only sealed events; their commitments stay in the log. The function `marker` creates a deletion event
        from the leaf indexes, and this event is recorded in the same transaction. Returns an empty list when nothing is
        left to delete.
        """
        which = [_event.c.kind != DELETED]
        if only is not None:
            which.append(_place.c.leaf_index == only)
        # The time is compared in Python, so that the query does not scan the events that are too new.
        columns = _event.c.id, _place.c.leaf_index, _event.c.at
        sealed = select(*columns).join_from(_event, _place, _AT_PLACE)
        oldest = sealed.where(*which).order_by(_event.c.id).limit(BATCH)
        async with self._database.transaction() as connection:
            rows = (await connection.execute(oldest.with_for_update(of=_event))).all()
            old = [row for row in rows if before is None or row.at < before]
            places = sorted(row.leaf_index for row in old)
            if places:
                await connection.execute(delete(_place).where(_place.c.leaf_index.in_(places)))
                await connection.execute(delete(_event).where(_event.c.id.in_([row.id for row in old])))
                await record_events(connection, (marker(places),))
        return places


async def _leaves(connection: AsyncConnection) -> dict[int, int]:
    """Return the number of leaves that the last tile of each level needs, by level."""
    last = select(_tile.c.level, func.max(_tile.c.index).label("last")).group_by(_tile.c.level).subquery()
    is_last = and_(_tile.c.level == last.c.level, _tile.c.index == last.c.last)
    columns = _tile.c.level, _tile.c.index, func.length(_tile.c.hashes)
    query = select(*columns).join_from(_tile, last, is_last).order_by(_tile.c.level)
    return {
        level: (index * WIDTH + length // HASH_BYTES) * WIDTH ** min(max(level, 0), MAX_LEVEL)
        for level, index, length in await connection.execute(query)
    }


def _events(*conditions: ColumnElement[bool]) -> Select[tuple[object, ...]]:
    query = select(_event, _place.c.leaf_index, _place.c.project_id.label("place_project_id"))
    query = query.join_from(_place, _event, _AT_PLACE)
    return query.where(*conditions).order_by(_place.c.leaf_index)


async def _stored(connection: AsyncConnection, query: Select[tuple[object, ...]]) -> list[StoredEvent]:
    return [_stored_event(dict(row)) for row in (await connection.execute(query)).mappings()]


def _stored_event(row: dict[str, Any]) -> StoredEvent:
    return StoredEvent(**row | {name: _bytes(row[name]) for name in _BYTES})


def _unsealed_event(row: dict[str, Any]) -> UnsealedEvent:
    event_id, row["place_project_id"], leaf = (
        row.pop(f"waiting_{name}") for name in ("event_id", "project_id", "commitment")
    )
    event = _stored_event(row) if row["id"] is not None else None
    return UnsealedEvent(event_id, _bytes(leaf), event)


def _bytes(value: object) -> bytes:
    """Return the value of a bytes column as bytes. SQLite may return a string after tampering."""
    return value if isinstance(value, bytes) else str(value).encode()
