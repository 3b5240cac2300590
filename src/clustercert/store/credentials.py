"""What the ledger knows of certificates in use, most of it from memory, and how revocations reach that memory.

A certificate is read once. Afterwards only what a revocation touches is read again: every worker asks a few times a
second for the revocations that changed since it last asked. That needs generations to be committed in their order,
which `Database.epoch` sees to. How many certificates and revocations there are makes no difference, at the start
neither.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from cachetools import LRUCache, TTLCache
from sqlalchemy import ColumnElement, Integer, Row, Text, bindparam, cast, literal, select

from clustercert import metrics
from clustercert.errors import Unavailable
from clustercert.model import CREDENTIAL_PREFIX, number_of, utc_now, without_credential_group
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.gathered import Gathered
from clustercert.store.generation import Generation
from clustercert.store.revocations import is_revoked

K = TypeVar("K", str, bytes)
T = TypeVar("T")

_certificate, _revocation = tables.certificate, tables.revocation

READ_AT_ONCE = 64
# More revocations than this at once, and it's cheaper to read again whatever is asked for.
TOUCHED = 5000


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is remembered, and for how long something is tried.

    Attributes:
        known: certificates; about 400 bytes each.
        unknown: names of certificates that the ledger does not have.
        unknown_seconds: for how long. The unknown stays unknown, since an answer leaves the service after its record;
            so this bounds only what it costs to ask for one such name again and again.
        read_seconds: how long the database may take: less than the three that an API server waits for its webhook.
    """

    known: int = 200_000
    unknown: int = 10_000
    unknown_seconds: float = 1.0
    read_seconds: float = 2.0


BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate, as far as it matters to whoever sees it in use.

    Attributes:
        id: of its row.
        credential_number: that its credential group names; None where it has no such group.
        user_id: its CN.
        groups: its other groups.
        revoked: by whatever revocation.
        revoked_at: when this one certificate was revoked, or None where it wasn't, or only along with others.
        read_at: the feed's tick before it was read.
    """

    id: int
    fingerprint: bytes
    credential_number: str | None
    cluster_id: str
    user_id: str
    groups: frozenset[str]
    revoked: bool
    revoked_at: datetime | None
    read_at: int


class Feed(Generation):
    """The generation together with the revocations that made it what it is.

    Attributes:
        tick: rises whenever something was noticed.
    """

    # Longer than for other caches: a worker that answers errors leaves it to the API server whether to fail open.
    STALE_AFTER = 2.0

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.monotonic, most: int = TOUCHED
    ) -> None:
        super().__init__(self._read_changes, clock)
        self._most = most
        self._database = database
        self.tick = 0
        self._forgotten_at = 0
        self._touched: dict[Hashable, int] = {}

    async def refresh(self) -> None:
        """Read number and revocations once. Raises Unavailable."""
        before = self._asked_at
        await super().refresh()
        if before > float("-inf"):
            metrics.FEED_SECONDS.observe(self._clock() - before)

    def current(self, known: Credential) -> bool:
        """Whether nothing was noticed, since it was read, that may have changed it."""
        read_at, touched = known.read_at, self._touched
        if read_at < self._forgotten_at:
            return False
        if not touched:
            return True
        user_id, cluster_id = known.user_id, known.cluster_id
        keys: tuple[Hashable, ...] = (
            known.fingerprint,
            (user_id, cluster_id),
            (user_id, ""),
            ("", cluster_id),
        )
        return not any(touched.get(key, -1) > read_at for key in keys)

    async def _read_changes(self) -> int:
        """The number, once what changed since it was last read is marked: both are read in one snapshot."""
        # What was read while nobody followed may have been revoked meanwhile, also before a number that was seen long
        # ago: a backup may have been restored, and have grown again. So at the start, when nothing was followed yet.
        followed = self.fresh()
        if followed and await self._database.read_generation() == self.value:
            return self.value
        async with self._database.read() as connection:
            value: int = (await connection.execute(_GENERATION)).scalar_one()
            followed = followed and value >= self.value
            changed = []
            if followed and value > self.value:
                changed = list(
                    await connection.execute(_CHANGED, {"seen": self.value, "most": self._most + 1})
                )
        if changed or not followed:
            self.tick += 1
            for row in changed:
                key = row.fingerprint if row.fingerprint is not None else (row.user_id, row.cluster_id)
                self._touched[key] = self.tick
        # The last condition: there may be more than were read.
        if not followed or max(len(self._touched), len(changed)) > self._most:
            self._touched.clear()
            self._forgotten_at = self.tick
        return value


class Credentials:
    """Certificates by credential number, or by fingerprint where they have none.

    One for each event loop; `feed` must be watched for memory to be used.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        bounds: Bounds = BOUNDS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._bounds = bounds
        self._database = database
        self._feed = feed
        self._now = now
        # By credential number (text) or fingerprint (bytes).
        self._known: LRUCache[str | bytes, Credential] = LRUCache(bounds.known)
        self._unknown: TTLCache[str | bytes, None] = TTLCache(bounds.unknown, bounds.unknown_seconds)
        # Whether a user has certificates without a number.
        self._unnumbered: TTLCache[str, bool] = TTLCache(bounds.unknown, bounds.unknown_seconds)
        # The same object for all certificates of a cluster, of a user.
        self._texts: LRUCache[str, str] = LRUCache(bounds.known)
        self._groups: LRUCache[frozenset[str], frozenset[str]] = LRUCache(bounds.known)
        self._by_number = Gathered(self._read_numbers, READ_AT_ONCE)
        self._by_fingerprint = Gathered(self._read_fingerprints, READ_AT_ONCE)
        self._by_user = Gathered(self._read_unnumbered, READ_AT_ONCE)

    async def by_number(self, number: str) -> Credential | None:
        """The certificate with a credential number, or None where the ledger has none. Raises Unavailable."""
        return await self._find(number, self._by_number)

    async def by_fingerprint(self, fingerprint: bytes) -> Credential | None:
        """The certificate with a fingerprint, or None where the ledger has none. Raises Unavailable."""
        return await self._find(fingerprint, self._by_fingerprint)

    async def has_unnumbered(self, user_id: str) -> bool:
        """Whether a user was issued a certificate without a credential group, for any cluster, that has not ended.

        Revoked ones count. Raises Unavailable.
        """
        found = self._unnumbered.get(user_id) if self._feed.fresh() else None
        if found is None:
            found = bool(await self._in_time(self._by_user(user_id)))
            self._unnumbered[user_id] = found
        return found

    async def _find(self, key: K, read_once: Gathered[K, Credential]) -> Credential | None:
        if self._feed.fresh():
            known = self._known.get(key)
            if known is not None and self._feed.current(known):
                return known
            if known is None and key in self._unknown:
                return None
        return await self._in_time(self._look_up(key, read_once))

    async def _in_time(self, reading: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._bounds.read_seconds):
                return await reading
        except TimeoutError as error:
            raise Unavailable("The database does not answer in time. Try again in a moment.") from error

    async def _look_up(self, key: K, read_once: Gathered[K, Credential]) -> Credential | None:
        while True:
            known = await read_once(key)
            if known is None:
                self._known.pop(key, None)
                self._unknown[key] = None
                return None
            # What was revoked while it was read is read again.
            if self._feed.current(known):
                self._known[key] = known
                return known

    async def _read_numbers(self, numbers: Sequence[str]) -> Mapping[str, Credential]:
        read_at = self._feed.tick
        async with self._database.read() as connection:
            rows = list(await connection.execute(_BY_NUMBER, {"numbers": numbers}))
            found = self._named_by_number(rows, read_at)
            if missing := [number for number in numbers if number not in found]:
                rows = list(await connection.execute(_BY_SERIAL, {"serials": missing}))
                found |= self._named_by_number(rows, read_at)
        return found

    def _named_by_number(self, rows: Iterable[Row[Any]], read_at: int) -> dict[str, Credential]:
        credentials = (self._credential(row, read_at) for row in rows)
        return {each.credential_number: each for each in credentials if each.credential_number is not None}

    async def _read_fingerprints(self, fingerprints: Sequence[bytes]) -> Mapping[bytes, Credential]:
        read_at = self._feed.tick
        async with self._database.read() as connection:
            rows = await connection.execute(_BY_FINGERPRINT, {"fingerprints": fingerprints})
            return {row.fingerprint: self._credential(row, read_at) for row in rows}

    async def _read_unnumbered(self, user_ids: Sequence[str]) -> Mapping[str, bool]:
        values = {"users": user_ids, "now": self._now()}
        async with self._database.read() as connection:
            return dict.fromkeys((await connection.execute(_UNNUMBERED, values)).scalars(), True)

    def _credential(self, row: Row[Any], read_at: int) -> Credential:
        number = number_of(row.credential_number, row.serial, row.groups)
        groups = frozenset(without_credential_group(row.groups, number))
        return Credential(
            id=row.id,
            fingerprint=row.fingerprint,
            credential_number=number,
            cluster_id=self._texts.setdefault(row.cluster_id, row.cluster_id),
            user_id=self._texts.setdefault(row.user_id, row.user_id),
            groups=self._groups.setdefault(groups, groups),
            revoked=bool(row.revoked),
            revoked_at=row.revoked_at,
            read_at=read_at,
        )


def is_bound_by_serial() -> ColumnElement[bool]:
    """Whether a row of `certificate` without a number has a credential group all the same: that of its serial.

    Programs before schema 0005 recorded such rows where each certificate has a binding of its own.
    """
    group = literal(f'["{CREDENTIAL_PREFIX}') + _certificate.c.serial + literal('"]')
    return cast(_certificate.c.groups, Text) == group


# Made once: putting such a statement together takes longer than running it.
_GENERATION = select(tables.generation.c.value)
_CHANGED = (
    select(_revocation.c.fingerprint, _revocation.c.user_id, _revocation.c.cluster_id)
    .where(_revocation.c.changed > bindparam("seen"))
    .order_by(_revocation.c.changed)
    .limit(bindparam("most", type_=Integer()))
)
_CREDENTIALS = select(
    _certificate.c.id,
    _certificate.c.fingerprint,
    _certificate.c.credential_number,
    _certificate.c.serial,
    _certificate.c.cluster_id,
    _certificate.c.user_id,
    _certificate.c.groups,
    _certificate.c.revoked_at,
    is_revoked().label("revoked"),
)
_BY_NUMBER = _CREDENTIALS.where(
    _certificate.c.credential_number.in_(bindparam("numbers", expanding=True)),
)
# What programs before schema 0005 issued where each certificate has a binding of its own: the credential group has the
# serial.
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
