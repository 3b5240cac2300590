"""Creates database connections, configures them for each kind of database, and decides when to drop them.

`database` opens transactions, and `failures` translates their errors.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import sqlite3
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from clustercert.store.engine.failures import is_lasting
from clustercert.store.engine.primary import PrimaryFinder, target_of

if TYPE_CHECKING:
    # This import is only for type checking. At run time, SQLAlchemy loads the driver.
    from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection


def _is_failure(record: logging.LogRecord) -> bool:
    """Whether the pool's log record reports a failure, and not a Ctrl-C while a connection was being closed."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


logging.getLogger(f"{AsyncAdaptedQueuePool.__module__}.{AsyncAdaptedQueuePool.__name__}").addFilter(
    _is_failure
)

_logger = logging.getLogger(__name__)

# How long a writer waits for another writer, and how long a request waits for a connection.
BUSY_SECONDS = 5.0
_RETRY_SECONDS = 0.001
POOL_SIZE = 8

# The server's time-out for statements. The client's time-out is longer by the grace time, so that a slow statement ends
# with the server's error, which leaves the connection usable.
STATEMENT_SECONDS = 3.0
_GRACE_SECONDS = 0.5
# The share of the time-out for which a statement waits for a lock. Less than all of it, so that the error names the
# lock.
_LOCK_SHARE = 0.9
# A process that is suspended during a transaction must not keep rows locked for longer than this.
_IDLE_SECONDS = 10
# Network devices drop idle connections, often after four minutes. So connections are replaced earlier.
_RECYCLE_SECONDS = 180

# SQLSTATE of a write to a read-only server. A demoted primary rejects all writes, so its connections are removed from
# the pool.
_DEMOTED = "25006"


def new_engine(
    url: URL, busy_seconds: float, statement_seconds: float | None, abandon: Callable[[int], None]
) -> AsyncEngine:
    """Create an engine for a database.

    Args:
        statement_seconds: if `None`, statements have no time-out.
        abandon: called with the id of the server process when a PostgreSQL connection is closed after a time-out.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, busy_seconds)
    return _postgresql(url, busy_seconds, statement_seconds, abandon)


def _postgresql(
    url: URL, busy_seconds: float, statement_seconds: float | None, abandon: Callable[[int], None]
) -> AsyncEngine:
    if url.password is None and not os.environ.get("PGPASSWORD"):
        # The driver's own warning contains a path and a line of the driver.
        warnings.filterwarnings("ignore", r"password file .* has group or world access")
        file = url.query.get("passfile") or os.environ.get("PGPASSFILE") or "~/.pgpass"
        # If there is no home folder, this function raises no error.
        _warn_of_ignored_file(os.path.expanduser(str(file)))  # noqa: PTH111
    # Do not test a connection before each use (`pool_pre_ping`), because the tests would double the round trips. Each
    # worker reads the generation several times a second, so it soon finds a broken connection, and then all connections
    # in the pool are replaced.
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
            "target_session_attrs": target_of(url),
        },
    )
    finder = PrimaryFinder()
    event.listen(engine.sync_engine, "do_connect", finder.connect)
    parameters = dict(_ALWAYS)
    if statement_seconds is not None:
        parameters["statement_timeout"] = str(int(statement_seconds * 1000))
        parameters["lock_timeout"] = str(int(statement_seconds * 1000 * _LOCK_SHARE))
        parameters["idle_in_transaction_session_timeout"] = str(_IDLE_SECONDS * 1000)

    def prepare(connection: "AsyncAdapt_asyncpg_connection", entry: ConnectionPoolEntry) -> None:
        entry.info[_PROCESS_ID] = connection.run_async(
            lambda driver_connection: _prepare_postgresql(driver_connection, parameters)
        )

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(
        engine.sync_engine, "handle_error", lambda context: _drop_broken_connection(context, abandon, finder)
    )
    return engine


@cache
def _warn_of_ignored_file(file: str) -> None:
    """Warn once if the driver ignores a password file because of its mode."""
    with contextlib.suppress(OSError):
        mode = Path(file).stat().st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
            # Commands print only the text of this record.
            _logger.warning(
                "The password file %s is ignored, because others can read it. Run `chmod 600 %s`.",
                file,
                shlex.quote(file),
            )


# A commit must be on disk when it returns, regardless of the configuration of server, database or role. Stricter
# settings are not changed. The isolation level is set here for statements outside of a transaction.
_ALWAYS = {"synchronous_commit": "on", "default_transaction_isolation": "read committed"}
_STRICTER = {"synchronous_commit": "remote_apply"}
# Reads which of the settings in `_ALWAYS` exist, because PostgreSQL-compatible engines may lack some of these settings.
_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY($1::text[])"
# The key of the id of the connection's server process.
_PROCESS_ID = "process_id"


async def _prepare_postgresql(connection: Any, parameters: Mapping[str, str]) -> int:
    """Set the parameters of a new session. Returns the id of its server process."""
    settings = dict(await connection.fetch(_SETTINGS, [*parameters]))
    for name, value in parameters.items():
        if name in settings and settings[name] not in (value, _STRICTER.get(name)):
            await connection.execute(f"SET {name} = '{value}'")
    # Ask the server, because a connection pooler tells the driver another id.
    process_id: int = await connection.fetchval("SELECT pg_backend_pid()")
    return process_id


def _drop_broken_connection(
    context: ExceptionContext, abandon: Callable[[int], None], finder: PrimaryFinder
) -> None:
    failure = context.original_exception
    if getattr(failure, "sqlstate", None) == _DEMOTED:
        context.is_disconnect = True
    elif isinstance(failure, TimeoutError) and context.connection is not None:
        # Terminate the connection at once, because a rollback would also time out.
        driver_connection = context.connection.connection.driver_connection
        if driver_connection is not None:
            abandon(context.connection.connection.info[_PROCESS_ID])
            driver_connection.terminate()
            finder.leave(context.connection.connection.info)
        context.is_disconnect = True


# When the write-ahead log reaches this size (32 MB), a commit checkpoints the log; see `checkpointer`.
_WAL_PAGES = 8000
# Temporary data stays in memory, because creating and deleting the statement journal took a third of a commit's time.
_PRAGMAS = (
    "synchronous=FULL",
    "foreign_keys=ON",
    "temp_store=MEMORY",
    f"wal_autocheckpoint={_WAL_PAGES}",
)


def _sqlite(url: URL, busy_seconds: float) -> AsyncEngine:
    """Create the engine for read-only connections."""
    engine = create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_seconds,
        # Prefer the most recently used connection, because its caches are warm.
        pool_use_lifo=True,
        hide_parameters=True,
        # The driver must not begin transactions on its own.
        connect_args={"timeout": busy_seconds, "isolation_level": None},
    )
    _prepare_sqlite(engine.sync_engine, (*_PRAGMAS, "query_only=ON"))
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def new_sqlite_writer(url: URL) -> Engine:
    """Create the engine for the only connection with which this process writes to an SQLite file. See `writer`.

    The execution option `begin_until` is the monotonic time until which a transaction waits for other processes.
    """
    engine = create_engine(
        url.set(drivername="sqlite"),
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        connect_args={
            # SQLite itself need not wait for other writers, because `_begin_immediate` waits.
            "timeout": 0,
            "isolation_level": None,
            "check_same_thread": True,
            # Keep many prepared statements, because bulk inserts use a different statement for each number of rows.
            "cached_statements": 512,
        },
    )
    event.listen(engine, "connect", _switch_to_wal)
    # A cache of 16 MB, enough for the inner pages of the largest index in a ledger of 10^7 certificates.
    _prepare_sqlite(engine, (*_PRAGMAS, "cache_size=-16000"))
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _begin_immediate(connection: Connection) -> None:
    """Begin a transaction as soon as no other process writes.

    SQLite's busy time-out polls at intervals of up to 100 ms, so one of two busy processes could wait for seconds.
    """
    deadline = connection.get_execution_options().get("begin_until", 0)
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as failure:
            if not _is_busy(failure.orig) or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _is_busy(failure: BaseException | None) -> bool:
    # The lower byte of an extended error code is the primary error code.
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
    # Create the file with mode 600, because SQLite would create the file with a mode from the umask. SQLite gives its
    # other files the mode of this file. Do not open an existing file, because closing it would drop this process's
    # locks on it. Source: "How To Corrupt An SQLite Database File", section 2.2.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(args[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _switch_to_wal(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # SQLite's busy time-out does not apply to this PRAGMA, and several processes may run the PRAGMA on a new file. So
    # retry.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.cursor().execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as failure:
            if is_lasting(failure) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return
