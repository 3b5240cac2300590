"""How connections are made: what each kind of database is told at their start, and when one is given up.

Transactions, and what their failures mean, are `database`'s business.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

if TYPE_CHECKING:
    # The engine loads the driver of the one database that there is.
    from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

# How long a writer waits for another one, and a request for a connection.
BUSY_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 0.001
POOL_SIZE = 8

# A server that has not answered for this long is taken for gone. Its own bound comes first, so that a statement which
# is only slow ends with an answer, and its connection stays in use.
STATEMENT_SECONDS = 3.0
_GRACE_SECONDS = 0.5
# A process that is stopped in the middle of a transaction must not keep the others from its rows for longer.
_IDLE_SECONDS = 10
# What stands between us and the server may forget a connection on which nothing moves, mostly after four minutes.
_RECYCLE_SECONDS = 180

# A server that lost its place as the primary goes on reading, and would refuse every write for as long as a
# connection to it stays in the pool.
_DEMOTED = "25006"


class _Driver(Protocol):
    """A connection as asyncpg has it."""

    async def fetch(self, query: str, *values: object) -> Iterable[tuple[str, str]]: ...

    async def execute(self, query: str) -> object: ...


def new_engine(url: URL, busy_seconds: float, statement_seconds: float | None) -> AsyncEngine:
    """Connections to a database. Without `statement_seconds` a server may take as long as it likes."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, busy_seconds)
    return _postgresql(url, busy_seconds, statement_seconds)


def _postgresql(url: URL, busy_seconds: float, statement_seconds: float | None) -> AsyncEngine:
    # No connection is asked whether it still lives before it is used, which would take as long as what it is for: a
    # worker reads its generation all the time, and the first connection that fails takes all others along.
    engine = create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_seconds,
        pool_recycle=_RECYCLE_SECONDS,
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args={
            "timeout": STATEMENT_SECONDS,
            "command_timeout": statement_seconds and statement_seconds + _GRACE_SECONDS,
        },
    )
    wanted = _ALWAYS if statement_seconds is None else _ALWAYS | _bounds(statement_seconds)

    def prepare(connection: "AsyncAdapt_asyncpg_connection", _entry: ConnectionPoolEntry) -> None:
        connection.run_async(lambda driver_connection: _prepare_postgresql(driver_connection, wanted))

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "handle_error", _give_up_what_hangs)
    return engine


# A commit has to be on disk when it returns, whatever the server, the database or the role says; one setting is
# stricter still, and stays. A statement that runs outside of a transaction can't say its level itself.
_ALWAYS = {"synchronous_commit": "on", "default_transaction_isolation": "read committed"}
_STRICTER = {"synchronous_commit": "remote_apply"}
# What a compatible engine doesn't know is not set.
_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY($1::text[])"


async def _prepare_postgresql(connection: _Driver, wanted: Mapping[str, str]) -> None:
    settings = dict(await connection.fetch(_SETTINGS, [*wanted]))
    for name, value in wanted.items():
        if name in settings and settings[name] not in (value, _STRICTER.get(name)):
            await connection.execute(f"SET {name} = '{value}'")


def _bounds(statement_seconds: float) -> dict[str, str]:
    milliseconds = str(int(statement_seconds * 1000))
    return {
        "statement_timeout": milliseconds,
        "idle_in_transaction_session_timeout": str(_IDLE_SECONDS * 1000),
    }


def _give_up_what_hangs(context: ExceptionContext) -> None:
    failure = context.original_exception
    if getattr(failure, "sqlstate", None) == _DEMOTED:
        context.is_disconnect = True
    elif isinstance(failure, TimeoutError) and context.connection is not None:
        # Nothing more is asked of this connection, or that would wait as long again.
        driver_connection = context.connection.connection.driver_connection
        if driver_connection is not None:
            driver_connection.terminate()
        context.is_disconnect = True


# Where a commit writes the log back into the file, as far as `checkpointer` hasn't. 32 MB.
_WAL_PAGES = 8000
# What undoes a statement of many rows is kept in memory: as a file, it would be made and removed again for each of
# them, which took a third of the time of a commit.
_PRAGMAS = (
    "synchronous=FULL",
    "foreign_keys=ON",
    "temp_store=MEMORY",
    f"wal_autocheckpoint={_WAL_PAGES}",
)


def _sqlite(url: URL, busy_seconds: float) -> AsyncEngine:
    """Connections that only read."""
    engine = create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_seconds,
        # The one that was used last has its statements prepared and what they read in memory.
        pool_use_lifo=True,
        hide_parameters=True,
        # The driver's own idea of when a transaction begins is switched off.
        connect_args={"timeout": busy_seconds, "isolation_level": None},
    )
    _prepare_sqlite(engine.sync_engine, (*_PRAGMAS, "query_only=ON"))
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def new_sqlite_writer(url: URL) -> Engine:
    """The one connection by which this process writes into an SQLite file. See `writer`.

    Its execution option `begin_until`, of the monotonic clock, says how long a transaction waits for other processes.
    """
    engine = create_engine(
        url.set(drivername="sqlite"),
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        connect_args={
            # It waits by itself, see `_begin_immediate`.
            "timeout": 0,
            "isolation_level": None,
            "check_same_thread": True,
            # A statement for each number of rows, of certificates and of events.
            "cached_statements": 512,
        },
    )
    event.listen(engine, "connect", _switch_to_wal)
    # 16 MB hold the inner pages of the largest index of 10^7 certificates.
    _prepare_sqlite(engine, (*_PRAGMAS, "cache_size=-16000"))
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _begin_immediate(connection: Connection) -> None:
    """Begin as soon as no other process writes.

    SQLite's own time-out asks after pauses that grow to 100 ms, so one of two busy processes waits for seconds.
    """
    deadline = connection.get_execution_options().get("begin_until", 0)
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as failure:
            if not _is_busy(failure.orig) or time.monotonic() > deadline:
                raise
            time.sleep(_ASK_AGAIN_SECONDS)
        else:
            return


def _is_busy(failure: BaseException | None) -> bool:
    # The lower byte of an extended code is the primary one.
    return isinstance(failure, sqlite3.Error) and failure.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _prepare_sqlite(engine: Engine, pragmas: Iterable[str]) -> None:
    def prepare(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        for pragma in pragmas:
            connection.cursor().execute(f"PRAGMA {pragma}")

    event.listen(engine, "do_connect", _before_connect)
    event.listen(engine, "connect", prepare)


def _before_connect(
    _dialect: Dialect, _entry: ConnectionPoolEntry, args: Sequence[str], _options: object
) -> None:
    # SQLite itself would make the file as the umask says; what it puts beside the file has the file's mode.
    # A file that exists must not even be opened: closing it again would drop this process's locks on it.
    # Source: "How To Corrupt An SQLite Database File", section 2.2.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(args[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _switch_to_wal(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # SQLite's own patience does not cover this switch, which several processes may make at once on a new
    # file.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.cursor().execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return
