"""Reads the audit events about policy decisions in bulk."""

from collections.abc import AsyncIterator, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.store import tables
from clustercert.store.audit.log import size_after, size_before
from clustercert.store.engine.queries import Queries

_event, _place = tables.audit_event, tables.audit_place

# Number of events that are searched at once for the events of certificates.
ISSUED_PAGE = 1000
# An event is recorded at most this long after the certificate's time of issue.
_SIGNING = timedelta(minutes=5)
ISSUED = "certificate.issued"
# The kinds of events that record a single decision of the policy.
DECIDED = (ISSUED, "certificate.refused")
# The maximum number of decisions that a query for one user returns.
MAX_FOUND = 50


class DecisionEvents(Queries):
    """Reads the events of decisions, sealed or not."""

    async def issuances(self, issued_at: Mapping[str, datetime]) -> AsyncIterator[Mapping[str, bytes]]:
        """Yield pages that map each certificate's fingerprint to the body of the event that issued it.

        A page can be empty.
        `issued_at`: the certificates' times of issue, by fingerprint in hex. Certificates whose event was deleted are
        left out. Skips the events between two certificates that were issued at very different times.
        """
        waiting = sorted(issued_at, key=lambda fingerprint: issued_at[fingerprint])
        after = 0
        while waiting:
            after = max(after, await self._last_before(issued_at[waiting[0]]))
            # The events of certificates that were issued at about the same time have no particular order.
            wanted = and_(_event.c.kind == ISSUED, _event.c.subject.in_(waiting[: 2 * ISSUED_PAGE]))
            page = select(_event.c.id, _event.c.at, _event.c.subject, case((wanted, _event.c.body)))
            rows = await self._rows(page.where(_event.c.id > after).order_by(_event.c.id).limit(ISSUED_PAGE))
            if not rows:
                return
            found = {subject: body for _, _, subject, body in rows if body is not None}
            yield found
            after, last_at, *_ = rows[-1]
            waiting = [
                each for each in waiting if each not in found and issued_at[each] >= last_at - _SIGNING
            ]

    async def newest_decisions(self, actors: Collection[str], project_id: str, searched: int) -> list[bytes]:
        """Return the bodies of decisions on users in a project, newest first.

        Searches only the newest events of all kinds, as many as `searched`. Returns at most `MAX_FOUND` decisions for
        each user on average.
        """
        newest = select(func.max(_event.c.id)).scalar_subquery()
        query = _decisions(project_id, _event.c.id > newest - searched, _event.c.actor.in_(actors))
        query = query.order_by(_event.c.id.desc()).limit(MAX_FOUND * len(actors))
        return [body for (body,) in await self._rows(query)]

    async def decision_at(self, time: datetime, actor: str, project_id: str, searched: int) -> bytes | None:
        """Return the body of the first decision on a user at `time`, or None.

        Searches only events within a few minutes of `time`, and at most `searched` of them.
        """
        async with self._database.read() as connection:
            before = await _last_id(connection, await size_before(connection, time))
            behind = await size_after(connection, time)
            last = before + searched
            if behind is not None:
                last = min(last, await _last_id(connection, behind))
        among = _event.c.id.between(before + 1, last)
        query = _decisions(project_id, among, _event.c.actor == actor, _event.c.at == time)
        # In the order of ids, the search can stop at the first event that matches.
        return await self._scalar(query.order_by(_event.c.id).limit(1))

    async def _last_before(self, time: datetime | None) -> int:
        """Return the id of an event shortly before a time, or 0 if no such event is known."""
        async with self._database.read() as connection:
            return await _last_id(connection, await size_before(connection, time))


async def _last_id(connection: AsyncConnection, size: int | None) -> int:
    """Return the id of the last event that the log contained at this size, or 0 for an empty log."""
    last = select(_place.c.event_id).where(_place.c.leaf_index < (size or 0))
    return (await connection.execute(last.order_by(_place.c.leaf_index.desc()).limit(1))).scalar() or 0


def _decisions(project_id: str, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Select the bodies of decisions in a project."""
    return select(_event.c.body).where(
        *conditions, _event.c.project_id == project_id, _event.c.kind.in_(DECIDED)
    )
