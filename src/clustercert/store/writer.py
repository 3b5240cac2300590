"""The thread that writes into an SQLite file for whoever writes much: one change of threads for a whole transaction.

The engine's own way has one for each statement, between which the file's other writers wait for a loop that may be
busy with requests; and it converts each value of each row by a function of its type. What does that here is chosen once
for each statement.
"""

import asyncio
import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Engine, Insert, TextClause, UpdateBase
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.exc import DBAPIError

from clustercert.store.checkpointer import Checkpointer
from clustercert.store.tables import Utc, as_json
from clustercert.store.turn import Turn

_DIALECT = sqlite_dialect(paramstyle="qmark")
# A thread that can't end, because another process holds the turn, is left to end with this one.
_CLOSING_SECONDS = 5.0


# Text and what stands for its question marks, in order.
Statement = tuple[str, tuple[Any, ...]]


class Prepared:
    """A statement on an SQLite file as text, and what makes its values of its parameters."""

    def __init__(self, statement: UpdateBase | TextClause, names: Sequence[str]) -> None:
        """`names` are those of its parameters; of an INSERT without values of its own, those of its columns."""
        if isinstance(statement, Insert):
            # What is refused ends the whole transaction, so that SQLite needn't remember how to undo this alone.
            statement = statement.prefix_with("OR ROLLBACK")
        compiled = statement.compile(dialect=_DIALECT, column_keys=list(names))
        self._text, _, self._row = compiled.string.partition(" VALUES ")
        self._values = [(name, _conversion(compiled.binds[name].type)) for name in compiled.positiontup or ()]

    def of(self, rows: Sequence[Mapping[str, Any]]) -> Statement:
        """One statement for all rows, of which there is one alone where it isn't an INSERT.

        For each step of SQLite the thread lets go of the interpreter, and may wait long to get it back.
        """
        text = f"{self._text} VALUES {', '.join([self._row] * len(rows))}" if self._row else self._text
        return text, tuple(
            [
                row[name] if convert is None else convert(row[name])
                for row in rows
                for name, convert in self._values
            ]
        )


def _conversion(kind: object) -> Callable[[Any], object] | None:
    if isinstance(kind, Utc):
        return _time
    return as_json if isinstance(kind, JSON) else None


# Those of a certificate and its event are the same, and those of all certificates of a second alike.
@functools.lru_cache(maxsize=1024)
def _time(time: datetime | None) -> str | None:
    """As SQLAlchemy writes a DateTime. Times are in UTC already."""
    return None if time is None else time.replace(tzinfo=None).isoformat(" ", "microseconds")


class NotBegun(Exception):
    """Nothing of a transaction was begun, nor will be; the cause says why."""


class Writer:
    """One thread and one connection, made when they are needed first."""

    def __init__(self, engine: Engine, turn: Turn, checkpointer: Checkpointer) -> None:
        self._engine = engine
        self._turn = turn
        self._checkpointer = checkpointer
        self._jobs: queue.SimpleQueue[tuple[Sequence[Statement], Future[None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # By its connection, in all its life.
        self._rows_changed = 0

    async def write(self, statements: Sequence[Statement], begin_seconds: float) -> None:
        """Run statements in the thread, in one transaction; return once what they did is durable.

        Raises NotBegun, or what the database raises.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
            self._thread.start()
        job: Future[None] = Future()
        self._jobs.put((statements, job))
        done = asyncio.wrap_future(job)
        await asyncio.wait((done,), timeout=begin_seconds)
        # What runs already can't be called off; a commit ends when the disk has it.
        if job.cancel():
            raise NotBegun from TimeoutError("the turn to write did not come")
        await done

    async def close(self) -> None:
        """End the thread, unless another process keeps it waiting."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join, _CLOSING_SECONDS)

    def _run(self) -> None:
        while (task := self._jobs.get()) is not None:
            statements, job = task
            try:
                with self._turn.held():
                    if job.set_running_or_notify_cancel():
                        self._transact(statements)
                        job.set_result(None)
                self._checkpointer.changed(self._rows_changed)
            except Exception as failure:  # noqa: BLE001 - whatever it is, a request waits for its end
                # It may be called off at this very moment.
                with contextlib.suppress(InvalidStateError):
                    job.set_exception(failure)
        self._checkpointer.close()
        self._engine.dispose()

    def _transact(self, statements: Sequence[Statement]) -> None:
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(self._engine.connect())
                stack.enter_context(connection.begin())
            except DBAPIError as failure:
                raise NotBegun from failure
            for statement in statements:
                connection.exec_driver_sql(*statement)
            driver_connection = connection.connection.driver_connection
            self._rows_changed = driver_connection.total_changes if driver_connection is not None else 0
