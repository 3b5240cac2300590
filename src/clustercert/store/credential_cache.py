"""A cache of the certificates that clients present to API servers.

A certificate is read once, and again only after the revocation feed reports a change that may affect it. So the cost
does not depend on the number of certificates and revocations.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cachetools import LRUCache, TTLCache
from sqlalchemy import Row, Select, bindparam, select

from clustercert.model.errors import Unavailable
from clustercert.store import tables
from clustercert.store.engine.batch_loader import BatchLoader
from clustercert.store.engine.database import Database
from clustercert.store.engine.queries import Queries
from clustercert.store.revocation_feed import RevocationFeed
from clustercert.store.revocation_state import is_revoked

_certificate = tables.certificate

READ_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the cache and of its queries.

    Attributes:
        known: maximum number of cached certificates; about 400 bytes each.
        unknown: maximum number of cached credential numbers that are not in the ledger.
        unknown_seconds: how long an unknown number is cached, to limit queries. It stays unknown, because a certificate
            is recorded before it is returned.
        read_seconds: time-out of a query; less than the three seconds that an API server waits for its webhook.
    """

    known: int = 200_000
    unknown: int = 10_000
    unknown_seconds: float = 1.0
    read_seconds: float = 2.0


BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class CachedCertificate:
    """The part of a certificate that is needed to authorize its use.

    Attributes:
        credential_number: the number in the credential group.
        common_name: the user name in the certificate.
        groups: its groups except the credential group.
        revoked: whether any revocation covers it.
        revoked_at: when this certificate itself was revoked; None if it was not, or only through its user or cluster.
        read_at: the revocation feed's `tick` just before the certificate was read.
    """

    id: int
    fingerprint: bytes
    credential_number: str
    cluster_id: str
    user_id: str
    common_name: str
    groups: frozenset[str]
    revoked: bool
    revoked_at: datetime | None
    read_at: int


class CredentialCache(Queries):
    """Caches certificates by credential number.

    Use one cache per event loop. Entries are used only while `feed` is being watched.
    """

    def __init__(self, database: Database, feed: RevocationFeed, bounds: Bounds = BOUNDS) -> None:
        self._bounds = bounds
        super().__init__(database)
        self._feed = feed
        # Keys are credential numbers.
        self._known: LRUCache[str, CachedCertificate] = LRUCache(bounds.known)
        self._unknown: TTLCache[str, None] = TTLCache(bounds.unknown, bounds.unknown_seconds)
        # Equal ids and group sets share one object, to save memory.
        self._texts: LRUCache[str, str] = LRUCache(bounds.known)
        self._groups: LRUCache[frozenset[str], frozenset[str]] = LRUCache(bounds.known)
        self._load = BatchLoader(self._read, READ_AT_ONCE)

    async def by_number(self, number: str) -> CachedCertificate | None:
        """Return the certificate with this credential number, or None. Raises Unavailable."""
        if self._feed.fresh():
            known = self._known.get(number)
            if known is not None and self._is_current(known):
                return known
            if known is None and number in self._unknown:
                return None
        try:
            async with asyncio.timeout(self._bounds.read_seconds):
                return await self._look_up(number)
        except TimeoutError as error:
            raise Unavailable("The database does not answer in time. Try again later.") from error

    def _is_current(self, known: CachedCertificate) -> bool:
        return self._feed.is_current(known.read_at, known.fingerprint, known.user_id, known.cluster_id)

    async def _look_up(self, number: str) -> CachedCertificate | None:
        while True:
            known = await self._load(number)
            if known is None:
                self._known.pop(number, None)
                self._unknown[number] = None
                return None
            # The feed may have read a revocation while the query ran. If so, read the certificate again.
            if self._is_current(known):
                self._known[number] = known
                return known

    async def _read(self, numbers: Sequence[str]) -> Mapping[str, CachedCertificate]:
        read_at = self._feed.tick
        rows = await self._rows(_BY_NUMBER, {"numbers": numbers})
        return {row.credential_number: self._cached(row, read_at) for row in rows}

    def _cached(self, row: Row[Any], read_at: int) -> CachedCertificate:
        groups = frozenset(row.groups)
        common_name = row.username or row.user_id
        return CachedCertificate(
            id=row.id,
            fingerprint=row.fingerprint,
            credential_number=row.credential_number,
            cluster_id=self._texts.setdefault(row.cluster_id, row.cluster_id),
            user_id=self._texts.setdefault(row.user_id, row.user_id),
            common_name=self._texts.setdefault(common_name, common_name),
            groups=self._groups.setdefault(groups, groups),
            revoked=bool(row.revoked),
            revoked_at=row.revoked_at,
            read_at=read_at,
        )


_COLUMNS = (
    "id",
    "fingerprint",
    "credential_number",
    "cluster_id",
    "user_id",
    "username",
    "groups",
    "revoked_at",
)
_BY_NUMBER: Select[Any] = select(
    *(_certificate.c[name] for name in _COLUMNS), is_revoked().label("revoked")
).where(_certificate.c.credential_number.in_(bindparam("numbers", expanding=True)))
