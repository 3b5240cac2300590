"""Every SQL statement that reads certificates, or forgets them; `ledger` alone adds them."""

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import delete, func, select

from clustercert.model import AuditEvent
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.events import record_events

_certificate, _revocation = tables.certificate, tables.revocation

# Few enough that other writers wait only for a moment.
PRUNED_AT_ONCE = 1000


class CertificateRows:
    """What was issued."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def live(self, now: datetime, horizons: Sequence[datetime]) -> tuple[int, tuple[int, ...]]:
        """How many certificates are valid now, and how many of these end at or before each horizon.

        What was revoked one by one doesn't count. What falls under a revocation of a user or a cluster still does: to
        know, each certificate would have to be looked at.
        """
        ends_after_now = _certificate.c.not_after > now
        counts = [func.count().filter(_certificate.c.not_after <= horizon) for horizon in horizons]
        query = select(func.count(), *counts).where(ends_after_now, _certificate.c.revoked_at.is_(None))
        async with self._database.read() as connection:
            total, *windows = (await connection.execute(query)).one()
        return total, tuple(windows)

    async def prune(self, ended_before: datetime, event: Callable[[int], AuditEvent]) -> int:
        """Forget some of the certificates that ended before a time, the oldest first; how many, 0 at the end.

        The revocations of these single certificates go with them.

        `event` makes the audit's event of a count; it is written where something was forgotten. The events of their
        issuance stay.
        """
        ended = (
            select(_certificate.c.fingerprint)
            .where(_certificate.c.not_after < ended_before)
            .order_by(_certificate.c.not_after)
            .limit(PRUNED_AT_ONCE)
        )
        async with self._database.write() as connection:
            fingerprints = (await connection.execute(ended)).scalars().all()
            count = (
                await connection.execute(
                    delete(_certificate).where(_certificate.c.fingerprint.in_(fingerprints))
                )
            ).rowcount
            # Of one certificate each, and so of none any more. Those of many stay: they may cover others.
            await connection.execute(delete(_revocation).where(_revocation.c.fingerprint.in_(fingerprints)))
            if count:
                await record_events(connection, (event(count),))
        return count
