"""Every SQL statement about the audit log: events and their places in it, its tree, its signed heads, its key.

Events are written by whatever they are about; see `events`. A place (leaf index) is given once and never changes.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Select,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError

from clustercert.merkle import TileId
from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.database import Database

T = TypeVar("T")

_log, _event, _tile = tables.audit_log, tables.audit_event, tables.audit_tile
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
    """One transaction that puts events into the log; see `AuditRows.seal`. Whoever has it, has it alone.

    Attributes:
        size: the log's, before.
    """

    def __init__(self, connection: Connection, size: int) -> None:
        self._connection = connection
        self.size = size

    def take(self, limit: int) -> list[bytes]:
        """Give at most `limit` events their places behind the last one; their commitments in this order.

        The order is that of the ids, of what is committed by now: what is committed later gets a later place, even
        where its id is smaller.
        """
        placed = self._connection.execute(_TAKE, {"at_most": limit, "first": self.size})
        return [commitment for _, commitment in sorted((place, commitment) for place, commitment in placed)]

    def tiles(self, ids: Iterable[TileId]) -> dict[TileId, bytes]:
        """Those of the tiles that there are."""
        return _tiles(self._connection, ids)

    def checkpoint(self) -> StoredCheckpoint | None:
        """The newest one."""
        return _newest(self._connection, _NEWEST)

    def write(
        self, tiles: Mapping[TileId, bytes], present: Iterable[TileId], checkpoint: StoredCheckpoint
    ) -> None:
        """Write the tiles that changed, of which some are `present` already, and the new head."""
        there = set(present)
        values = [
            {"at_level": tile.level, "at_index": tile.index, "holds": hashes}
            for tile, hashes in tiles.items()
        ]
        old = [value for tile, value in zip(tiles, values, strict=True) if tile in there]
        new = [value for tile, value in zip(tiles, values, strict=True) if tile not in there]
        if old:
            self._connection.execute(_REPLACE_TILE, old)
        if new:
            self._connection.execute(_ADD_TILE, new)
        self._connection.execute(_ADD_CHECKPOINT, asdict(checkpoint))
        self._connection.execute(_GROW, {"grown_to": checkpoint.size})


# What each sealing says, made once: to make it takes longer than to run it.
_waiting = (
    select(_event.c.id, (func.row_number().over(order_by=_event.c.id) - 1).label("place"))
    .where(_event.c.leaf_index.is_(None))
    .order_by(_event.c.id)
    .limit(bindparam("at_most", type_=Integer))
    .subquery("waiting")
)
_TAKE = (
    update(_event)
    .where(_event.c.id == _waiting.c.id)
    .values(leaf_index=bindparam("first", type_=BigInteger) + _waiting.c.place)
    .returning(_event.c.leaf_index, _event.c.commitment)
)
_SIZE = select(_log.c.size).with_for_update()
_NEWEST = select(_checkpoint).order_by(_checkpoint.c.size.desc()).limit(1)
_TILES = select(_tile).where(tuple_(_tile.c.level, _tile.c.index).in_(bindparam("wanted", expanding=True)))
_ADD_CHECKPOINT = insert(_checkpoint)
_GROW = update(_log).values(size=bindparam("grown_to"))
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

    async def unsealed(self) -> bool:
        """Whether any event waits for its place."""
        # In the order of the index, so that no planner reads the table from its beginning instead.
        waiting = select(_event.c.id).where(_event.c.leaf_index.is_(None))
        query = waiting.order_by(_event.c.id).limit(1)
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def seal(self, put: Callable[[Sealing], T]) -> T:
        """What `put` returns, in a transaction that puts events into the log. Others who do that wait for its end.

        The log has to have been begun. Raises Unavailable, or what `put` raises, and nothing of it has happened then.
        """

        def work(connection: Connection) -> T:
            size = connection.execute(_SIZE).scalar_one()
            return put(Sealing(connection, size))

        return await self._database.transact(work)

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


def _tiles(connection: Connection, ids: Iterable[TileId]) -> dict[TileId, bytes]:
    wanted = [(tile.level, tile.index) for tile in ids]
    if not wanted:
        return {}
    found = connection.execute(_TILES, {"wanted": wanted})
    return {TileId(level, index): hashes for level, index, hashes in found}


def _newest(connection: Connection, query: Select[tuple[object, ...]]) -> StoredCheckpoint | None:
    row = connection.execute(query).mappings().first()
    return None if row is None else StoredCheckpoint(**row)
