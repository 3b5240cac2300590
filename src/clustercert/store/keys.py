"""Queries for data keys, and for the secrets that they seal."""

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import delete, func, insert, or_, select, update

from clustercert.model import AuditEvent
from clustercert.model.errors import Conflict
from clustercert.pki.envelope import sealed_prefix
from clustercert.store import tables
from clustercert.store.engine.queries import Queries, conflict_if_violated

_data_key = tables.data_key
_wrapping = tables.data_key_wrapping

# For each table with sealed secrets, the column that contains the secret. `SealedRow.bound_to` begins with the table's
# name.
_SEALED = {
    "audit_log": (tables.audit_log, tables.audit_log.c.sealed_key),
    "access_key": (tables.access_key, tables.access_key.c.sealed_secret),
    "client_ca": (tables.client_ca, tables.client_ca.c.sealed_key),
    "console_session": (tables.console_session, tables.console_session.c.sealed_credential),
}
SEALED_TABLES = tuple(_SEALED)

_CONCURRENT_CHANGE = "Another process changed the data keys at the same time. Run the command again."


@dataclass(frozen=True, slots=True)
class Wrapping:
    """A data key, encrypted by the key-encryption key `kek_id`."""

    kek_id: str
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key in its wrapped forms, sorted by `kek_id`. Exactly one data key is active and seals new secrets."""

    id: int
    active: bool
    created_at: datetime
    wrappings: tuple[Wrapping, ...]

    @property
    def kek_ids(self) -> tuple[str, ...]:
        return tuple(wrapping.kek_id for wrapping in self.wrappings)


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
        query = (
            select(_data_key, _wrapping.c.kek_id, _wrapping.c.wrapped)
            .join(_wrapping, _wrapping.c.data_key_id == _data_key.c.id)
            .order_by(_data_key.c.id, _wrapping.c.kek_id)
        )
        found: dict[int, WrappedKey] = {}
        for key_id, active, created_at, *wrapping in await self._rows(query):
            key = found.get(key_id, WrappedKey(key_id, active, created_at, ()))
            found[key_id] = replace(key, wrappings=(*key.wrappings, Wrapping(*wrapping)))
        return tuple(found.values())

    async def add_active(self, key: WrappedKey, event: AuditEvent) -> None:
        """Add a data key and make it the active one. Raises Conflict if the id is taken."""
        row = {"id": key.id, "active": key.active, "created_at": key.created_at}
        with conflict_if_violated(_CONCURRENT_CHANGE):
            async with self._database.transaction(event, invalidate=True) as connection:
                await connection.execute(update(_data_key).values(active=False))
                await connection.execute(insert(_data_key).values(row))
                await connection.execute(insert(_wrapping), [_row(key, each) for each in key.wrappings])

    async def rewrap(self, exchanges: Iterable[tuple[WrappedKey, WrappedKey]], event: AuditEvent) -> None:
        """Replace wrappings in the database: in each pair, the wrappings of the second key replace those of the first.

        If any stored wrapping is no longer as in the first key of its pair, replaces none and raises Conflict.
        """
        async with self.rewrapping(exchanges, event):
            pass

    @contextlib.asynccontextmanager
    async def rewrapping(
        self, exchanges: Iterable[tuple[WrappedKey, WrappedKey]], event: AuditEvent
    ) -> AsyncIterator[None]:
        """Like `rewrap`, together with a change that the `with` block makes outside the database.

        If the block fails, replaces none.
        """
        with conflict_if_violated(_CONCURRENT_CHANGE):
            async with self._database.transaction(event) as connection:
                for old, new in exchanges:
                    for wrapping in set(old.wrappings) - set(new.wrappings):
                        result = await connection.execute(
                            delete(_wrapping).where(
                                _wrapping.c.data_key_id == old.id,
                                _wrapping.c.kek_id == wrapping.kek_id,
                                _wrapping.c.wrapped == wrapping.wrapped,
                            )
                        )
                        if result.rowcount != 1:
                            raise Conflict(_CONCURRENT_CHANGE)
                    if added := [each for each in new.wrappings if each not in old.wrappings]:
                        await connection.execute(insert(_wrapping), [_row(new, each) for each in added])
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


def _row(key: WrappedKey, wrapping: Wrapping) -> dict[str, object]:
    return {"data_key_id": key.id, "kek_id": wrapping.kek_id, "wrapped": wrapping.wrapped}
