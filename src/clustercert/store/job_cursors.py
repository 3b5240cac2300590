"""State of background jobs that survives restarts: a cursor for each job, and the problems that the job found."""

from collections.abc import Collection

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.engine.database import Database
from clustercert.store.engine.queries import Queries

_progress = tables.progress


class JobCursor(Queries):
    """A string that one background job stores, such as the position that the job has reached."""

    def __init__(self, database: Database, name: str) -> None:
        super().__init__(database)
        self._name = name

    async def value(self) -> str | None:
        """Return the string that was stored last, or None. Raises Unavailable."""
        query = select(_progress.c.value).where(_progress.c.name == self._name)
        return await self._scalar(query)

    async def set(self, value: str, *events: AuditEvent) -> bool:
        """Store a string. If the string differs from the last one, record events and return True. Raises Unavailable.

        If several processes set the same string at once, only one process records its events.
        """
        this = _progress.c.name == self._name
        try:
            async with self._database.transaction() as connection:
                query = select(_progress.c.value).where(this).with_for_update()
                found = (await connection.execute(query)).scalar()
                if found is None:
                    await connection.execute(insert(_progress).values(name=self._name, value=value))
                elif found != value:
                    await connection.execute(update(_progress).where(this).values(value=value))
                if found != value:
                    await record_events(connection, events)
        except IntegrityError:
            # Another process stored the first string at the same time. It does not matter which of the two strings is
            # stored.
            return False
        return found != value


class Findings(Queries):
    """The problems that a job found, each stored under the number of the affected object until the problem is resolved.

    The event for a problem is recorded only once, even if several processes find the problem, or find it repeatedly.
    """

    def __init__(self, database: Database, name: str) -> None:
        super().__init__(database)
        self._name = name

    async def add(self, number: int, problem: str, event: AuditEvent) -> bool:
        """Store a problem and record an event, if the problem is new. Returns whether the problem is new.

        Raises Unavailable.
        """
        return await JobCursor(self._database, self._key(number)).set(problem, event)

    async def remove(self, after: int, up_to: int, *, keep: Collection[int]) -> None:
        """Remove the problems of objects with numbers from `after` + 1 to `up_to`, except the numbers in `keep`.

        Raises Unavailable.
        """
        name, kept = _progress.c.name, {self._key(number) for number in keep}
        in_range = select(name).where(
            name.startswith(f"{self._name} "), name > self._key(after), name <= self._key(up_to)
        )
        if gone := {key for (key,) in await self._rows(in_range)} - kept:
            async with self._database.transaction() as connection:
                await connection.execute(delete(_progress).where(name.in_(gone)))

    def _key(self, number: int) -> str:
        # The number is padded to 19 digits, enough for any 64-bit number, so that keys sort like numbers.
        return f"{self._name} {number:019}"
