"""The one door to the database: engine, transactions, and what a failure of either means.

Reads see one snapshot. Writers of SQLite start with BEGIN IMMEDIATE, so that two of them queue instead of
failing half-way, and a commit returns only when it is on disk (WAL, synchronous=FULL).
"""

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from sqlalchemy import Connection, Dialect, event, insert, select, update
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from clustercert.errors import Unavailable
from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.generation import Generation
from clustercert.store.turn import Turn

# How long a writer waits for another one, and a request for a connection.
BUSY_SECONDS = 5
POOL_SIZE = 8


class Database:
    """Connections to one database.

    Attributes:
        generation: what this process knows of changes by others; see `generation`.
    """

    def __init__(self, url: str, busy_seconds: float = BUSY_SECONDS) -> None:
        self.url = make_url(url)
        self.engine = _engine(self.url, busy_seconds)
        self._writer = self.engine.execution_options(clustercert_writes=True)
        self._busy_seconds = busy_seconds
        # SQLite has one writer at a time. Those of this process queue here, in order and without a connection
        # each; SQLite's own way, to ask again every so often, has some wait for seconds and leaves readers none.
        self._writers = asyncio.Semaphore(1 if self.url.get_backend_name() == "sqlite" else POOL_SIZE)
        self._turn = Turn(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None
        self.generation = Generation(self._read_generation)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a read transaction. Raises Unavailable."""
        with _failures_translated():
            async with self.engine.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def write(self, *events: AuditEvent) -> AsyncIterator[AsyncConnection]:
        """A connection in a write transaction that ends by recording the events, durable once the block is left.

        For rows that nobody can have cached. Raises Unavailable; lets IntegrityError through to the one who
        knows what it means.
        """
        with _failures_translated():
            async with self._turn_to_write(), self._writer.begin() as connection:
                yield connection
                await record_events(connection, events)

    @contextlib.asynccontextmanager
    async def change(self, *events: AuditEvent) -> AsyncIterator[AsyncConnection]:
        """Like `write`, for what somebody may have cached: every worker forgets within a second."""
        async with self.write(*events) as connection:
            yield connection
            await connection.execute(update(tables.generation).values(value=tables.generation.c.value + 1))

    async def ping(self) -> None:
        """Ask the database for something trivial. Raises Unavailable."""
        await self._read_generation()

    async def close(self) -> None:
        await self.engine.dispose()

    @contextlib.asynccontextmanager
    async def _turn_to_write(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(self._busy_seconds):
                await stack.enter_async_context(self._writers)
                if self._turn is not None:
                    await stack.enter_async_context(self._turn.taken())
            yield

    async def _read_generation(self) -> int:
        async with self.read() as connection:
            value: int = (await connection.execute(select(tables.generation.c.value))).scalar_one()
            return value


async def record_events(connection: AsyncConnection, events: tuple[AuditEvent, ...]) -> None:
    """Write audit events into the caller's transaction."""
    if events:
        await connection.execute(insert(tables.audit_event), [event_row(event) for event in events])


def event_row(event: AuditEvent) -> dict[str, object]:
    """The row of an event: its canonical JSON, a salt, and the commitment to both.

    The salt keeps a commitment from being guessed back into its event; deleting both leaves the log's proofs
    whole.
    """
    body = json.dumps(
        {
            "at": event.at.isoformat(),
            "kind": event.kind,
            "project_id": event.project_id,
            "actor": event.actor,
            "subject": event.subject,
            "source": event.origin.address,
            "request_id": event.origin.request_id,
            "detail": dict(event.detail),
        },
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
    ).encode()
    salt = os.urandom(16)
    return {
        "at": event.at,
        "kind": event.kind,
        "project_id": event.project_id,
        "actor": event.actor,
        "subject": event.subject,
        "body": body,
        "salt": salt,
        "commitment": hashlib.sha256(salt + body).digest(),
    }


@contextlib.contextmanager
def _failures_translated() -> Iterator[None]:
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError, NotSupportedError):
        # The database did answer: trying again would not help.
        raise
    except (DBAPIError, PoolTimeout, sqlite3.Error, TimeoutError, OSError) as error:
        raise Unavailable("The database does not answer now. Try again in a moment.") from error


def _engine(url: URL, busy_seconds: float) -> AsyncEngine:
    if url.get_backend_name() != "sqlite":
        return create_async_engine(
            url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, pool_timeout=busy_seconds, pool_pre_ping=True
        )
    engine = create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_seconds,
        connect_args={"timeout": busy_seconds},
    )
    event.listen(engine.sync_engine, "do_connect", _make_private_file)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _make_private_file(
    _dialect: Dialect, _entry: ConnectionPoolEntry, args: Sequence[str], _options: object
) -> None:
    # SQLite itself would make the file as the umask says; what it puts beside the file has the file's mode.
    # A file that exists must not even be opened: closing it again would drop this process's locks on it.
    # Source: "How To Corrupt An SQLite Database File", section 2.2.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(args[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _prepare_sqlite(connection: AsyncAdapt_aiosqlite_connection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own idea of when a transaction begins is switched off; `_begin_sqlite` says it.
    connection.isolation_level = None
    _switch_to_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.cursor().execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: AsyncAdapt_aiosqlite_connection) -> None:
    # SQLite's own patience does not cover this switch, which several processes may make at once on a new
    # file.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.cursor().execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            connection.run_async(lambda _driver_connection: asyncio.sleep(0.005))
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("clustercert_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
