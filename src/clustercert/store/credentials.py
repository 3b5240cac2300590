"""What the ledger knows of credential ids, most of it from memory, and how revocations reach that memory.

A certificate is read once. Afterwards only what a revocation touches is read again: every worker asks a few times a
second for the revocations that changed since it last asked. That needs generations to be committed in their order,
which `Database.epoch` sees to. How many certificates and revocations there are makes no difference, at the start
neither.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Integer, bindparam, select

from clustercert import metrics
from clustercert.errors import Unavailable
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.gathered import Gathered
from clustercert.store.generation import Generation
from clustercert.store.revocations import is_revoked

_certificate, _revocation = tables.certificate, tables.revocation

READ_AT_ONCE = 64
# More revocations than this at once, and it's cheaper to read again whatever is asked for.
TOUCHED = 5000


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is remembered, and for how long something is tried.

    Attributes:
        known: certificates; about 300 bytes each.
        unknown: ids that the ledger doesn't have.
        unknown_seconds: for how long. The unknown stays unknown, since an answer leaves the service after its record;
            so this bounds only what it costs to ask for one such id again and again.
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
        revoked: by whatever revocation.
        revoked_at: when this one certificate was revoked, or None where it wasn't, or only along with others.
        read_at: the feed's tick before it was read.
    """

    id: int
    fingerprint: bytes
    cluster_id: str
    user_id: str
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
    """Certificates by fingerprint. One for each event loop; `feed` must be watched for memory to be used."""

    def __init__(self, database: Database, feed: Feed, bounds: Bounds = BOUNDS) -> None:
        self._bounds = bounds
        self._database = database
        self._feed = feed
        self._known: OrderedDict[bytes, Credential] = OrderedDict()
        self._unknown_until: dict[bytes, float] = {}
        self._texts: dict[str, str] = {}
        self._read_once = Gathered(self._read, READ_AT_ONCE)

    async def find(self, fingerprint: bytes) -> Credential | None:
        """The certificate, or None where the ledger has none. Raises Unavailable."""
        if self._feed.fresh():
            known = self._known.get(fingerprint)
            if known is not None and self._feed.current(known):
                self._known.move_to_end(fingerprint)
                return known
            if known is None and self._unknown_until.get(fingerprint, 0.0) > time.monotonic():
                return None
        try:
            async with asyncio.timeout(self._bounds.read_seconds):
                return await self._look_up(fingerprint)
        except TimeoutError as error:
            raise Unavailable("The database does not answer in time. Try again in a moment.") from error

    async def _look_up(self, fingerprint: bytes) -> Credential | None:
        while True:
            known = await self._read_once(fingerprint)
            if known is None:
                self._remember_unknown(fingerprint)
                return None
            # What was revoked while it was read is read again.
            if self._feed.current(known):
                self._known[fingerprint] = known
                self._known.move_to_end(fingerprint)
                if len(self._known) > self._bounds.known:
                    self._known.popitem(last=False)
                return known

    async def _read(self, fingerprints: Sequence[bytes]) -> Mapping[bytes, Credential]:
        read_at = self._feed.tick
        async with self._database.read() as connection:
            rows = await connection.execute(_CREDENTIALS, {"fingerprints": fingerprints})
            return {
                row.fingerprint: Credential(
                    id=row.id,
                    fingerprint=row.fingerprint,
                    cluster_id=self._one_copy(row.cluster_id),
                    user_id=self._one_copy(row.user_id),
                    revoked=bool(row.revoked),
                    revoked_at=row.revoked_at,
                    read_at=read_at,
                )
                for row in rows
            }

    def _one_copy(self, text: str) -> str:
        """The same text for all certificates of a cluster, of a user."""
        if len(self._texts) >= self._bounds.known:
            self._texts.clear()
        return self._texts.setdefault(text, text)

    def _remember_unknown(self, fingerprint: bytes) -> None:
        if len(self._unknown_until) >= self._bounds.unknown:
            self._unknown_until.clear()
        self._unknown_until[fingerprint] = time.monotonic() + self._bounds.unknown_seconds
        self._known.pop(fingerprint, None)


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
    _certificate.c.cluster_id,
    _certificate.c.user_id,
    _certificate.c.revoked_at,
    is_revoked().label("revoked"),
).where(_certificate.c.fingerprint.in_(bindparam("fingerprints", expanding=True)))
