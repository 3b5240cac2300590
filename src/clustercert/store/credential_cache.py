"""A cache of the certificates that clients present to API servers.

A certificate is read once, and again only after the revocation feed reports a change that may affect it. So the cost
does not depend on the number of certificates and revocations.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from cachetools import LRUCache, TTLCache
from sqlalchemy import Row, Select, bindparam, select

from clustercert.model import number_of, utc_now, without_credential_group
from clustercert.model.errors import Unavailable
from clustercert.store import tables
from clustercert.store.certificate_view import is_bound_by_serial
from clustercert.store.engine.batch_loader import BatchLoader
from clustercert.store.engine.database import Database
from clustercert.store.engine.queries import Queries
from clustercert.store.revocation_feed import RevocationFeed
from clustercert.store.revocation_state import is_revoked

K = TypeVar("K", str, bytes)
T = TypeVar("T")

_certificate = tables.certificate

READ_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the cache and of its queries.

    Attributes:
        known: maximum number of cached certificates; about 400 bytes each.
        unknown: maximum number of cached credential numbers and fingerprints that are not in the ledger.
        unknown_seconds: how long an unknown number or fingerprint is cached, to limit queries. It stays unknown,
            because a certificate is recorded before it is returned.
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
        credential_number: the number in the credential group; None if the certificate has no such group.
        common_name: the user name in the certificate.
        groups: its groups except the credential group.
        revoked: whether any revocation covers it.
        revoked_at: when this certificate itself was revoked; None if it was not, or only through its user or cluster.
        read_at: the revocation feed's `tick` just before the certificate was read.
    """

    id: int
    fingerprint: bytes
    credential_number: str | None
    cluster_id: str
    user_id: str
    common_name: str
    groups: frozenset[str]
    revoked: bool
    revoked_at: datetime | None
    read_at: int


class CredentialCache(Queries):
    """Caches certificates by credential number, or by fingerprint if they have no number.

    Use one cache per event loop. Entries are used only while `feed` is being watched.
    """

    def __init__(
        self,
        database: Database,
        feed: RevocationFeed,
        bounds: Bounds = BOUNDS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._bounds = bounds
        super().__init__(database)
        self._feed = feed
        self._now = now
        # Keys are credential numbers (str) or fingerprints (bytes).
        self._known: LRUCache[str | bytes, CachedCertificate] = LRUCache(bounds.known)
        self._unknown: TTLCache[str | bytes, None] = TTLCache(bounds.unknown, bounds.unknown_seconds)
        # Whether a user has certificates without a number, by user id.
        self._unnumbered: TTLCache[str, bool] = TTLCache(bounds.unknown, bounds.unknown_seconds)
        # Equal ids and group sets share one object, to save memory.
        self._texts: LRUCache[str, str] = LRUCache(bounds.known)
        self._groups: LRUCache[frozenset[str], frozenset[str]] = LRUCache(bounds.known)
        self._by_number = BatchLoader(self._read_numbers, READ_AT_ONCE)
        self._by_fingerprint = BatchLoader(self._read_fingerprints, READ_AT_ONCE)
        self._by_user = BatchLoader(self._read_unnumbered, READ_AT_ONCE)

    async def by_number(self, number: str) -> CachedCertificate | None:
        """Return the certificate with this credential number, or None. Raises Unavailable."""
        return await self._find(number, self._by_number)

    async def by_fingerprint(self, fingerprint: bytes) -> CachedCertificate | None:
        """Return the certificate with this fingerprint, or None. Raises Unavailable."""
        return await self._find(fingerprint, self._by_fingerprint)

    async def has_unnumbered(self, user_id: str) -> bool:
        """Whether a user has an unexpired certificate without a credential group, revoked or not, for any cluster.

        Raises Unavailable.
        """
        found = self._unnumbered.get(user_id) if self._feed.fresh() else None
        if found is None:
            found = bool(await self._in_time(self._by_user(user_id)))
            self._unnumbered[user_id] = found
        return found

    async def _find(self, key: K, load: BatchLoader[K, CachedCertificate]) -> CachedCertificate | None:
        if self._feed.fresh():
            known = self._known.get(key)
            if known is not None and self._is_current(known):
                return known
            if known is None and key in self._unknown:
                return None
        return await self._in_time(self._look_up(key, load))

    def _is_current(self, known: CachedCertificate) -> bool:
        return self._feed.is_current(known.read_at, known.fingerprint, known.user_id, known.cluster_id)

    async def _in_time(self, reading: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._bounds.read_seconds):
                return await reading
        except TimeoutError as error:
            raise Unavailable("The database does not answer in time. Try again later.") from error

    async def _look_up(self, key: K, load: BatchLoader[K, CachedCertificate]) -> CachedCertificate | None:
        while True:
            known = await load(key)
            if known is None:
                self._known.pop(key, None)
                self._unknown[key] = None
                return None
            # The feed may have read a revocation while the query ran. If so, read the certificate again.
            if self._is_current(known):
                self._known[key] = known
                return known

    async def _read_numbers(self, numbers: Sequence[str]) -> Mapping[str, CachedCertificate]:
        read_at = self._feed.tick
        async with self._database.read() as connection:
            rows = list(await connection.execute(_BY_NUMBER, {"numbers": numbers}))
            found = self._by_credential_number(rows, read_at)
            if missing := [number for number in numbers if number not in found]:
                rows = list(await connection.execute(_BY_SERIAL, {"serials": missing}))
                found |= self._by_credential_number(rows, read_at)
        return found

    def _by_credential_number(self, rows: Iterable[Row[Any]], read_at: int) -> dict[str, CachedCertificate]:
        credentials = (self._cached(row, read_at) for row in rows)
        return {each.credential_number: each for each in credentials if each.credential_number is not None}

    async def _read_fingerprints(self, fingerprints: Sequence[bytes]) -> Mapping[bytes, CachedCertificate]:
        read_at = self._feed.tick
        rows = await self._rows(_BY_FINGERPRINT, {"fingerprints": fingerprints})
        return {row.fingerprint: self._cached(row, read_at) for row in rows}

    async def _read_unnumbered(self, user_ids: Sequence[str]) -> Mapping[str, bool]:
        rows = await self._rows(_UNNUMBERED, {"users": user_ids, "now": self._now()})
        return {row.user_id: True for row in rows}

    def _cached(self, row: Row[Any], read_at: int) -> CachedCertificate:
        number = number_of(row.credential_number, row.serial, row.groups)
        groups = frozenset(without_credential_group(row.groups, number))
        common_name = row.username or row.user_id
        return CachedCertificate(
            id=row.id,
            fingerprint=row.fingerprint,
            credential_number=number,
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
    "serial",
    "cluster_id",
    "user_id",
    "username",
    "groups",
    "revoked_at",
)
_CREDENTIALS: Select[Any] = select(
    *(_certificate.c[name] for name in _COLUMNS), is_revoked().label("revoked")
)
_BY_NUMBER = _CREDENTIALS.where(
    _certificate.c.credential_number.in_(bindparam("numbers", expanding=True)),
)
# See `is_bound_by_serial`.
_BY_SERIAL = _CREDENTIALS.where(
    _certificate.c.serial.in_(bindparam("serials", expanding=True)),
    _certificate.c.credential_number.is_(None),
)
_BY_FINGERPRINT = _CREDENTIALS.where(
    _certificate.c.fingerprint.in_(bindparam("fingerprints", expanding=True))
)
_UNNUMBERED = (
    select(_certificate.c.user_id)
    .where(
        _certificate.c.user_id.in_(bindparam("users", expanding=True)),
        _certificate.c.credential_number.is_(None),
        _certificate.c.not_after > bindparam("now", type_=tables.Utc()),
        ~is_bound_by_serial(),
    )
    .distinct()
)
