"""How connections are made: what each kind of database is told at their start, and when one is given up.

Transactions, and what their failures mean, are `database`'s business.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

if TYPE_CHECKING:
    # The engine loads the driver of the one database that there is.
    from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection
    from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection

# How long a writer waits for another one, and a request for a connection.
BUSY_SECONDS = 5.0
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
    engine = create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_seconds,
        # The one that was used last has its statements prepared and what they read in memory.
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args={"timeout": busy_seconds},
    )
    event.listen(engine.sync_engine, "do_connect", _before_connect)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def new_inserting_engine(url: URL, busy_seconds: float) -> Engine:
    """The one connection of the thread that inserts into an SQLite file. See `writer`."""
    engine = create_engine(
        "sqlite://",
        creator=lambda: inserting_connection(str(url.database), busy_seconds),
        poolclass=StaticPool,
        hide_parameters=True,
    ).execution_options(clustercert_writes=True)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def inserting_connection(path: str, busy_seconds: float) -> sqlite3.Connection:
    """A connection for mass inserts into an SQLite file, used by one thread at a time; it begins nothing by itself.

    Raises OSError or sqlite3.Error.
    """
    _make_private_file(path)
    # A statement for each number of rows, of certificates and of events.
    connection = sqlite3.connect(
        path, timeout=busy_seconds, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    # The file is in WAL mode since its first migration. 16 MB hold the inner pages of the largest index of 10^7
    # certificates.
    for pragma in (*_PRAGMAS, "cache_size=-16000"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _make_private_file(path: str) -> None:
    # SQLite itself would make the file as the umask says; what it puts beside the file has the file's mode.
    # A file that exists must not even be opened: closing it again would drop this process's locks on it.
    # Source: "How To Corrupt An SQLite Database File", section 2.2.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _before_connect(
    _dialect: Dialect, _entry: ConnectionPoolEntry, args: Sequence[str], _options: object
) -> None:
    _make_private_file(args[0])


def _prepare_sqlite(connection: "AsyncAdapt_aiosqlite_connection", _entry: ConnectionPoolEntry) -> None:
    # The driver's own idea of when a transaction begins is switched off; `_begin_sqlite` says it.
    connection.isolation_level = None
    _switch_to_wal(connection)
    for pragma in _PRAGMAS:
        connection.cursor().execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: "AsyncAdapt_aiosqlite_connection") -> None:
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
