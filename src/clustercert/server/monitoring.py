"""Reads the state that `/readyz` and `/metrics` report from the database."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from clustercert.custody import Custody
from clustercert.model.errors import ClustercertError, StoreFault, Unavailable
from clustercert.observability import metrics
from clustercert.store.certificate_maintenance import CertificateMaintenance
from clustercert.store.credential_usage import CredentialUsageQueries
from clustercert.store.engine.database import Database

# Minimum interval between two counts. More frequent scrapes receive the last count.
GAUGE_SECONDS = 15
EXPIRY_WINDOWS = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the database and the key-encryption keys can be used.

    Attributes:
        custody: `None` if the process needs no keys.
    """

    database: Database
    custody: Custody | None

    async def check(self) -> None:
        """Raise Unavailable if the database or the keys can't be used. `__cause__` has the reason, for the log only."""
        try:
            await self.database.ping()
        except StoreFault as failure:
            raise Unavailable(
                "Not ready: the database can't be used. See the log.", retry_after=None
            ) from failure
        except Unavailable as failure:
            raise Unavailable("Not ready: the database does not answer.") from failure
        if self.custody is None:
            return
        try:
            await self.custody.open()
        except ClustercertError as failure:
            raise Unavailable("Not ready: the key-encryption keys can't be used. See the log.") from failure


class StoreGauges:
    """Counts live certificates and clusters without reviews.

    Also measures the age of unsealed events, and the offset of this machine's clock.
    """

    def __init__(
        self,
        database: Database,
        certificates: CertificateMaintenance,
        usage: CredentialUsageQueries,
        unsealed_since: Callable[[], Awaitable[datetime | None]],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._certificates = certificates
        self._usage = usage
        self._unsealed_since = unsealed_since
        self._now = now
        self._counted_at = datetime.min.replace(tzinfo=UTC)

    async def update(self) -> None:
        """Count again if the last count is too old. Raises Unavailable."""
        now = self._now()
        if now - self._counted_at < timedelta(seconds=GAUGE_SECONDS):
            return
        self._counted_at = now
        metrics.CLOCK_OFFSET.set((await self._database.clock_offset()).total_seconds())
        unsealed_since = await self._unsealed_since()
        metrics.UNSEALED_SECONDS.set((now - unsealed_since).total_seconds() if unsealed_since else 0)
        metrics.WITHOUT_REVIEWS.set(await self._usage.clusters_without_reviews(now))
        total, windows = await self._certificates.live(
            now, [now + window for window in EXPIRY_WINDOWS.values()]
        )
        metrics.LIVE.set(total)
        for name, count in zip(EXPIRY_WINDOWS, windows, strict=True):
            metrics.EXPIRING.labels(name).set(count)
