"""Copies all rows of an SQLite database into an empty PostgreSQL database."""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Table, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.model.errors import Conflict
from clustercert.store import tables
from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
from clustercert.store.engine.transaction import Transaction

# The number of rows that are read and written at once.
_ROWS = 1000
# Tables whose rows belong to one database: its schema, and the processes that use it.
_NOT_COPIED = (tables.migration, tables.lease)
# A new schema already has the row of this table.
_HAS_A_ROW = (tables.generation,)


async def copy_database(
    source: Database, target: Database, report_progress: Callable[[int, int], None]
) -> int:
    """Copy all rows of a database that no process uses, in one transaction. Returns the number of rows.

    Creates the schema of the target. Raises SchemaError if this program can't use one of the databases, or Conflict if
    the target has rows, or if a service uses the source. After an error or a crash, the target has no rows.

    Args:
        report_progress: called with the number of copied rows and the total number.
    """
    await migrate.check(source)
    await migrate.upgrade(target)
    copied = [each for each in tables.metadata.sorted_tables if each not in _NOT_COPIED]
    async with source.read() as reading, target.migration() as writing:
        await _require_unused(reading)
        await _require_empty(writing, copied)
        counts = {each: await _count(reading, each) for each in copied}
        done, total = 0, sum(counts.values())
        for each in copied:
            # The trigger of `audit_event` has filled `audit_unsealed` with all events, also with sealed ones.
            if each in (*_HAS_A_ROW, tables.audit_unsealed):
                await writing.execute(delete(each))
            async with reading.stream(select(each)) as rows:
                async for part in rows.mappings().partitions(_ROWS):
                    await writing.execute(insert(each), [dict(row) for row in part])
                    done += len(part)
                    report_progress(done, total)
            if await _count(writing, each) != counts[each]:
                raise Conflict(f"Not all rows of the table {each.name} were copied. Nothing was changed.")
        await _advance_ids(reading, writing, copied)
    return total


async def _require_unused(reading: AsyncConnection) -> None:
    """Raise Conflict if a process holds a lease, as each running service does."""
    lease, now = tables.lease, int(datetime.now(UTC).timestamp())
    held = await reading.execute(select(lease.c.name).where(lease.c.expires_at >= now))
    if held.first() is not None:
        raise Conflict(
            "A service uses the SQLite database. Stop the service. If the service was killed, wait for a minute."
        )


async def _require_empty(writing: Transaction, copied: list[Table]) -> None:
    for each in copied:
        if each not in _HAS_A_ROW and await _count(writing, each):
            raise Conflict(
                f"The database in the settings is not empty: its table {each.name} has rows. Name a new, empty"
                " database in `database_url`."
            )


async def _count(connection: AsyncConnection | Transaction, table: Table) -> int:
    return (await connection.execute(select(func.count()).select_from(table))).scalar_one()


async def _advance_ids(reading: AsyncConnection, writing: Transaction, copied: list[Table]) -> None:
    """Let new rows get ids above all former ones, also above those of deleted rows."""
    used = {row.name: row.seq for row in await reading.execute(text("SELECT name, seq FROM sqlite_sequence"))}
    for each in copied:
        if each.name in used:
            sequence = func.pg_get_serial_sequence(each.name, "id")
            await writing.execute(select(func.setval(sequence, used[each.name])))
