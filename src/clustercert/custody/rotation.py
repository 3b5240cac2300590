"""Rotates keys while the service runs. Secrets stay readable even if a rotation is killed at any point."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.custody.keks import KekSource
from clustercert.custody.ring import active_wrapped_key, load_ring, open_ring
from clustercert.model import Actor
from clustercert.model.errors import UnsealError
from clustercert.model.events.administration import KeysChanged
from clustercert.pki.envelope import KeyRing, new_data_key, new_kek
from clustercert.store.engine.generation import Generation
from clustercert.store.keys import SEALED_TABLES, KeyQueries, SealedRow

# Number of rows that one transaction reads and changes. A small number keeps transactions short.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class KekRotation:
    """The result of a rotation of key-encryption keys.

    Attributes:
        kek_id: the key that now wraps all data keys.
        added: whether this rotation generated the key `kek_id`; if False, that key existed before the rotation.
        rewrapped: the number of data keys that were wrapped again.
    """

    kek_id: str
    added: bool
    rewrapped: int


@dataclass(frozen=True, slots=True)
class DataKeyRotation:
    """The result of a rotation of data keys.

    Attributes:
        data_key_id: the new active data key.
        resealed: the number of secrets that were encrypted again.
        damaged: the secrets that can't be decrypted, as `table:id`; they are unchanged.
    """

    data_key_id: int
    resealed: int
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotates keys.

    Every method raises CustodyError or Unavailable, or Conflict if another rotation runs at the same time.

    Attributes:
        propagation_seconds: time until all workers use a new data key.
    """

    queries: KeyQueries
    keks: KekSource
    now: Callable[[], datetime]
    propagation_seconds: float = Generation.PROPAGATION

    async def rotate_kek(self, *, actor: Actor) -> KekRotation:
        """Wrap all data keys with a new KEK, and insert that KEK before the existing ones.

        If the existing first KEK does not wrap all data keys yet, uses this KEK and creates no new KEK. Such a KEK was
        added by the operator, or by an earlier rotation that was killed.
        """
        async with self.keks.lock():
            keks, wrapped = self.keks.read(), await self.queries.data_keys()
            ring = open_ring(wrapped, keks, self.keks.name)
            first = keks[0]
            added = all(key.kek_id == first.id for key in wrapped)
            if added:
                first = new_kek()
                self.keks.prepend(first)
            exchanges = [
                (old, replace(old, kek_id=first.id, wrapped=data_key.wrap(first)))
                for old, data_key in zip(wrapped, ring.data_keys, strict=True)
                if old.kek_id != first.id
            ]
            ids = tuple(old.id for old, _new in exchanges)
            event = KeysChanged(
                at=self.now(),
                kind="keys.rotated",
                actor=actor,
                subject=first.id,
                kek_id=first.id,
                data_key_ids=ids,
            )
            await self.queries.rewrap(exchanges, event)
        return KekRotation(first.id, added, len(exchanges))

    async def unused(self) -> tuple[str, ...]:
        """Return the ids of the KEKs that this database does not use."""
        keks, wrapped = self.keks.read(), await self.queries.data_keys()
        open_ring(wrapped, keks, self.keks.name)
        # Keep the first KEK, because it will wrap the next data key.
        needed = {keks[0].id, *(key.kek_id for key in wrapped)}
        return tuple(kek.id for kek in keks if kek.id not in needed)

    async def retire(self, *, actor: Actor) -> tuple[str, ...]:
        """Remove the KEKs that this database does not use, and return their ids.

        Older backups may need these KEKs, so the operator must keep a copy of the KEKs.
        """
        async with self.keks.lock():
            if unused := await self.unused():
                active = self.keks.read()[0].id
                event = KeysChanged(
                    at=self.now(), kind="keys.retired", actor=actor, subject=active, kek_ids=unused
                )
                async with self.queries.recording(event):
                    self.keks.remove(unused)
        return unused

    async def rotate_data_key(self, *, actor: Actor) -> DataKeyRotation:
        """Encrypt all secrets again with a new data key.

        Keeps the old data keys, because caches may still contain secrets that old data keys encrypted.
        """
        async with self.keks.lock():
            keks, wrapped = self.keks.read(), await self.queries.data_keys()
            open_ring(wrapped, keks, self.keks.name)
            new = active_wrapped_key(new_data_key(max(key.id for key in wrapped) + 1), keks[0], self.now())
            event = KeysChanged(
                at=new.created_at,
                kind="keys.rotated",
                actor=actor,
                subject=str(new.id),
                kek_id=new.kek_id,
                data_key_id=new.id,
            )
            await self.queries.add_active(new, event)
        first = await self._reseal_all()
        # Until other workers load the new data key, these workers may still seal secrets with the old data key. So
        # wait, and then encrypt such secrets again too.
        await asyncio.sleep(self.propagation_seconds)
        second = await self._reseal_all()
        return replace(second, resealed=first.resealed + second.resealed)

    async def _reseal_all(self) -> DataKeyRotation:
        result = await self._reseal_once()
        total = result.resealed
        while result.resealed:
            result = await self._reseal_once()
            total += result.resealed
        return replace(result, resealed=total)

    async def _reseal_once(self) -> DataKeyRotation:
        """Pass once over all secrets, and encrypt again those that are not sealed with the active data key."""
        ring = await load_ring(self.queries, self.keks)
        resealed, damaged = 0, list[str]()
        for table in SEALED_TABLES:
            after = ""
            while batch := await self.queries.sealed_by_others(table, ring.active_id, after, _BATCH):
                after = batch[-1].id
                exchanges = [(row, _resealed(ring, row)) for row in batch]
                damaged += [row.bound_to for row, sealed in exchanges if sealed is None]
                resealed += await self.queries.reseal(
                    [(row, sealed) for row, sealed in exchanges if sealed is not None]
                )
        return DataKeyRotation(ring.active_id, resealed, tuple(damaged))


def _resealed(ring: KeyRing, row: SealedRow) -> bytes | None:
    """Seal the row's secret with the active data key. Returns None if the secret can't be decrypted."""
    try:
        return ring.seal(ring.unseal(row.sealed, row.bound_to), row.bound_to)
    except UnsealError:
        return None
