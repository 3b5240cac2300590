"""Every SQL statement about the audit log: events and their places in it, its tree, its signed heads, its key.

Events are written by whatever they are about; see `events`. A place (leaf index) is given once and never changes.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Select,
    TextClause,
    UpdateBase,
    bindparam,
    case,
    delete,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError

from clustercert.merkle import TileId
from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.database import Database

T = TypeVar("T")

# A statement and its parameters.
_Change = tuple[UpdateBase | TextClause, Mapping[str, object]]

_log, _tile, _unsealed = tables.audit_log, tables.audit_tile, tables.audit_unsealed
_checkpoint = tables.audit_checkpoint

LOG = "log"
# Checkpoints are looked through in pages of this many where older ones are dropped.
THINNED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class StoredLog:
    """The log itself.

    Attributes:
        origin: its name, which is its key's name as well.
        public_key: 32 bytes, Ed25519.
        sealed_key: the private key's 32 bytes, sealed.
        size: how many events have their place in it.
    """

    origin: str
    public_key: bytes
    sealed_key: bytes
    size: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """The log's head at one size.

    Attributes:
        root: 32 bytes.
        note: signed, as it is published.
    """

    size: int
    at: datetime
    root: bytes
    note: str


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it was recorded.

    Attributes:
        leaf_index: its place in the log, or None before it has one.
        body: canonical JSON.
        salt: 16 bytes.
        commitment: SHA-256 over salt and body: the leaf.
    """

    id: int
    leaf_index: int | None
    at: datetime
    kind: str
    project_id: str | None
    actor: str
    subject: str
    body: bytes
    salt: bytes
    commitment: bytes


class Sealing:
    """What puts events into the log: how it is and what waits, in one snapshot; then the changes to make of that.

    See `AuditRows.seal`.

    Attributes:
        size: the log's, before.
        changes: in this order, in one transaction, they grow the log, or fail where it is of another size by then.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.size: int = connection.execute(_SIZE).scalar_one()
        self.changes: list[_Change] = []
        self._taken: list[tuple[int, str | None]] = []

    def take(self, limit: int) -> list[bytes]:
        """The first events, at most `limit`, that have no place yet: their commitments in the order of their places.

        The order is that of the ids, of what is committed by now: what is committed later gets a later place, even
        where its id is smaller.
        """
        waiting = self._connection.execute(_WAITING, {"at_most": limit}).all()
        self._taken = [(row.event_id, row.project_id) for row in waiting]
        return [row.commitment for row in waiting]

    def tiles(self, ids: Iterable[TileId]) -> dict[TileId, bytes]:
        """Those of the tiles that there are."""
        return _tiles(self._connection, ids)

    def checkpoint(self) -> StoredCheckpoint | None:
        """The newest one."""
        return _newest(self._connection, _NEWEST)

    def write(
        self, tiles: Mapping[TileId, bytes], present: Iterable[TileId], checkpoint: StoredCheckpoint
    ) -> None:
        """Place what was taken, with the tiles that change, of which some are `present` already, and the new head."""
        there = set(present)
        dialect = self._connection.dialect.name
        self.changes = [
            # The first one: another process that seals waits at this row, and then finds another size.
            (_GROW, {"size_before": self.size, "size_after": checkpoint.size}),
            (_PLACE[dialect], {"first": self.size, "events": json.dumps(self._taken)}),
            (_TAKE[dialect], {"ids": json.dumps([number for number, _ in self._taken])}),
            *[
                (
                    _REPLACE_TILE if tile in there else _ADD_TILE,
                    {"at_level": tile.level, "at_index": tile.index, "holds": hashes},
                )
                for tile, hashes in tiles.items()
            ],
            (_ADD_CHECKPOINT, asdict(checkpoint)),
        ]


# What each sealing says, made once: to make it takes longer than to run it.
_WAITING = select(_unsealed).order_by(_unsealed.c.event_id).limit(bindparam("at_most", type_=Integer))
# Events as arrays in JSON, so that each is one statement however many they are. Nothing is joined: PostgreSQL's
# planner, which knows little of a table that is emptied all the time, would read the whole of the other.
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
# A size can't be NULL: where it isn't the one that was read, the whole transaction is refused.
_GROW = update(_log).values(
    size=case((_log.c.size == bindparam("size_before"), bindparam("size_after", type_=BigInteger)))
)
_NEWEST = select(_checkpoint).order_by(_checkpoint.c.size.desc()).limit(1)
_TILES = select(_tile).where(tuple_(_tile.c.level, _tile.c.index).in_(bindparam("wanted", expanding=True)))
_ADD_CHECKPOINT = insert(_checkpoint)
_HOLDS: dict[str, object] = {"hashes": bindparam("holds")}
_REPLACE_TILE = (
    update(_tile)
    .where(_tile.c.level == bindparam("at_level"), _tile.c.index == bindparam("at_index"))
    .values(_HOLDS)
)
_ADD_TILE = insert(_tile).values({"level": bindparam("at_level"), "index": bindparam("at_index")} | _HOLDS)


class AuditRows:
    """The audit log, as it is stored."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def log(self) -> StoredLog | None:
        """The log, or None where it has not been begun."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(_log))).mappings().one_or_none()
        return None if row is None else StoredLog(**{name: row[name] for name in row if name != "id"})

    async def add_log(self, log: StoredLog, event: AuditEvent) -> None:
        """Begin the log. Where another process has begun it meanwhile, that one stays."""
        with contextlib.suppress(IntegrityError):
            async with self._database.write(event) as connection:
                await connection.execute(insert(_log).values(id=LOG, **asdict(log)))

    async def seal(self, put: Callable[[Sealing], T]) -> T:
        """What `put` returns, once what it would have changed is durable. It is called again where others were faster.

        Nobody is kept from writing while it reads and thinks. The log has to have been begun. Raises Unavailable, or
        what `put` raises, and nothing of it has happened then.
        """

        def sealing(connection: Connection) -> tuple[Sealing, T]:
            begun = Sealing(connection)
            return begun, put(begun)

        while True:
            async with self._database.read() as connection:
                begun, result = await connection.run_sync(sealing)
            try:
                await self._database.run(_make, begun.changes)
            except IntegrityError:
                if await self._size() == begun.size:
                    raise
            else:
                return result

    async def _size(self) -> int:
        async with self._database.read() as connection:
            size: int = (await connection.execute(_SIZE)).scalar_one()
            return size

    async def checkpoint(self, size: int | None = None) -> StoredCheckpoint | None:
        """The newest checkpoint, or the one of a certain size, where it is kept."""
        query = _NEWEST if size is None else select(_checkpoint).where(_checkpoint.c.size == size)
        async with self._database.read() as connection:
            return await connection.run_sync(_newest, query)

    async def checkpoints(self, after: int, limit: int) -> list[StoredCheckpoint]:
        """At most `limit` checkpoints of more than a size, the smallest first."""
        query = (
            select(_checkpoint).where(_checkpoint.c.size > after).order_by(_checkpoint.c.size).limit(limit)
        )
        async with self._database.read() as connection:
            return [StoredCheckpoint(**row) for row in (await connection.execute(query)).mappings()]

    async def thin(self, before: datetime, after: int) -> tuple[int, int]:
        """Of a page of the checkpoints older than `before`, keep the last one of each hour.

        `after` is where the last page ended, 0 at first. Gives where this one ended, and how many were dropped; there
        is nothing more to do where the page ended where it began and dropped none.
        """
        query = (
            select(_checkpoint.c.size, _checkpoint.c.at)
            .where(_checkpoint.c.size > after, _checkpoint.c.at < before)
            .order_by(_checkpoint.c.size)
            .limit(THINNED_AT_ONCE)
        )
        async with self._database.read() as connection:
            heads = (await connection.execute(query)).all()
        last_of_hour = {f"{at:%Y%m%d%H}": size for size, at in heads}
        kept = {*last_of_hour.values()}
        superfluous = [{"of_size": size} for size, _ in heads if size not in kept]
        if superfluous:
            drop = delete(_checkpoint).where(_checkpoint.c.size == bindparam("of_size"))
            async with self._database.write() as connection:
                await connection.execute(drop, superfluous)
        # The last hour of a page may go on in the next one.
        ended = max((size for size in kept if size < heads[-1][0]), default=after) if heads else after
        return ended, len(superfluous)

    async def tiles(self, ids: Iterable[TileId]) -> dict[TileId, bytes]:
        """Those of the tiles that there are, as wide as they are now."""
        async with self._database.read() as connection:
            return await connection.run_sync(_tiles, ids)


def _make(connection: Connection, changes: Iterable[_Change]) -> None:
    for change, values in changes:
        connection.execute(change, values)


def _tiles(connection: Connection, ids: Iterable[TileId]) -> dict[TileId, bytes]:
    wanted = [(tile.level, tile.index) for tile in ids]
    if not wanted:
        return {}
    found = connection.execute(_TILES, {"wanted": wanted})
    return {TileId(level, index): hashes for level, index, hashes in found}


def _newest(connection: Connection, query: Select[tuple[object, ...]]) -> StoredCheckpoint | None:
    row = connection.execute(query).mappings().first()
    return None if row is None else StoredCheckpoint(**row)
