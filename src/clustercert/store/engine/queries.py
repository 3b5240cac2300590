"""The base class of query modules, and functions for changes that several query modules use.

Query modules build the statements for frequent requests only once, because building a statement takes longer than
running it.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import Delete, Row, Select, Table, Update, insert, select
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent
from clustercert.model.errors import ConcurrentChange, Conflict, NotFound
from clustercert.store.audit.events import record_events
from clustercert.store.engine.database import Database, raise_generation
from clustercert.store.engine.transaction import Transaction

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Number of rows per transaction. The number is small enough that other writers wait only briefly.
BATCH = 1000


class Queries:
    """Base class for the queries of one domain.

    Each method of this class uses its own transaction, and raises Unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _rows(
        self, query: Select[*Ts], values: Mapping[str, object] | None = None
    ) -> Sequence[Row[*Ts]]:
        async with self._database.read() as connection:
            return (await connection.execute(query, values)).all()

    async def _row(self, query: Select[*Ts], values: Mapping[str, object] | None = None) -> Row[*Ts] | None:
        async with self._database.read() as connection:
            return (await connection.execute(query, values)).first()

    async def _scalar(self, query: Select[T]) -> T | None:
        """Return the first column of the first row, or None."""
        row = await self._row(query)
        return None if row is None else row[0]

    async def _change(
        self, statement: Update | Delete, event: AuditEvent, missing: str = "The object no longer exists."
    ) -> None:
        """Change or delete one row, record an event, and invalidate caches. Raises NotFound if there is no such row."""
        async with self._database.transaction(event, invalidate=True) as connection:
            await change_one(connection, statement, missing)


async def change_one(
    connection: Transaction, statement: Update | Delete, missing: str = "The object no longer exists."
) -> None:
    """Change or delete one row. Raises NotFound if the row does not exist."""
    if (await connection.execute(statement)).rowcount == 0:
        raise NotFound(missing)


async def exists(connection: Transaction, query: Select[Any]) -> bool:
    """Whether a query returns a row. Use `with_for_update` in the query to lock the row."""
    return (await connection.execute(query)).first() is not None


async def insert_once(
    connection: Transaction, table: Table, row: Mapping[str, str], event: AuditEvent
) -> bool:
    """Insert a row, record the event and invalidate caches, unless the row exists. Returns whether the row is new.

    All columns of the row must be part of the primary key.
    """
    if await exists(connection, select(table).filter_by(**row)):
        return False
    await connection.execute(insert(table).values(dict(row)))
    await raise_generation(connection)
    await record_events(connection, (event,))
    return True


@contextlib.contextmanager
def conflict_if_violated(message: str | None = None) -> Iterator[None]:
    """Raise Conflict if a constraint is violated: the row already exists, or it refers to a row that does not exist.

    If no message is given, raises ConcurrentChange instead.
    """
    try:
        yield
    except IntegrityError as error:
        raise (ConcurrentChange() if message is None else Conflict(message)) from error
