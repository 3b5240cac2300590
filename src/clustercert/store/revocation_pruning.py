"""Deletes revocations of users and clusters that no certificate needs any more."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent
from clustercert.policy.lifetime import MOST_DAYS
from clustercert.store import tables
from clustercert.store.engine.queries import Queries
from clustercert.store.events import record_events
from clustercert.store.revocations import NO_END, seen_account

_certificate, _revocation, _progress = tables.certificate, tables.revocation, tables.progress

# Checking a revocation may read all certificates of its user or cluster.
CHECKED_AT_ONCE = 200
LONGEST_LIFETIME = "longest lifetime"


@dataclass(frozen=True, slots=True)
class PrunedRevocations:
    """The result of one step.

    Attributes:
        deleted: how many revocations were deleted.
        last_id: where the next step begins; None after the last revocation.
    """

    deleted: int
    last_id: int | None


class RevocationPruningQueries(Queries):
    """Finds and deletes the revocations, and stores the longest lifetime of certificates."""

    async def note_lifetime(self, lifetime: timedelta) -> None:
        """Store the longest lifetime that the policy allows, unless an earlier policy allowed more."""
        this = _progress.c.name == LONGEST_LIFETIME
        try:
            async with self._database.transaction() as connection:
                query = select(_progress.c.value).where(this).with_for_update()
                found = (await connection.execute(query)).scalar()
                value = str(max(int(lifetime.total_seconds()), int(found or 0)))
                if found is None:
                    await connection.execute(insert(_progress).values(name=LONGEST_LIFETIME, value=value))
                elif found != value:
                    await connection.execute(update(_progress).where(this).values(value=value))
        except IntegrityError:
            # Another process stored the first lifetime at the same time.
            await self.note_lifetime(lifetime)

    async def longest_lifetime(self) -> timedelta:
        """Return the longest lifetime that any policy has allowed; if none is stored, the longest possible one."""
        found = await self._scalar(select(_progress.c.value).where(_progress.c.name == LONGEST_LIFETIME))
        return timedelta(days=MOST_DAYS) if found is None else timedelta(seconds=int(found))

    async def prune(
        self, made_before: datetime, after: int, event: Callable[[int], AuditEvent]
    ) -> PrunedRevocations:
        """Check the next revocations of users and clusters with ids above `after`, and delete those nobody needs.

        Keeps a revocation if the ledger has a certificate that it revokes, even an expired one: so no answer about any
        certificate changes. Also keeps the revocations of users who are disabled, deleted or blocked, and revocations
        of ids that the service has never seen: operators stored these for certificates that are not in the ledger.

        Args:
            made_before: only revocations that were recorded before this time.
            event: creates an audit event from the number of deleted revocations; not called if the number is 0.
        """
        revocation = _revocation.c
        of_scope = and_(revocation.fingerprint.is_(None), revocation.epoch != NO_END)
        candidates = (
            select(revocation.id)
            .where(of_scope, revocation.at < made_before, revocation.id > after)
            .order_by(revocation.id)
            .limit(CHECKED_AT_ONCE)
        )
        async with self._database.read() as connection:
            ids = (await connection.execute(candidates)).scalars().all()
            unneeded = select(revocation.id).where(
                revocation.id.in_(ids),
                ~_revokes_any(),
                or_(revocation.user_id == "", seen_account(revocation.user_id)),
            )
            found = (await connection.execute(unneeded)).scalars().all()
        # A certificate with an older epoch is no longer recorded: its transaction would be as old as the revocation.
        deleted = 0
        if found:
            async with self._database.transaction() as connection:
                these = delete(_revocation).where(revocation.id.in_(found), of_scope)
                if deleted := (await connection.execute(these)).rowcount:
                    await record_events(connection, (event(deleted),))
        return PrunedRevocations(deleted, ids[-1] if len(ids) == CHECKED_AT_ONCE else None)


def _revokes_any() -> ColumnElement[bool]:
    """Return a condition: a certificate in the ledger belongs to the revocation's user and cluster, and is older."""
    revocation, certificate = _revocation.c, _certificate.c
    of_user, in_cluster = (
        certificate.user_id == revocation.user_id,
        certificate.cluster_id == revocation.cluster_id,
    )

    def has_older(*scope: ColumnElement[bool]) -> ColumnElement[bool]:
        older = select(certificate.id).where(*scope, certificate.epoch < revocation.epoch)
        return older.correlate(_revocation).exists()

    # One condition for each kind of scope, so that each lookup uses an index.
    is_of_user, is_in_cluster = revocation.user_id != "", revocation.cluster_id != ""
    return or_(
        and_(is_of_user, is_in_cluster, has_older(of_user, in_cluster)),
        and_(is_of_user, ~is_in_cluster, has_older(of_user)),
        and_(~is_of_user, is_in_cluster, has_older(in_cluster)),
    )
