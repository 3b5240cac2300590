"""Work on copies of a database that is killed, each time at another step."""

import os
import sys
from collections.abc import Callable

from sqlalchemy import event as engine_events

from clustercert.store.database import Database
from stores import Store

KILLED = 9


class Steps:
    """Counts what a process does to its database, and ends the process at one of them, without a word.

    A step is just before, or with `after` also just after, a statement that writes, or just before a commit. What
    PostgreSQL runs outside of a transaction has no commit: just before it nothing is there, just after it everything.
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
    """Do the work in URL_1 until its first step, in URL_2 until its second, and so on until it comes to its end.

    `work` takes the copy and its number, which is the step to be killed at. Prints how many were killed.
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
