"""The one thread and connection by which a process writes into an SQLite file.

Inserts of many rows are a whole transaction in one call of the thread. Any other transaction has the connection for
itself and calls the thread for each statement. Processes wait for one another by SQLite's own lock.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from sqlalchemy import Connection, CursorResult, Engine, Executable

from clustercert.errors import Unavailable
from clustercert.store.bulk_insert import Inserts
from clustercert.store.checkpointer import Checkpointer
from clustercert.store.transaction import Parameters, Transaction

T = TypeVar("T")
P = ParamSpec("P")

NOT_NOW = "The database does not answer now. Try again in a moment."


class NothingBegun(Unavailable):
    """The database is busy or away, and nothing of a transaction was begun."""


@contextlib.asynccontextmanager
async def acquired(place: asyncio.Lock | asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """Hold a lock or a semaphore for the block. Raises NothingBegun where it does not become free in time."""
    try:
        async with asyncio.timeout(seconds):
            await place.acquire()
    except TimeoutError as failure:
        raise NothingBegun(NOT_NOW) from failure
    try:
        yield
    finally:
        place.release()


class Writer:
    """One thread and one connection, made when they are needed first."""

    def __init__(self, engine: Engine, busy_seconds: float, checkpointer: Checkpointer) -> None:
        """`engine` has one connection; each of its transactions is to write."""
        self._engine = engine
        self._busy_seconds = busy_seconds
        self._checkpointer = checkpointer
        self._thread = _new_thread()
        self._free = asyncio.Lock()
        self._open: Connection | None = None

    async def run(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function as one transaction, in one call of the thread; return when what it did is durable.

        Raises NothingBegun, or what the function or the engine raises.
        """
        async with acquired(self._free, self._busy_seconds):
            # Whoever comes next may call the thread at once: it does one thing after the other.
            running = self._submit(
                self._run, self._deadline(), lambda connection: function(connection, *args, **kwargs)
            )
        return await running

    async def insert(self, inserts: Inserts) -> None:
        """Insert rows as one transaction. Raises as `run`."""
        await self.run(self._insert, inserts)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction that has the connection for itself, durable once the block is left.

        Raises NothingBegun, or what the engine raises.
        """
        async with acquired(self._free, self._busy_seconds):
            try:
                yield _WriterTransaction(await self._submit(self._begin, self._deadline()), self._submit)
                await self._submit(self._commit)
            except BaseException:
                # A statement of a caller that gave up may still run: the thread rolls back after it.
                self._thread.submit(self._roll_back)
                raise

    async def close(self) -> None:
        """Close the connection and end the thread; both are made anew where they are needed again."""
        await self._submit(self._close)
        self._thread.shutdown()
        self._thread = _new_thread()

    def _submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Call a function in the thread. One that runs already goes on where its caller gives up."""
        call = functools.partial(function, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _deadline(self) -> float:
        return time.monotonic() + self._busy_seconds

    def _run(self, begin_until: float, function: Callable[[Connection], T]) -> T:
        connection = self._begin(begin_until)
        try:
            result = function(connection)
            self._commit()
        except BaseException:
            self._roll_back()
            raise
        return result

    @staticmethod
    def _insert(connection: Connection, inserts: Inserts) -> None:
        for insert, rows in inserts:
            text, values = insert.sqlite(rows)
            connection.exec_driver_sql(text, tuple(values))

    def _begin(self, begin_until: float) -> Connection:
        try:
            self._open = self._engine.connect().execution_options(begin_until=begin_until)
            self._open.begin()
        except Exception as failure:
            self._roll_back()
            raise NothingBegun(NOT_NOW) from failure
        return self._open

    def _commit(self) -> None:
        if self._open is None:
            raise RuntimeError("no transaction is open")
        self._open.commit()
        driver_connection = self._open.connection.driver_connection
        rows_changed = driver_connection.total_changes if driver_connection is not None else 0
        self._open.close()
        self._open = None
        self._checkpointer.changed(rows_changed)

    def _roll_back(self) -> None:
        """Undo what is open, if anything is."""
        connection, self._open = self._open, None
        if connection is not None:
            # Closing alone does not roll back after a commit that failed.
            with connection:
                connection.rollback()

    def _close(self) -> None:
        self._engine.dispose()
        self._checkpointer.close()


def _new_thread() -> ThreadPoolExecutor:
    """It is started by the first call."""
    return ThreadPoolExecutor(1, "sqlite-writer")


class _WriterTransaction:
    """An open transaction. Its statements run in the writer's thread, where their rows are read too."""

    def __init__(self, connection: Connection, submit: Callable[..., Any]) -> None:
        self._connection = connection
        self._submit = submit

    async def execute(
        self, statement: Executable, parameters: Parameters | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        result: CursorResult[*tuple[Any, ...]] = await self._submit(
            _execute, self._connection, statement, parameters
        )
        return result

    async def run_sync(self, fn: Callable[Concatenate[Connection, P], T], *arg: P.args, **kw: P.kwargs) -> T:
        return cast("T", await self._submit(fn, self._connection, *arg, **kw))


def _execute(
    connection: Connection, statement: Executable, parameters: Parameters | None
) -> CursorResult[*tuple[Any, ...]]:
    result = connection.execute(statement, parameters)
    return cast("CursorResult[*tuple[Any, ...]]", result.freeze()()) if result.returns_rows else result
