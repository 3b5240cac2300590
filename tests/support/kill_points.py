"""Kills a process at each of its steps, each time on a new copy of the database."""

import os
import sys
from collections.abc import Callable

from sqlalchemy import event as engine_events

from clustercert.store.engine.database import Database
from support.stores import Store

KILLED = 9


class Steps:
    """Counts the database steps of a process, and kills the process at one of them.

    A step is the moment before a writing statement (with `after` also after it), or before a commit. PostgreSQL
    statements outside a transaction have no commit.
    """

    def __init__(self, kill_at: int) -> None:
        self._left = kill_at

    def one(self, *_args: object) -> None:
        self._left -= 1
        if self._left == 0:
            os._exit(KILLED)

    def count(self, database: Database, *, after: bool = False) -> None:
        for engine in {database.engine.sync_engine, database.writing_engine}:
            engine_events.listen(engine, "before_cursor_execute", self._statement)
            if after:
                engine_events.listen(engine, "after_cursor_execute", self._statement)
            engine_events.listen(engine, "commit", self.one)

    def _statement(self, _connection: object, _cursor: object, statement: str, *_args: object) -> None:
        if statement.startswith(("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE", "WITH")):
            self.one()


def kill_everywhere(url: str, work: Callable[[Store, int], None]) -> None:
    """Do the work on URL_1 up to its first step, on URL_2 up to its second, and so on until it completes.

    `work` takes the copy and the number of the step to be killed at. Prints the number of killed processes.
    """
    for kill_at in range(1, 1000):
        store = Store(url).copied(f"_{kill_at}")
        child = os.fork()
        if child == 0:
            work(store, kill_at)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != KILLED:
            print(kill_at - 1)
            sys.exit(status)
