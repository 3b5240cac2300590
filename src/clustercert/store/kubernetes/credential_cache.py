"""A cache of the certificates that clients present to API servers, and the revocation feed that updates the cache.

A certificate is read once, and again only after the feed reports a change that may affect it. So the cost of a lookup
does not depend on the number of certificates and revocations. Several times a second, every worker reads the
revocations that changed since the last generation it read. No change is missed, because generations commit in
increasing order: see `database.raise_generation`.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cachetools import LRUCache, TTLCache
from sqlalchemy import Integer, Row, Select, bindparam, select

from clustercert.model.choices import CredentialKind
from clustercert.model.errors import Unavailable
from clustercert.observability import metrics
from clustercert.store import tables
from clustercert.store.certificates.views import is_revoked
from clustercert.store.engine.batch_loader import BatchLoader
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Generation
from clustercert.store.engine.queries import Queries

_revocation, _certificate = tables.revocation, tables.certificate

# If more revocations than this have changed, the whole cache is dropped.
MAX_CHANGES = 5000

_GENERATION = select(tables.generation.c.value)
_CHANGED = (
    select(*(_revocation.c[name] for name in ("id", "fingerprint", "user_id", "cluster_id", "undone_at")))
    .where(_revocation.c.changed > bindparam("seen"))
    .order_by(_revocation.c.changed)
    .limit(bindparam("limit", type_=Integer()))
)


class RevocationFeed(Generation):
    """A `Generation` that also reads which revocations changed. `tick` increases with each read that finds changes."""

    WORK = "read revocations"

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.monotonic, max_changes: int = MAX_CHANGES
    ) -> None:
        super().__init__(self._read_changes, clock)
        self._max_changes = max_changes
        self._database = database
        self.tick = 0
        self._dropped_at = 0
        # By cache key, the tick of the last change, and the ticks of the revocations that are not undone, by their ids.
        self._changed_at: dict[Hashable, int] = {}
        self._revoked_at: defaultdict[Hashable, dict[int, int]] = defaultdict(dict)

    async def refresh(self) -> None:
        """Read the generation and the changed revocations once. Raises Unavailable."""
        before = self._asked_at
        await super().refresh()
        if before > float("-inf"):
            metrics.FEED_SECONDS.observe(self._clock() - before)

    def is_current(self, read_at: int, fingerprint: bytes, user_id: str, cluster_id: str) -> bool:
        """Whether a certificate read at tick `read_at` is up to date: no revocation read later can affect it."""
        if read_at < self._dropped_at:
            return False
        # Most often, nothing has changed since the cache was last dropped.
        if not self._changed_at:
            return True
        keys = _keys(fingerprint, user_id, cluster_id)
        return all(self._changed_at.get(key, -1) <= read_at for key in keys)

    def is_revoked_since(self, read_at: int, fingerprint: bytes, user_id: str, cluster_id: str) -> bool:
        """Whether a certificate read at tick `read_at` was revoked later.

        Also true for a certificate that was issued after the revocation, but read before the feed read the revocation.
        """
        if read_at < self._dropped_at:
            return False
        keys = _keys(fingerprint, user_id, cluster_id)
        return any(tick > read_at for key in keys for tick in self._revoked_at.get(key, {}).values())

    async def _read_changes(self) -> int:
        """Read the generation and the changed revocations in one snapshot, and note which cache keys are affected."""
        # At the start, and after reading was interrupted, drop the whole cache, even if the generation is the same.
        # After a restore from a backup, the generation may have reached the same number again, with different
        # revocations.
        followed = self.fresh()
        if followed and await self._database.read_generation() == self.value:
            return self.value
        async with self._database.read(reserved=True) as connection:
            value: int = (await connection.execute(_GENERATION)).scalar_one()
            followed = followed and value >= self.value
            changed = []
            if followed and value > self.value:
                changed = list(
                    await connection.execute(_CHANGED, {"seen": self.value, "limit": self._max_changes + 1})
                )
        if changed or not followed:
            self.tick += 1
            for row in changed:
                key = row.fingerprint if row.fingerprint is not None else (row.user_id, row.cluster_id)
                self._changed_at[key] = self.tick
                if row.undone_at is None:
                    self._revoked_at[key][row.id] = self.tick
                else:
                    # The same certificates may have another revocation, which still holds.
                    self._revoked_at[key].pop(row.id, None)
        # The database may have more changes than were read, so drop the whole cache.
        noted = max(len(self._changed_at), sum(map(len, self._revoked_at.values())))
        if not followed or max(noted, len(changed)) > self._max_changes:
            self._changed_at.clear()
            self._revoked_at.clear()
            self._dropped_at = self.tick
        return value


def _keys(fingerprint: bytes, user_id: str, cluster_id: str) -> tuple[Hashable, ...]:
    """Return the cache keys of the revocations that can affect a certificate."""
    return fingerprint, (user_id, cluster_id), (user_id, ""), ("", cluster_id)


READ_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the cache and of its queries.

    Attributes:
        known: maximum number of cached certificates; about 400 bytes each.
        unknown: maximum number of cached credential numbers that are not in the ledger.
        unknown_seconds: how long an unknown number is cached, to limit queries. Caching is safe, because the service
            records a certificate before the client gets the certificate.
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
        credential_number: the number in the certificate's credential group.
        common_name: the user name in the certificate.
        groups: the certificate's groups, without the credential group.
        revoked: whether any revocation covers the certificate.
        revoked_at: when the certificate was revoked individually; None if it was not.
        read_at: the revocation feed's `tick` just before the certificate was read.
    """

    id: int
    fingerprint: bytes
    credential_number: str
    cluster_id: str
    ca_id: str
    user_id: str
    common_name: str
    groups: frozenset[str]
    revoked: bool
    revoked_at: datetime | None
    read_at: int
    kind: CredentialKind = "certificate"


class CredentialCache(Queries):
    """Caches certificates by credential number.

    Use one cache per event loop. Entries are used only while `feed` is being watched.
    """

    def __init__(self, database: Database, feed: RevocationFeed, bounds: Bounds = BOUNDS) -> None:
        self._bounds = bounds
        super().__init__(database)
        self._feed = feed
        # The keys of these caches are credential numbers.
        self._known: LRUCache[str, CachedCertificate] = LRUCache(bounds.known)
        self._unknown: TTLCache[str, None] = TTLCache(bounds.unknown, bounds.unknown_seconds)
        # Cached certificates share equal ids and equal sets of groups, to save memory.
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
            raise Unavailable("The database did not answer in time. Try again later.") from error

    def remembered(self, number: str) -> CachedCertificate | None:
        """Return the certificate if it is cached, as far as the revocations are known that were read later, or None.

        Always returns None while the cache is up to date. The database may have changed since, so use the certificate
        only to deny requests.
        """
        known = self._known.get(number)
        if known is None or self._feed.fresh():
            return None
        key = (known.read_at, known.fingerprint, known.user_id, known.cluster_id)
        if self._feed.is_revoked_since(*key):
            return replace(known, revoked=True)
        return known if self._is_current(known) else None

    def _is_current(self, known: CachedCertificate) -> bool:
        return self._feed.is_current(known.read_at, known.fingerprint, known.user_id, known.cluster_id)

    async def _look_up(self, number: str) -> CachedCertificate | None:
        while True:
            known = await self._load(number)
            if known is None:
                self._known.pop(number, None)
                self._unknown[number] = None
                return None
            # If the feed has read a revocation while the query ran, read the certificate again.
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
            ca_id=self._texts.setdefault(row.ca_id, row.ca_id),
            user_id=self._texts.setdefault(row.user_id, row.user_id),
            common_name=self._texts.setdefault(common_name, common_name),
            groups=self._groups.setdefault(groups, groups),
            revoked=bool(row.revoked),
            revoked_at=row.revoked_at,
            read_at=read_at,
            kind=row.kind,
        )


_COLUMNS = (
    "id",
    "fingerprint",
    "credential_number",
    "cluster_id",
    "ca_id",
    "user_id",
    "username",
    "groups",
    "revoked_at",
    "kind",
)
_BY_NUMBER: Select[Any] = select(
    *(_certificate.c[name] for name in _COLUMNS), is_revoked().label("revoked")
).where(_certificate.c.credential_number.in_(bindparam("numbers", expanding=True)))
