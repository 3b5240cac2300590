"""The one door to the database: transactions, and what a failure of one means.

Reads see one snapshot. Writers of SQLite start with BEGIN IMMEDIATE, so that two of them queue instead of failing
half-way. Writers of PostgreSQL run in READ COMMITTED, and whoever decides by what it read locks those rows first: the
ledger, which only inserts, then never has to begin again because of others, and does so by one statement that is a
transaction by itself. A commit returns when it is on disk.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from clustercert.errors import Unavailable
from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.bulk_insert import BulkInsert, Inserts, Rows, postgresql_statement
from clustercert.store.checkpointer import Checkpointer
from clustercert.store.engine import (
    BUSY_SECONDS,
    POOL_SIZE,
    STATEMENT_SECONDS,
    new_engine,
    new_sqlite_writer,
)
from clustercert.store.events import record_events
from clustercert.store.generation import Generation
from clustercert.store.transaction import Transaction
from clustercert.store.writer import NOT_NOW, NothingBegun, Writer, acquired

T = TypeVar("T")
P = ParamSpec("P")

# The others are for readers.
_WRITERS = POOL_SIZE // 2
# Classes of SQLSTATE that say what is wrong with a statement or its values: data, constraint, syntax or access. The
# driver has one exception for most of them.
_REFUSED = frozenset({"22", "23", "42"})
# The database is being made or restored.
_NO_SUCH_TABLE = "42P01"

_GENERATION = select(tables.generation.c.value)


class Database:
    """Connections to one database.

    Attributes:
        generation: what this process knows of changes by others; see `generation`.
        engine, writing_engine: of connections that read, and of those that write. With PostgreSQL these are the same.
    """

    def __init__(
        self, url: str, busy_seconds: float = BUSY_SECONDS, statement_seconds: float = STATEMENT_SECONDS
    ) -> None:
        self.url = make_url(url)
        self._busy_seconds = busy_seconds
        self.engine = new_engine(self.url, busy_seconds, statement_seconds)
        sqlite = self.url.get_backend_name() == "sqlite"
        self.writing_engine = new_sqlite_writer(self.url) if sqlite else self.engine.sync_engine
        self._writer = (
            Writer(self.writing_engine, busy_seconds, Checkpointer(str(self.url.database)))
            if sqlite
            else None
        )
        self._reader = self.engine if sqlite else _reading(self.engine)
        # Of PostgreSQL: without BEGIN and COMMIT, each statement is a transaction.
        self._by_statement = (
            self.engine if sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        )
        self._writers = asyncio.Semaphore(_WRITERS)
        # Opening a file takes no time, and must not be given up half-way.
        self._connect_seconds = None if sqlite else busy_seconds
        self.generation = Generation(self.read_generation)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a read transaction. Raises Unavailable."""
        with _failures_translated():
            async with self._connected(self._reader) as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def write(self, *events: AuditEvent) -> AsyncIterator[Transaction]:
        """A write transaction that ends by recording the events, durable once the block is left.

        For rows that nobody can have cached. Raises Unavailable; lets IntegrityError through to the one who
        knows what it means.
        """
        with _failures_translated():
            async with self._transaction() as transaction:
                yield transaction
                await record_events(transaction, events)

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Transaction]:
        if self._writer is not None:
            async with self._writer.transaction() as transaction:
                yield transaction
        else:
            async with (
                acquired(self._writers, self._busy_seconds),
                self._connected(_writing(self.engine)) as connection,
                connection.begin(),
            ):
                yield connection

    async def insert(self, *inserts: tuple[BulkInsert, Rows]) -> None:
        """Insert rows, which nobody can have cached, in one transaction; return when they are durable.

        Raises NothingBegun or another Unavailable; lets through what refuses a row.
        """
        inserts = tuple((statement, rows) for statement, rows in inserts if rows)
        if not inserts:
            return
        if self._writer is not None:
            with _failures_translated():
                await self._writer.insert(inserts)
        else:
            await self._insert_by_statement(inserts)

    async def _insert_by_statement(self, inserts: Inserts) -> None:
        """By one statement, outside of a transaction: in one round trip."""
        statement, parameters = postgresql_statement(inserts)
        begun = False
        try:
            with _failures_translated():
                async with (
                    acquired(self._writers, self._busy_seconds),
                    self._connected(self._by_statement) as connection,
                ):
                    begun = True
                    await connection.exec_driver_sql(statement, parameters)
        except Unavailable as failure:
            if begun:
                raise
            raise NothingBegun(failure.message) from failure.__cause__

    async def run(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a function returns that takes the connection of a write transaction, once what it did is durable.

        Like `write`, and on SQLite without keeping others from writing whenever this process's event loop is busy.
        """
        with _failures_translated():
            if self._writer is not None:
                return await self._writer.run(function, *args, **kwargs)
            async with self._transaction() as transaction:
                return await transaction.run_sync(function, *args, **kwargs)

    @contextlib.asynccontextmanager
    async def change(self, *events: AuditEvent) -> AsyncIterator[Transaction]:
        """Like `write`, for what somebody may have cached: every worker forgets within a second."""
        async with self.write(*events) as connection:
            yield connection
            await connection.execute(update(tables.generation).values(value=tables.generation.c.value + 1))

    @contextlib.asynccontextmanager
    async def epoch(self, *events: AuditEvent) -> AsyncIterator[tuple[Transaction, int]]:
        """Like `change`, with the generation that this transaction makes, for rows that have to say it.

        Whoever raises the number holds its row until the commit, so generations are committed in their order.
        """
        async with self.write(*events) as connection:
            yield connection, await raise_generation(connection)

    @contextlib.asynccontextmanager
    async def migration(self) -> AsyncIterator[Transaction]:
        """Like `write`, but each statement may take as long as it likes."""
        if self._writer is not None:
            async with self.write() as transaction:
                yield transaction
            return
        engine = new_engine(self.url, self._busy_seconds, statement_seconds=None)
        try:
            with _failures_translated():
                async with _writing(engine).begin() as connection:
                    yield connection
        finally:
            await engine.dispose()

    async def ping(self) -> None:
        """Ask the database for something trivial. Raises Unavailable."""
        await self.read_generation()

    async def flushes(self) -> bool:
        """Whether what is committed is on disk, as far as the server says. Raises Unavailable."""
        if self._writer is not None:
            return True
        async with self.read() as connection:
            query = text("SELECT setting FROM pg_settings WHERE name = 'fsync'")
            return (await connection.execute(query)).scalar() != "off"

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer.close()
        await self.engine.dispose()

    @contextlib.asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(self._connect_seconds):
                try:
                    connection = await stack.enter_async_context(engine.connect())
                except (SQLAlchemyError, OSError):
                    raise
                except Exception as failure:
                    # What is asked of a new connection fails as the driver has it, which nobody else knows.
                    raise ConnectionError("a new connection to the database failed") from failure
            yield connection

    async def read_generation(self) -> int:
        """The number as it is now. Raises Unavailable.

        Each worker asks for it several times a second. By itself, outside of a transaction, it takes PostgreSQL one
        round trip rather than three.
        """
        with _failures_translated():
            async with self._connected(self._by_statement) as connection:
                value: int = (await connection.execute(_GENERATION)).scalar_one()
                return value


async def raise_generation(connection: Transaction) -> int:
    """Raise the generation in the caller's transaction; the number that it makes.

    Its row stays locked until the commit: whoever changes other rows that are changed elsewhere does so first, as
    those who use `change` do.
    """
    raised = update(tables.generation).values(value=tables.generation.c.value + 1)
    value: int = (await connection.execute(raised.returning(tables.generation.c.value))).scalar_one()
    return value


def _reading(engine: AsyncEngine) -> AsyncEngine:
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _writing(engine: AsyncEngine) -> AsyncEngine:
    return engine.execution_options(isolation_level="READ COMMITTED")


@contextlib.contextmanager
def _failures_translated() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout, sqlite3.Error, TimeoutError, OSError) as error:
        if _refused(error):
            raise
        raise Unavailable(NOT_NOW) from error


def _refused(error: Exception) -> bool:
    """Whether the database did answer, and trying again would not help."""
    sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
    if sqlstate is None:
        return isinstance(error, (IntegrityError, ProgrammingError, DataError, NotSupportedError))
    return sqlstate[:2] in _REFUSED and sqlstate != _NO_SUCH_TABLE
