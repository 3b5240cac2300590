"""Queries for data keys, and for the secrets that they seal."""

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import func, insert, or_, select, update

from clustercert.model import AuditEvent
from clustercert.model.errors import Conflict
from clustercert.pki.envelope import sealed_prefix
from clustercert.store import tables
from clustercert.store.engine.queries import Queries, conflict_if_violated

_data_key = tables.data_key

# For each table with sealed secrets, the column that contains the secret. `SealedRow.bound_to` begins with the table's
# name.
_SEALED = {
    "audit_log": (tables.audit_log, tables.audit_log.c.sealed_key),
    "access_key": (tables.access_key, tables.access_key.c.sealed_secret),
    "client_ca": (tables.client_ca, tables.client_ca.c.sealed_key),
}
SEALED_TABLES = tuple(_SEALED)

_CONCURRENT_CHANGE = "Another process changed the data keys at the same time. Run the command again."


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key, wrapped by the key-encryption key `kek_id`. Exactly one data key is active and seals new secrets."""

    id: int
    kek_id: str
    wrapped: bytes
    active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A sealed secret, and the table and id of its row."""

    table: str
    id: str
    sealed: bytes

    @property
    def bound_to(self) -> str:
        """Return the context that the secret is bound to, as additional authenticated data."""
        return f"{self.table}:{self.id}"


class KeyQueries(Queries):
    """Reads and changes data keys and sealed secrets."""

    async def data_keys(self) -> tuple[WrappedKey, ...]:
        """Return all data keys, oldest first."""
        rows = await self._rows(select(_data_key).order_by(_data_key.c.id))
        return tuple(WrappedKey(**row._asdict()) for row in rows)

    async def add_active(self, key: WrappedKey, event: AuditEvent) -> None:
        """Add a data key and make it the active one. Raises Conflict if the id is taken."""
        with conflict_if_violated(_CONCURRENT_CHANGE):
            async with self._database.transaction(event, invalidate=True) as connection:
                await connection.execute(update(_data_key).values(active=False))
                await connection.execute(insert(_data_key).values(asdict(key)))

    async def rewrap(self, exchanges: Iterable[tuple[WrappedKey, WrappedKey]], event: AuditEvent) -> None:
        """Replace data keys in the database: in each pair, the second key replaces the first key.

        If any stored key is no longer equal to the first key of its pair, replaces none and raises Conflict.
        """
        async with self._database.transaction(event) as connection:
            for old, new in exchanges:
                result = await connection.execute(
                    update(_data_key)
                    .where(_data_key.c.id == old.id, _data_key.c.wrapped == old.wrapped)
                    .values(kek_id=new.kek_id, wrapped=new.wrapped)
                )
                if result.rowcount != 1:
                    raise Conflict(_CONCURRENT_CHANGE)

    @contextlib.asynccontextmanager
    async def recording(self, event: AuditEvent) -> AsyncIterator[None]:
        """Record an event about a change that the `with` block makes outside the database, if the block succeeds."""
        async with self._database.transaction(event):
            yield

    async def sealed_by_others(self, table: str, data_key_id: int, after: str, limit: int) -> list[SealedRow]:
        """Return at most `limit` secrets that this data key did not seal, with ids above `after`, sorted by id."""
        rows, column = _SEALED[table]
        prefix = sealed_prefix(data_key_id)
        # Compare the length too, because `substr` of an empty BLOB is NULL in SQLite.
        by_another = or_(func.length(column) < len(prefix), func.substr(column, 1, len(prefix)) != prefix)
        query = (
            select(rows.c.id, column)
            .where(rows.c.id > after, column.is_not(None), by_another)
            .order_by(rows.c.id)
            .limit(limit)
        )
        return [SealedRow(table, *row) for row in await self._rows(query)]

    async def reseal(self, exchanges: Sequence[tuple[SealedRow, bytes]]) -> int:
        """Replace the sealed secrets that have not changed since they were read.

        Returns the number of replaced secrets.
        """
        resealed = 0
        async with self._database.transaction() as connection:
            for old, sealed in exchanges:
                rows, column = _SEALED[old.table]
                query = update(rows).where(rows.c.id == old.id, column == old.sealed)
                resealed += (await connection.execute(query.values({column: sealed}))).rowcount
        return resealed
