"""Reads the audit events about policy decisions in bulk."""

from collections.abc import AsyncIterator
from datetime import datetime

from sqlalchemy import ColumnElement, and_, case, func, select

from clustercert.store import tables
from clustercert.store.audit import size_before
from clustercert.store.engine.queries import Queries

_event, _place = tables.audit_event, tables.audit_place

# Number of events that are read at once. An event takes about 2 KB.
PAGE = 2000
KINDS = ("certificate.issued", "certificate.refused", "certificate.failed", "refusals.repeated")
# The kinds of events that record a single decision of the policy.
DECIDED = ("certificate.issued", "certificate.refused")
# The maximum number of decisions that a query for one user returns.
MAX_FOUND = 50


class DecisionEvents(Queries):
    """Reads the events of kinds `KINDS`, sealed or not, in the order of their ids."""

    async def pages(
        self, since: datetime | None = None, until: datetime | None = None, project_id: str | None = None
    ) -> AsyncIterator[list[bytes]]:
        """Yield the bodies of the events in pages; a page may be empty. Both times are inclusive."""
        conditions: list[ColumnElement[bool]] = [_event.c.kind.in_(KINDS)]
        if since is not None:
            conditions.append(_event.c.at >= since)
        if until is not None:
            conditions.append(_event.c.at <= until)
        if project_id is not None:
            conditions.append(_event.c.project_id == project_id)
        # The conditions are not in the WHERE clause, so that the range of ids alone decides how many rows a page reads.
        page = select(_event.c.id, case((and_(*conditions), _event.c.body))).order_by(_event.c.id).limit(PAGE)
        after = await self._last_before(since)
        while rows := await self._rows(page.where(_event.c.id > after)):
            yield [body for _, body in rows if body is not None]
            after = rows[-1][0]

    async def newest_decisions(self, actor: str, project_id: str, searched: int) -> list[bytes]:
        """Return the bodies of the events about decisions on a user in a project.

        Searches only the `searched` newest events of all kinds. Returns at most `MAX_FOUND` bodies, newest first.
        """
        newest = select(func.max(_event.c.id)).scalar_subquery()
        return await self._decisions_on(actor, project_id, _event.c.id > newest - searched)

    async def decisions_at(self, time: datetime, actor: str, project_id: str, searched: int) -> list[bytes]:
        """Like `newest_decisions`, but only for decisions at `time`. Searches `searched` events around `time`."""
        before = await self._last_before(time)
        among = _event.c.id.between(before + 1, before + searched)
        return await self._decisions_on(actor, project_id, and_(among, _event.c.at == time))

    async def _decisions_on(self, actor: str, project_id: str, among: ColumnElement[bool]) -> list[bytes]:
        query = (
            select(_event.c.body)
            .where(
                among, _event.c.actor == actor, _event.c.project_id == project_id, _event.c.kind.in_(DECIDED)
            )
            .order_by(_event.c.id.desc())
            .limit(MAX_FOUND)
        )
        return [body for (body,) in await self._rows(query)]

    async def _last_before(self, time: datetime | None) -> int:
        """Return the id of an event shortly before a time, or 0."""
        async with self._database.read() as connection:
            size = await size_before(connection, time)
            before = select(_place.c.event_id).where(_place.c.leaf_index < (size or 0))
            last = await connection.execute(before.order_by(_place.c.leaf_index.desc()).limit(1))
            return last.scalar() or 0
