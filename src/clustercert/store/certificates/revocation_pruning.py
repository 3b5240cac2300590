"""Deletes revocations of users and clusters that no certificate needs any more."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Column, ColumnElement, Select, and_, delete, func, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent
from clustercert.policy.lifetime import MOST_DAYS
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.certificates.revocations import NO_END, seen_account
from clustercert.store.engine.queries import Queries
from clustercert.store.engine.transaction import Transaction

_certificate, _revocation, _progress = tables.certificate, tables.revocation, tables.progress

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
            select(revocation.id, revocation.user_id, revocation.cluster_id, revocation.epoch)
            .where(of_scope, revocation.at < made_before, revocation.id > after)
            .order_by(revocation.id)
            .limit(CHECKED_AT_ONCE)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(candidates)).all()
            seen = await _seen_users(connection, {row.user_id for row in rows})
            oldest = await _oldest_certificates(connection, {(row.user_id, row.cluster_id) for row in rows})
        found = [
            row.id
            for row in rows
            if (not row.user_id or row.user_id in seen)
            and row.epoch <= oldest.get((row.user_id, row.cluster_id), row.epoch)
        ]
        # A certificate with an older epoch is no longer recorded: its transaction would be as old as the revocation.
        deleted = 0
        if found:
            async with self._database.transaction() as connection:
                these = delete(_revocation).where(revocation.id.in_(found), of_scope)
                if deleted := (await connection.execute(these)).rowcount:
                    await record_events(connection, (event(deleted),))
        return PrunedRevocations(deleted, rows[-1].id if len(rows) == CHECKED_AT_ONCE else None)


async def _seen_users(connection: Transaction, user_ids: Collection[str]) -> set[str]:
    """Return which of these users the service has seen."""
    users = select(_revocation.c.user_id).where(_revocation.c.user_id.in_(user_ids)).distinct().subquery()
    query = select(users.c.user_id).where(seen_account(users.c.user_id))
    return set((await connection.execute(query)).scalars())


async def _oldest_certificates(
    connection: Transaction, scopes: Collection[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """Return the lowest epoch of the certificates in each scope, which is a user, a cluster or both.

    An empty string means all users or clusters. Omits scopes without certificates. Reads the certificates of a scope
    once, however many revocations it has.
    """
    user_id, cluster_id = _certificate.c.user_id, _certificate.c.cluster_id
    everything = literal("")
    in_clusters = {user for user, cluster in scopes if user and cluster}
    everywhere = {user for user, cluster in scopes if not cluster}
    clusters = {cluster for user, cluster in scopes if not user}
    queries = (
        _lowest(user_id, cluster_id).where(user_id.in_(in_clusters)),
        _lowest(user_id, everything).where(user_id.in_(everywhere)),
        _lowest(everything, cluster_id).where(cluster_id.in_(clusters)),
    )
    return {
        (user, cluster): epoch
        for query in queries
        for user, cluster, epoch in await connection.execute(query)
        if (user, cluster) in scopes
    }


def _lowest(user_id: ColumnElement[str], cluster_id: ColumnElement[str]) -> Select[str, str, int]:
    grouped = [each for each in (user_id, cluster_id) if isinstance(each, Column)]
    return select(user_id, cluster_id, func.min(_certificate.c.epoch)).group_by(*grouped)
