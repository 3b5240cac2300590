"""Certificate revocation lists, one for each client CA. kube-apiserver ignores CRLs, but other verifiers read them."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cachetools import LRUCache

from clustercert.model import ClientCA
from clustercert.model.errors import NotFound, Unavailable
from clustercert.pki.crl import CrlContent, check_crl
from clustercert.pki.signer import Signer, signer_named
from clustercert.policy.lifetime import BACKDATE
from clustercert.store.certificates.revocations import CrlQueries

LIFETIME = timedelta(days=1)
# Anyone may request a CRL without authentication, and signing a long CRL takes seconds. So a CRL is reused for this
# time even if a revocation has changed meanwhile, as an HTTP cache would do.
MIN_AGE = timedelta(seconds=10)
# A CRL with this many entries is about ten megabytes long. If a CA has more revoked certificates, the operator should
# retire the CA.
MAX_ENTRIES = 200_000
MAX_CACHED = 64
# The high bits of a CRL number are the store's generation number, the low bits the time in seconds. So the number never
# decreases.
_SECONDS_BITS = 40


@dataclass(frozen=True, slots=True)
class Crl:
    """A signed CRL.

    Attributes:
        made_at: when the entries were read from the store.
        refresh_at: when the CRL is replaced even if no revocation has changed.
    """

    der: bytes
    number: int
    made_at: datetime
    refresh_at: datetime


@dataclass(slots=True)
class _Cached:
    """A cached CRL.

    Attributes:
        changed: the store's generation number at the last change to any revocation.
        generation: the store's generation number when the CRL was last checked for changes.
    """

    crl: Crl
    changed: int
    generation: int


class Crls:
    """Signs CRLs. A CRL is reused until a revocation changes or half of its lifetime is over.

    A revocation appears in the CRL within MIN_AGE plus one second: each process notices a change within one second.
    """

    def __init__(
        self, queries: CrlQueries, signers: Mapping[str, Signer], now: Callable[[], datetime]
    ) -> None:
        self._queries = queries
        self._signers = signers
        self._now = now
        self._cache: LRUCache[tuple[str, str], _Cached] = LRUCache(MAX_CACHED)
        # Only one CRL is signed at a time, because signing is CPU-bound.
        self._signing = asyncio.Lock()

    async def crl(self, cluster_id: str, ca_id: str) -> Crl:
        """Return a client CA's CRL. Raises NotFound for an unknown CA, Unavailable, SignerError or RemoteFailed."""
        key = cluster_id, ca_id
        if cached := await self._cached(key):
            return cached
        # Look up the CA first, so that requests for unknown CAs do not wait, and delay no other CRL.
        await self._authority(cluster_id, ca_id)
        async with self._signing:
            if cached := await self._cached(key):
                return cached
            generation = self._queries.generation.value
            # Look up the CA again, because it may have been retired while this request waited.
            ca = await self._authority(cluster_id, ca_id)
            crl, changed = await self._sign(ca, signer_named(self._signers, ca.signer))
            self._cache[key] = _Cached(crl, changed, generation)
        return crl

    async def _authority(self, cluster_id: str, ca_id: str) -> ClientCA:
        """Return a client CA that is not retired. Raises NotFound."""
        ca = await self._queries.authority(cluster_id, ca_id)
        if ca is None or ca.certificate is None:
            raise NotFound("There is no such client CA. Check the ids of the cluster and the CA.")
        if ca.state == "retired":
            raise NotFound(
                "The client CA is retired and its key is deleted, so there is no new CRL. No API server trusts the CA."
            )
        return ca

    async def _cached(self, key: tuple[str, str]) -> Crl | None:
        """Return the cached CRL if it is still usable."""
        cached, now = self._cache.get(key), self._now()
        # Do not extend a cached CRL if the clock moved back.
        if cached is None or not cached.crl.made_at <= now < cached.crl.refresh_at:
            return None
        if now < cached.crl.made_at + MIN_AGE:
            return cached.crl
        generation = self._queries.generation
        current = generation.value
        if not (generation.fresh() and cached.generation == current):
            if await self._queries.last_change() != cached.changed:
                return None
            cached.generation = current
        return cached.crl

    async def _sign(self, ca: ClientCA, signer: Signer) -> tuple[Crl, int]:
        now = self._now().replace(microsecond=0)
        revoked = await self._queries.revoked(ca, now, limit=MAX_ENTRIES + 1)
        if len(revoked.entries) > MAX_ENTRIES:
            raise Unavailable(
                f"More than {MAX_ENTRIES} unexpired certificates of this CA are revoked: too many for a CRL."
                " Replace the CA instead.",
                retry_after=3600,
            )
        content = CrlContent(
            entries=revoked.entries,
            number=revoked.generation << _SECONDS_BITS | int(now.timestamp()),
            this_update=now - BACKDATE,
            next_update=now + LIFETIME,
        )
        der = await signer.sign_crl(ca, content)
        await asyncio.to_thread(check_crl, der, ca.ca_certificate, content)
        return Crl(der, content.number, made_at=now, refresh_at=now + LIFETIME / 2), revoked.changed
