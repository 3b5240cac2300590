"""Every SQL statement about data keys, and about exchanging what they seal for the same sealed anew."""

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.errors import Conflict
from clustercert.model import AuditEvent
from clustercert.sealing import sealed_prefix
from clustercert.store import tables
from clustercert.store.database import Database

_data_key = tables.data_key

# What a sealed secret is bound to begins with the name of its table; see `SealedRow.bound_to`.
_SEALED = {
    "audit_log": (tables.audit_log, tables.audit_log.c.sealed_key),
    "access_key": (tables.access_key, tables.access_key.c.sealed_secret),
    "client_ca": (tables.client_ca, tables.client_ca.c.sealed_key),
}
SEALED_TABLES = tuple(_SEALED)


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as the store keeps it.

    Attributes:
        kek_id: which key-encryption key wraps it.
        active: whether it seals; exactly one does.
    """

    id: int
    kek_id: str
    wrapped: bytes
    active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A secret in its row."""

    table: str
    id: str
    sealed: bytes

    @property
    def bound_to(self) -> str:
        """What the secret was sealed for."""
        return f"{self.table}:{self.id}"


class KeyRows:
    """Data keys, and the rows that hold what they seal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> tuple[WrappedKey, ...]:
        """Every data key, oldest first."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(_data_key).order_by(_data_key.c.id))
            return tuple(WrappedKey(**row) for row in rows.mappings())

    async def add_active(self, key: WrappedKey, event: AuditEvent) -> None:
        """Store a new data key, which seals from now on. Raises Conflict where there is one of that id."""
        try:
            async with self._database.change(event) as connection:
                await connection.execute(update(_data_key).values(active=False))
                await connection.execute(insert(_data_key).values(asdict(key)))
        except IntegrityError as error:
            raise _changed_meanwhile() from error

    async def rewrap(self, exchanges: Iterable[tuple[WrappedKey, WrappedKey]], event: AuditEvent) -> None:
        """Exchange each first key for its second, all or none. Raises Conflict where one is not as it was."""
        async with self._database.write(event) as connection:
            for old, new in exchanges:
                result = await connection.execute(
                    update(_data_key)
                    .where(_data_key.c.id == old.id, _data_key.c.wrapped == old.wrapped)
                    .values(kek_id=new.kek_id, wrapped=new.wrapped)
                )
                if result.rowcount != 1:
                    raise _changed_meanwhile()

    @contextlib.asynccontextmanager
    async def recording(self, event: AuditEvent) -> AsyncIterator[None]:
        """Record an event of something outside the database, if the block comes to its end."""
        async with self._database.write(event):
            yield

    async def sealed_by_others(self, table: str, data_key_id: int, after: str, limit: int) -> list[SealedRow]:
        """At most `limit` secrets that this data key has not sealed, of the rows after an id, in order."""
        rows, column = _SEALED[table]
        prefix = sealed_prefix(data_key_id)
        # To SQLite, a part of nothing is NULL, which differs from nothing.
        by_another = or_(func.length(column) < len(prefix), func.substr(column, 1, len(prefix)) != prefix)
        query = (
            select(rows.c.id, column)
            .where(rows.c.id > after, column.is_not(None), by_another)
            .order_by(rows.c.id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [SealedRow(table, *row) for row in await connection.execute(query)]

    async def reseal(self, exchanges: Sequence[tuple[SealedRow, bytes]]) -> int:
        """Put new sealed secrets in place of those that are still as they were; how many these are."""
        resealed = 0
        async with self._database.write() as connection:
            for old, sealed in exchanges:
                rows, column = _SEALED[old.table]
                condition = (rows.c.id == old.id, column == old.sealed)
                resealed += (
                    await connection.execute(update(rows).where(*condition).values({column: sealed}))
                ).rowcount
        return resealed


def _changed_meanwhile() -> Conflict:
    return Conflict("Another process changed the data keys at the same moment. Run the command again.")
