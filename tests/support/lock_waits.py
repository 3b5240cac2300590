"""Detects transactions that wait for a lock."""

import asyncio
import threading
from typing import Any

from sqlalchemy import event as engine_events

from clustercert.store.engine.database import Database
from support.stores import Store
from support.wait import eventually_async

_WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class LockWaits:
    """Create it before the transactions begin.

    On SQLite it records that `database` did not get the file's lock. On PostgreSQL it queries the server.
    """

    def __init__(self, database: Database, store: Store) -> None:
        self._store = store
        self._refused = threading.Event()
        if store.file is not None:
            engine_events.listen(
                database.writing_engine, "handle_error", lambda _context: self._refused.set()
            )

    async def begun(self, *tasks: asyncio.Task[Any], count: int = 1) -> None:
        """Return when `count` transactions wait; on SQLite, when any waits. Fails if one of the tasks has ended."""
        await eventually_async(lambda: any(task.done() for task in tasks) or self._has_begun(count))
        assert not any(task.done() for task in tasks)

    def _has_begun(self, count: int) -> bool:
        if self._store.file is not None:
            return self._refused.is_set()
        return len(self._store.rows(_WAITING)) >= count
