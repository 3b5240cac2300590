"""Every SQL statement about how far long work has come, and about what it found: a text for each."""

from collections.abc import Collection

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.events import record_events

_progress = tables.progress


class Progress:
    """Where one kind of work is."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name

    async def value(self) -> str | None:
        """What was set last. Raises Unavailable."""
        query = select(_progress.c.value).where(_progress.c.name == self._name)
        async with self._database.read() as connection:
            value: str | None = (await connection.execute(query)).scalar()
            return value

    async def change(self, value: str, *events: AuditEvent) -> bool:
        """Set it, with events that say so; whether it was another one. Raises Unavailable.

        Of several that set the same at once, one is told so, and the others write nothing.
        """
        here = _progress.c.name == self._name
        try:
            async with self._database.write() as connection:
                query = select(_progress.c.value).where(here).with_for_update()
                found = (await connection.execute(query)).scalar()
                if found is None:
                    await connection.execute(insert(_progress).values(name=self._name, value=value))
                elif found != value:
                    await connection.execute(update(_progress).where(here).values(value=value))
                if found != value:
                    await record_events(connection, events)
        except IntegrityError:
            # Another process was the first to set anything at all; which one is the last doesn't matter.
            return False
        return found != value


class Findings:
    """What one kind of work found wrong with numbered things, each kept until it is right again.

    However many processes find the same, and however often, it is news once.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name

    async def found(self, number: int, what: str, event: AuditEvent) -> bool:
        """Keep what is wrong, with an event, unless that is known; whether it was news. Raises Unavailable."""
        return await Progress(self._database, self._key(number)).change(what, event)

    async def forget(self, above: int, up_to: int, *, but: Collection[int]) -> None:
        """Forget what was found of the numbers above one and up to another, but for some. Raises Unavailable."""
        name, kept = _progress.c.name, {self._key(number) for number in but}
        between = select(name).where(
            name.startswith(f"{self._name} "), name > self._key(above), name <= self._key(up_to)
        )
        async with self._database.read() as connection:
            gone = set((await connection.execute(between)).scalars()) - kept
        if gone:
            async with self._database.write() as connection:
                await connection.execute(delete(_progress).where(name.in_(gone)))

    def _key(self, number: int) -> str:
        # As long as the longest there is, so that texts are in the order of their numbers.
        return f"{self._name} {number:019}"
