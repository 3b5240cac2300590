"""The writer thread, with the only connection through which a process writes to an SQLite file.

`run` executes a whole transaction in one call to the thread. `transaction` holds the connection and calls the thread
for each statement. SQLite's lock prevents two processes from writing at once.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from sqlalchemy import Connection, CursorResult, Engine, Executable

from clustercert.model.errors import Unavailable
from clustercert.store.engine.checkpointer import Checkpointer
from clustercert.store.engine.transaction import Parameters, Transaction

T = TypeVar("T")
P = ParamSpec("P")

NOT_NOW = "The database does not answer. Try again later."


class NothingBegun(Unavailable):
    """The database is busy or unreachable, and the transaction was not begun."""


@contextlib.asynccontextmanager
async def acquired(place: asyncio.Lock | asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """Hold a lock or a semaphore for the block. Raises NothingBegun if the lock is not free in time."""
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
    """The writer thread and its connection, both created on first use."""

    def __init__(self, engine: Engine, busy_seconds: float, checkpointer: Checkpointer) -> None:
        """Create a writer. `engine` must have only one connection, and begin transactions with BEGIN IMMEDIATE."""
        self._engine = engine
        self._busy_seconds = busy_seconds
        self._checkpointer = checkpointer
        self._thread = ThreadPoolExecutor(1, "sqlite-writer")
        self._free = asyncio.Lock()
        self._open: Connection | None = None

    async def run(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function as one transaction, in a single call to the thread. Returns once the transaction is durable.

        Raises NothingBegun, or any error from the function or the engine.
        """
        async with acquired(self._free, self._busy_seconds):
            begin_until = time.monotonic() + self._busy_seconds
            # It is safe to release the lock before this call ends, because the thread runs its calls one after another.
            running = self._submit(
                self._run, begin_until, lambda connection: function(connection, *args, **kwargs)
            )
        return await running

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Open a transaction that occupies the connection. The transaction is durable after the `with` block.

        Raises NothingBegun, or any error from the engine.
        """
        async with acquired(self._free, self._busy_seconds):
            try:
                begin_until = time.monotonic() + self._busy_seconds
                yield _WriterTransaction(await self._submit(self._begin, begin_until), self._submit)
                await self._submit(self._commit)
            except BaseException:
                # A statement from a cancelled caller may still be running, so the thread rolls back after the
                # statement.
                self._thread.submit(self._roll_back)
                raise

    async def close(self) -> None:
        """Close the connection and end the thread. The next transaction creates a new connection and a new thread."""
        await self._submit(self._close)
        self._thread.shutdown()
        self._thread = ThreadPoolExecutor(1, "sqlite-writer")

    def _submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Call a function in the thread. Once the function runs, cancelling the caller does not stop the function."""
        call = functools.partial(function, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _run(self, begin_until: float, function: Callable[[Connection], T]) -> T:
        connection = self._begin(begin_until)
        try:
            result = function(connection)
            self._commit()
        except BaseException:
            self._roll_back()
            raise
        return result

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
        connection, self._open = self._open, None
        if connection is not None:
            # After a failed commit, closing the connection is not enough to roll back.
            with connection:
                connection.rollback()

    def _close(self) -> None:
        self._engine.dispose()
        self._checkpointer.close()


class _WriterTransaction:
    """An open transaction in the writer thread, which runs the statements and fetches the rows."""

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
