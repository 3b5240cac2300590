"""Numbers of uses and reports that no audit event contains yet.

Where single events would be too many, further uses are counted here. At most once an hour, an event reports their
number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, delete, insert, select, tuple_, update

from clustercert.store import tables
from clustercert.store.engine.transaction import Transaction

_count = tables.use_count

# In this period, at most one event is recorded about the altered copies of a certificate, the use of a revoked
# certificate, a known member of `system:masters`, a known exempt identity, or the counted uses of one kind.
ALERT_EVERY = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class UseCount:
    """A number of uses, with the times of the first and last use."""

    count: int
    first: datetime
    last: datetime

    def joined(self, other: "UseCount") -> "UseCount":
        """Add other uses."""
        first, last = min(self.first, other.first), max(self.last, other.last)
        return UseCount(self.count + other.count, first, last)


@dataclass(frozen=True, slots=True)
class UseCounter:
    """Where uses are counted.

    Attributes:
        kind: the kind of event that records a single use, such as `credential.masters`.
        subject: a cluster's id, or the fingerprint of a certificate in lower-case hex.
    """

    kind: str
    subject: str
    project_id: str


@dataclass(frozen=True, slots=True)
class DueCount:
    """Uses that an event must report now.

    Attributes:
        reported_by: the interface that reported the last use.
    """

    counter: UseCounter
    uses: UseCount
    reported_by: str


async def add_uses(
    connection: Transaction,
    counter: UseCounter,
    uses: UseCount,
    reported_by: str,
    now: datetime,
    *,
    revoked_at: datetime | None = None,
) -> UseCount | None:
    """Add uses. Returns what an event must report now, or None if the last event is less than an hour old.

    The caller must hold a lock that all callers with this counter take, and must use several counters in the order of
    their kinds, as `take_due` does.

    Args:
        revoked_at: an event is also due if the last event is not later than this.
    """
    key = (_count.c.kind == counter.kind, _count.c.subject == counter.subject)
    row = (await connection.execute(select(_count).where(*key).with_for_update())).first()
    if row is None:
        names = {"kind": counter.kind, "subject": counter.subject, "project_id": counter.project_id}
        await connection.execute(insert(_count).values(**names, uses=0, event_at=now))
        return uses
    if row.uses:
        uses = uses.joined(UseCount(row.uses, row.first_at, row.last_at))
    if row.event_at <= now - ALERT_EVERY or (revoked_at is not None and row.event_at <= revoked_at):
        await connection.execute(update(_count).where(*key).values(uses=0, event_at=now))
        return uses
    values = {"uses": uses.count, "first_at": uses.first, "last_at": uses.last, "reported_by": reported_by}
    await connection.execute(update(_count).where(*key).values(values))
    return None


def due_before(now: datetime) -> Select[str]:
    """Return a query for counters whose last event is an hour old."""
    return select(_count.c.kind).where(_count.c.event_at <= now - ALERT_EVERY).limit(1)


async def take_due(connection: Transaction, now: datetime, *, limit: int) -> Sequence[DueCount]:
    """Return the uses that were counted since events that are an hour old, and set these counters to zero.

    Deletes counters without uses, because the next use causes an event at once.
    """
    query = select(_count).where(_count.c.event_at <= now - ALERT_EVERY)
    ordered = query.order_by(_count.c.kind, _count.c.subject).limit(limit).with_for_update()
    rows = (await connection.execute(ordered)).all()
    key = tuple_(_count.c.kind, _count.c.subject)
    empty = [(row.kind, row.subject) for row in rows if not row.uses]
    used = [(row.kind, row.subject) for row in rows if row.uses]
    await connection.execute(delete(_count).where(key.in_(empty)))
    await connection.execute(update(_count).where(key.in_(used)).values(uses=0, event_at=now))
    return [
        DueCount(
            UseCounter(row.kind, row.subject, row.project_id),
            UseCount(row.uses, row.first_at, row.last_at),
            row.reported_by,
        )
        for row in rows
        if row.uses
    ]
