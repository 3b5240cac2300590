"""Reads the events of policy decisions in bulk."""

from collections.abc import AsyncIterator
from datetime import datetime

from sqlalchemy import ColumnElement, and_, case, func, select

from clustercert.store import tables
from clustercert.store.engine.queries import Queries
from clustercert.store.event_pages import size_before

_event, _place = tables.audit_event, tables.audit_place

# Events read at once. Each takes about 2 KB.
PAGE = 2000
KINDS = ("certificate.issued", "certificate.refused", "certificate.failed", "refusals.repeated")


class DecisionEvents(Queries):
    """Reads the events of kinds `KINDS`, sealed or not, in the order of their ids."""

    async def pages(
        self, since: datetime | None = None, until: datetime | None = None, project_id: str | None = None
    ) -> AsyncIterator[list[bytes]]:
        """Yield the bodies of the events in pages; a page may be empty. Both times are inclusive."""
        wanted: list[ColumnElement[bool]] = [_event.c.kind.in_(KINDS)]
        if since is not None:
            wanted.append(_event.c.at >= since)
        if until is not None:
            wanted.append(_event.c.at <= until)
        if project_id is not None:
            wanted.append(_event.c.project_id == project_id)
        # The condition is in the result, so that the range of ids alone decides how many rows a page reads.
        page = select(_event.c.id, case((and_(*wanted), _event.c.body))).order_by(_event.c.id).limit(PAGE)
        after = await self._last_before(since)
        while rows := await self._rows(page.where(_event.c.id > after)):
            yield [body for _, body in rows if body is not None]
            after = rows[-1][0]

    async def newest_of(self, actor: str, searched: int) -> list[bytes]:
        """Return the bodies of a user's events among the `searched` newest ones of all kinds, newest first."""
        newest = select(func.max(_event.c.id)).scalar_subquery()
        query = (
            select(_event.c.body)
            .where(_event.c.id > newest - searched, _event.c.actor == actor, _event.c.kind.in_(KINDS))
            .order_by(_event.c.id.desc())
        )
        return [body for (body,) in await self._rows(query)]

    async def _last_before(self, time: datetime | None) -> int:
        """Return the id of an event before a time, close to it, or 0."""
        async with self._database.read() as connection:
            size = await size_before(connection, time)
            before = select(_place.c.event_id).where(_place.c.leaf_index < (size or 0))
            last = await connection.execute(before.order_by(_place.c.leaf_index.desc()).limit(1))
            return last.scalar() or 0
