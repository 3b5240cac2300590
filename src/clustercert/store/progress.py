"""Every SQL statement about how far long work has come: a text for each kind of work."""

from sqlalchemy import insert, select, update
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

    async def change(self, value: str, *events: AuditEvent, anyway: bool = False) -> bool:
        """Set it, with events that say so; whether it was another one. Raises Unavailable.

        Of several that set the same at once, one is told so, and the others write nothing; `anyway` writes the events
        all the same.
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
                if found != value or anyway:
                    await record_events(connection, events)
        except IntegrityError:
            # Another process was the first to set anything at all; which one is the last doesn't matter.
            return False
        return found != value
