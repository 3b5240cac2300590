"""One certificate revocation list a client CA, for verifiers other than kube-apiserver, which reads none."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cachetools import LRUCache

from clustercert.crl import new_crl
from clustercert.errors import NotFound, Unavailable
from clustercert.keypair import load_key_der
from clustercert.model import ClientCA
from clustercert.policy import BACKDATE
from clustercert.sealing import Unsealer
from clustercert.store.crls import CrlRows, Revoked

LIFETIME = timedelta(days=1)
# Anybody may ask, and making a long list takes seconds: what is this young is given out whatever was revoked since, as
# caches do with it anyway.
LEAST_AGE = timedelta(seconds=10)
# Some ten megabytes. Who has that many revoked at once takes the CA out of use instead.
MAX_ENTRIES = 200_000
KEPT = 64
# Numbers rise with the store's generation, and within one with the time.
_SECONDS_BITS = 40


@dataclass(frozen=True, slots=True)
class Crl:
    """A list that may be given out.

    Attributes:
        number: its CRL number.
        made_at: when its content was read.
        refresh_at: from then on a new one is made, whatever has changed.
    """

    der: bytes
    number: int
    made_at: datetime
    refresh_at: datetime


@dataclass(slots=True)
class _Kept:
    """A list, the `changed` of its content, and the generation at which that was found to be still so."""

    crl: Crl
    changed: int
    generation: int


class Crls:
    """Makes the lists, and gives each out until a revocation changes or half of its lifetime is over.

    A revocation shows within LEAST_AGE and the second that it takes to reach every process.
    """

    def __init__(self, rows: CrlRows, custody: Unsealer, now: Callable[[], datetime]) -> None:
        self._rows = rows
        self._custody = custody
        self._now = now
        self._kept: LRUCache[tuple[str, str], _Kept] = LRUCache(KEPT)
        # Making one takes the processor; whoever asks for many waits for one after the other.
        self._making = asyncio.Lock()

    async def crl(self, cluster_id: str, ca_id: str) -> Crl:
        """The list of a client CA. Raises NotFound or Unavailable."""
        key = cluster_id, ca_id
        if kept := await self._good(key):
            return kept
        async with self._making:
            if kept := await self._good(key):
                return kept
            generation = self._rows.generation.value
            ca = await self._rows.authority(cluster_id, ca_id)
            if ca is None:
                raise NotFound("There is no such client CA. Check the cluster's id and the CA's.")
            crl, changed = await self._make(ca)
            self._kept[key] = _Kept(crl, changed, generation)
        return crl

    async def _good(self, key: tuple[str, str]) -> Crl | None:
        """The kept list, if nothing has changed since."""
        kept, now = self._kept.get(key), self._now()
        # A clock that was set back must not make a list last.
        if kept is None or not kept.crl.made_at <= now < kept.crl.refresh_at:
            return None
        if now < kept.crl.made_at + LEAST_AGE:
            return kept.crl
        generation = self._rows.generation
        seen = generation.value
        if not (generation.fresh() and kept.generation == seen):
            if await self._rows.last_change() != kept.changed:
                return None
            kept.generation = seen
        return kept.crl

    async def _make(self, ca: ClientCA) -> tuple[Crl, int]:
        if ca.sealed_key is None:
            raise NotFound("The key of this client CA is not kept here, and so neither is a CRL of it.")
        now = self._now().replace(microsecond=0)
        revoked = await self._rows.revoked(ca, now, limit=MAX_ENTRIES + 1)
        if len(revoked.entries) > MAX_ENTRIES:
            raise Unavailable(
                f"More than {MAX_ENTRIES} certificates of this CA are revoked and have not ended: too many for one CRL."
                " Take the CA out of use instead.",
                retry_after=3600,
            )
        key = load_key_der(await self._custody.unseal(ca.sealed_key, f"client_ca:{ca.id}"))
        number = _number(revoked, now)
        der = await asyncio.to_thread(
            new_crl,
            ca.certificate,
            key,
            revoked.entries,
            number=number,
            this_update=now - BACKDATE,
            next_update=now + LIFETIME,
        )
        return Crl(der, number, made_at=now, refresh_at=now + LIFETIME / 2), revoked.changed


def _number(revoked: Revoked, now: datetime) -> int:
    return revoked.generation << _SECONDS_BITS | int(now.timestamp())
