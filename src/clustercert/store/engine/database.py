"""Opens database transactions. `failures` translates the errors of the drivers.

A read transaction sees one snapshot. On SQLite, write transactions start with BEGIN IMMEDIATE, so that concurrent
transactions wait for each other instead of failing half-way. On PostgreSQL, write transactions use READ COMMITTED, and
code that bases a decision on rows locks them first. So the ledger, which only inserts, never has to retry because of
other writers. A commit returns when its changes are on disk.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, bindparam, func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from clustercert.model import AuditEvent, new_id
from clustercert.model.errors import StoreFault, Unavailable
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.engine.bulk_insert import (
    BulkInsert,
    Inserts,
    Rows,
    insert_into_sqlite,
    postgresql_statement,
)
from clustercert.store.engine.checkpointer import Checkpointer
from clustercert.store.engine.connections import (
    BUSY_SECONDS,
    POOL_SIZE,
    STATEMENT_SECONDS,
    new_engine,
    new_sqlite_writer,
)
from clustercert.store.engine.failures import DISK_FULL, SHARED_SESSIONS, failures_translated
from clustercert.store.engine.generation import Generation
from clustercert.store.engine.outage import Outage
from clustercert.store.engine.transaction import RolledBack, Transaction, roll_back_if_asked
from clustercert.store.engine.writer import NothingBegun, Writer
from clustercert.store.engine.writer_slots import WriterSlots

T = TypeVar("T")
P = ParamSpec("P")

# With a larger difference, two replicas may disagree about how old a client CA is, and one deletes the key of a CA that
# the other is still registering. Tokens and signed requests are valid for only a few minutes, too.
MAX_CLOCK_OFFSET = timedelta(minutes=1)
# A setting of the session that nothing else uses.
_SESSION = "clustercert.session"
# While other clients use a connection pooler, one round could find two sessions by chance.
_SESSION_ROUNDS = 3
# Maximum number of connections for writers. The rest of the pool is for readers.
_WRITERS = POOL_SIZE // 2
_GENERATION = select(tables.generation.c.value)
_RUNNING = text(
    "SELECT pid FROM pg_stat_activity WHERE pid IN :process_ids AND pid <> pg_backend_pid()"
    " AND usename = current_user AND state = 'active'"
).bindparams(bindparam("process_ids", expanding=True))


class Database:
    """Connections to one database.

    Attributes:
        generation: the number that tells caches when to drop their entries; see the module `generation`.
        outage: whether this process can't read the database now, while it watches the generation.
        lacks_space: whether the last `insert` failed because the database's disk is full.
        engine, writing_engine: the engines for reading and for writing, which are the same on PostgreSQL.
    """

    def __init__(
        self,
        url: str,
        busy_seconds: float = BUSY_SECONDS,
        statement_seconds: float = STATEMENT_SECONDS,
        data_dir: Path | None = None,
    ) -> None:
        """Create the engines. Connects to nothing.

        Args:
            data_dir: the service's data folder. Errors name its owner.
        """
        self.url = make_url(url)
        self.lacks_space = False
        self._failures = partial(failures_translated, self.url, data_dir)
        self._busy_seconds = busy_seconds
        self._writer_slots = WriterSlots(_WRITERS, self._still_running)
        self.engine = new_engine(self.url, busy_seconds, statement_seconds, self._writer_slots.abandon)
        self._writer: Writer | None = None
        if self.url.get_backend_name() == "sqlite":
            self.writing_engine = new_sqlite_writer(self.url)
            self._writer = Writer(self.writing_engine, busy_seconds, Checkpointer(str(self.url.database)))
            self._reader = self._writing = self._by_statement = self.engine
        else:
            self.writing_engine = self.engine.sync_engine
            self._reader = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._writing = self.engine.execution_options(isolation_level="READ COMMITTED")
            # With this engine, each statement is a transaction of its own, without BEGIN and COMMIT.
            self._by_statement = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        # Under overload, requests wait for a connection. If the reads of the generation waited too, the worker would
        # use no caches, which would increase the load.
        self._unreserved = asyncio.Semaphore(POOL_SIZE - 1)
        # Connecting to SQLite has no time-out, because opening a file is fast and must not be cancelled half-way.
        self._connect_seconds = None if self._writer is not None else busy_seconds
        self.outage = Outage()
        self.generation = Generation(self.read_generation, outage=self.outage)

    @property
    def folder(self) -> Path | None:
        """The folder of the SQLite file, or None for a database server."""
        return Path(str(self.url.database)).absolute().parent if self._writer is not None else None

    @contextlib.asynccontextmanager
    async def read(self, *, reserved: bool = False) -> AsyncIterator[AsyncConnection]:
        """Open a connection in a read transaction. Raises Unavailable.

        `reserved`: use the connection that is reserved for reading the generation, and what changed since.
        """
        with self._failures():
            async with self._connected(self._reader, reserved=reserved) as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def transaction(self, *events: AuditEvent, invalidate: bool = False) -> AsyncIterator[Transaction]:
        """Open a write transaction, which is durable after the block. Records `events` just before the commit.

        `invalidate`: the transaction changes data that workers may have cached, so every worker drops its caches within
        a second. Raises Unavailable or IntegrityError.
        """
        with contextlib.suppress(RolledBack), self._failures():
            async with self._begin() as transaction:
                yield transaction
                if invalidate:
                    await raise_generation(transaction)
                await record_events(transaction, events)
                roll_back_if_asked()

    @contextlib.asynccontextmanager
    async def _begin(self) -> AsyncIterator[Transaction]:
        if self._writer is not None:
            async with self._writer.transaction() as transaction:
                yield transaction
        else:
            async with (
                self._writer_slots.hold(self._busy_seconds),
                self._connected(self._writing) as connection,
                connection.begin(),
            ):
                yield connection

    async def record(self, *events: AuditEvent) -> None:
        """Record audit events in a transaction of their own. Raises Unavailable."""
        async with self.transaction(*events):
            pass

    async def insert(self, *inserts: tuple[BulkInsert, Rows]) -> None:
        """Insert rows in one transaction without invalidating caches, and return when the rows are durable.

        Raises NothingBegun or another Unavailable, or the database's error if the database rejects a row.
        """
        inserts = tuple((statement, rows) for statement, rows in inserts if rows)
        if not inserts:
            return
        try:
            if self._writer is not None:
                with self._failures():
                    await self._writer.run(insert_into_sqlite, inserts)
            else:
                await self._insert_by_statement(inserts)
        except Unavailable as failure:
            self.lacks_space = self.lacks_space or failure.message == DISK_FULL
            raise
        self.lacks_space = False

    async def _insert_by_statement(self, inserts: Inserts) -> None:
        """Insert with one statement outside of a transaction, in one round trip."""
        statement, parameters = postgresql_statement(inserts)
        begun = False
        try:
            with self._failures():
                async with (
                    self._writer_slots.hold(self._busy_seconds),
                    self._connected(self._by_statement) as connection,
                ):
                    begun = True
                    await connection.exec_driver_sql(statement, parameters)
        except Unavailable as failure:
            if begun or isinstance(failure, StoreFault):
                raise
            raise NothingBegun(failure.message) from failure.__cause__

    async def run(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function in a write transaction, with the transaction's connection.

        Returns the result once the commit is durable. On SQLite, the whole transaction runs in the writer thread, so a
        busy event loop does not delay other writers.
        """
        with self._failures():
            if self._writer is not None:
                return await self._writer.run(function, *args, **kwargs)
            async with self._begin() as transaction:
                return await transaction.run_sync(function, *args, **kwargs)

    @contextlib.asynccontextmanager
    async def migration(self) -> AsyncIterator[Transaction]:
        """Like `transaction`, but statements have no time-out."""
        if self._writer is not None:
            async with self.transaction() as transaction:
                yield transaction
            return
        engine = new_engine(
            self.url, self._busy_seconds, statement_seconds=None, abandon=self._writer_slots.abandon
        )
        try:
            with self._failures():
                async with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
                    yield connection
        finally:
            await engine.dispose()

    async def ping(self) -> None:
        """Run a trivial query. Raises Unavailable."""
        await self.read_generation()

    async def clock_offset(self) -> timedelta:
        """Return how far this machine's clock is ahead of the database server's clock. Raises Unavailable.

        Returns zero for SQLite.
        """
        if self._writer is not None:
            return timedelta()
        with self._failures():
            async with self._connected(self._by_statement) as connection:
                before = datetime.now(UTC)
                theirs: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
                return before + (datetime.now(UTC) - before) / 2 - theirs

    async def refuse_shared_sessions(self) -> None:
        """Raise StoreFault if a connection pooler runs transactions of several connections in one server session.

        The settings of a session would then apply to other connections, such as `synchronous_commit` and the time-outs.
        Raises Unavailable.
        """
        if self._writer is not None:
            return
        with self._failures():
            async with (
                self._connected(self._by_statement) as first,
                self._connected(self._by_statement) as second,
            ):
                for _ in range(_SESSION_ROUNDS):
                    names = {new_id(): connection for connection in (first, second)}
                    for name, connection in names.items():
                        await connection.execute(select(func.set_config(_SESSION, name, False)))
                    for name, connection in names.items():
                        found = await connection.execute(select(func.current_setting(_SESSION, True)))
                        if found.scalar_one() != name:
                            raise StoreFault(SHARED_SESSIONS)

    async def flushes(self) -> bool:
        """Whether the server is configured to flush commits to disk. Raises Unavailable."""
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
    async def _connected(
        self, engine: AsyncEngine, *, reserved: bool = False
    ) -> AsyncIterator[AsyncConnection]:
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(self._connect_seconds):
                if not reserved and self._writer is None:
                    await stack.enter_async_context(self._unreserved)
                try:
                    connection = await stack.enter_async_context(engine.connect())
                except (SQLAlchemyError, OSError):
                    raise
                except Exception as failure:
                    # SQLAlchemy does not wrap driver exceptions from the statements that prepare a new connection.
                    raise ConnectionError("a new connection to the database failed") from failure
            yield connection

    async def _still_running(self, process_ids: Collection[int]) -> set[int]:
        """Return which of these server processes still run a statement for this database user. Raises Unavailable."""
        async with self.read() as connection:
            rows = await connection.execute(_RUNNING, {"process_ids": list(process_ids)})
            return {row.pid for row in rows}

    async def read_generation(self) -> int:
        """Read the current generation. Raises Unavailable.

        Each worker reads the generation several times a second. Reading outside of a transaction takes one round trip
        to PostgreSQL instead of three.
        """
        with self._failures():
            async with self._connected(self._by_statement, reserved=True) as connection:
                value: int = (await connection.execute(_GENERATION)).scalar_one()
                return value


async def raise_generation(connection: Transaction) -> int:
    """Increase the generation in the caller's transaction, and return the new number.

    The generation's row stays locked until the commit, so generations commit in increasing order. To avoid deadlocks,
    transactions lock this row last. Only the transactions in `RevocationQueries` and `FederationQueries` lock the row
    first.
    """
    raised = update(tables.generation).values(value=tables.generation.c.value + 1)
    value: int = (await connection.execute(raised.returning(tables.generation.c.value))).scalar_one()
    return value


async def hold_generation(connection: Transaction) -> None:
    """Let no other transaction raise the generation before the caller's transaction commits.

    A transaction calls this last if it makes a user known, or gives a name an owner. So a revocation sees the user, or
    the user gets no certificate before the revocation is committed. See `RevocationQueries.revoke_user`.
    """
    await connection.execute(_GENERATION.with_for_update(read=True))
