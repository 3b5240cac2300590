"""Every SQL statement about who gets into a cluster now, and what could keep them out."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.inventory import Listed, explained, listed_query

_certificate, _token, _unknown = tables.certificate, tables.webhook_token, tables.unknown_identity


@dataclass(frozen=True, slots=True)
class Unknown:
    """Somebody whose client certificates the cluster's API server saw, and the ledger doesn't know.

    Attributes:
        fingerprints: of the certificates seen last, lower-case hex, the newest last; at most 16.
        hashes: how many certificates were seen, or encodings of them; at least, where they are many.
    """

    fingerprints: tuple[str, ...]
    hashes: int
    username: str
    groups: tuple[str, ...]
    first_seen_at: datetime
    last_seen_at: datetime


class AccessRows:
    """What is known of a cluster's credentials."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unexpired(
        self, cluster_id: str, now: datetime, *, limit: int, user_id: str | None = None
    ) -> tuple[Listed, ...]:
        """What has not ended yet, revoked or not, the longest-lived first."""
        query = (
            listed_query()
            .where(_certificate.c.cluster_id == cluster_id, _certificate.c.not_after > now)
            .order_by(_certificate.c.not_after.desc())
            .limit(limit)
        )
        if user_id is not None:
            query = query.where(_certificate.c.user_id == user_id)
        async with self._database.read() as connection:
            return await explained(connection, (await connection.execute(query)).all())

    async def unknown(self, cluster_id: str, *, limit: int) -> tuple[Unknown, ...]:
        """The strangers, those first that were seen last."""
        query = select(_unknown).where(_unknown.c.cluster_id == cluster_id)
        async with self._database.read() as connection:
            newest_first = query.order_by(_unknown.c.last_seen_at.desc(), _unknown.c.identity)
            return tuple(
                Unknown(
                    fingerprints=tuple(row.fingerprints),
                    hashes=row.hashes,
                    username=row.username,
                    groups=tuple(row.groups),
                    first_seen_at=row.first_seen_at,
                    last_seen_at=row.last_seen_at,
                )
                for row in await connection.execute(newest_first.limit(limit))
            )

    async def asked(self, cluster_id: str) -> tuple[datetime | None, ...]:
        """For each token of the cluster's webhooks, when its API server last asked with it; None is never."""
        query = select(_token.c.last_asked_at).where(_token.c.cluster_id == cluster_id)
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())
