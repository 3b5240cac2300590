"""Exchanging keys for new ones while the service runs. Killed at any point, everything stays readable."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.custody.keks import KekSource
from clustercert.custody.ring import load_ring, open_ring, wrapped_anew
from clustercert.errors import SealError
from clustercert.model import AuditEvent, Origin
from clustercert.sealing import KeyRing, new_data_key, new_kek
from clustercert.store.generation import Generation
from clustercert.store.keys import SEALED_TABLES, KeyRows, SealedRow

# Few enough that the transaction which stores them keeps nobody waiting.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class KekRotation:
    """What a rotation of key-encryption keys did.

    Attributes:
        kek_id: the key that wraps all data keys now.
        added: whether this rotation made it; if not, it was there and an earlier one is finished now.
        rewrapped: how many data keys were wrapped anew.
    """

    kek_id: str
    added: bool
    rewrapped: int


@dataclass(frozen=True, slots=True)
class DataKeyRotation:
    """What a rotation of data keys did.

    Attributes:
        data_key_id: the one that seals from now on.
        resealed: how many secrets were sealed anew.
        damaged: `table:id` of the secrets which do not open; they stay as they are.
    """

    data_key_id: int
    resealed: int
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotates keys; every method raises CustodyError, Unavailable, or Conflict where another process does the same.

    Attributes:
        settle: seconds until every worker has noticed a new data key.
    """

    rows: KeyRows
    keks: KekSource
    now: Callable[[], datetime]
    settle: float = Generation.STALE_AFTER + Generation.INTERVAL

    async def rotate_kek(self, *, actor: str, origin: Origin) -> KekRotation:
        """Wrap all data keys by a new key-encryption key, which comes to stand in front of the others.

        Where the first one is not in use yet (the operator put it there, or an earlier rotation was killed), it is
        the new one.
        """
        async with self.keks.held():
            keks, wrapped = self.keks.read(), await self.rows.all()
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
            detail = {"kek_id": first.id, "data_key_ids": [old.id for old, _new in exchanges]}
            await self.rows.rewrap(exchanges, self._event("keys.rotated", first.id, detail, actor, origin))
        return KekRotation(first.id, added, len(exchanges))

    async def retire(self, *, actor: str, origin: Origin) -> tuple[str, ...]:
        """Drop the key-encryption keys that wrap nothing in this database; their ids.

        What they wrapped in an older backup can't be read without a copy of them.
        """
        async with self.keks.held():
            keks, wrapped = self.keks.read(), await self.rows.all()
            open_ring(wrapped, keks, self.keks.name)
            # The first one stays: whoever makes the next data key wraps it by that.
            needed = {keks[0].id, *(key.kek_id for key in wrapped)}
            unused = tuple(kek.id for kek in keks if kek.id not in needed)
            if unused:
                event = self._event("keys.retired", keks[0].id, {"kek_ids": list(unused)}, actor, origin)
                async with self.rows.recording(event):
                    self.keks.drop(unused)
        return unused

    async def rotate_data_key(self, *, actor: str, origin: Origin) -> DataKeyRotation:
        """Seal every secret under a new data key. The old ones stay, for whoever reads an older copy of a row."""
        async with self.keks.held():
            keks, wrapped = self.keks.read(), await self.rows.all()
            open_ring(wrapped, keks, self.keks.name)
            new = wrapped_anew(new_data_key(max(key.id for key in wrapped) + 1), keks[0], self.now())
            detail = {"kek_id": new.kek_id, "data_key_id": new.id}
            await self.rows.add_active(new, self._event("keys.rotated", str(new.id), detail, actor, origin))
        first = await self._sweep_until_clean()
        # A worker may have sealed by the old key until it noticed the new one.
        await asyncio.sleep(self.settle)
        second = await self._sweep_until_clean()
        return replace(second, resealed=first.resealed + second.resealed)

    async def _sweep_until_clean(self) -> DataKeyRotation:
        resealed = 0
        while True:
            swept = await self._sweep()
            resealed += swept.resealed
            if swept.resealed == 0:
                return replace(swept, resealed=resealed)

    async def _sweep(self) -> DataKeyRotation:
        """Seal anew, once over all rows, what the active data key has not sealed."""
        ring = await load_ring(self.rows, self.keks)
        resealed, damaged = 0, list[str]()
        for table in SEALED_TABLES:
            after = ""
            while batch := await self.rows.sealed_by_others(table, ring.active_id, after, _BATCH):
                after = batch[-1].id
                exchanges = [(row, _resealed(ring, row)) for row in batch]
                damaged += [row.bound_to for row, sealed in exchanges if sealed is None]
                resealed += await self.rows.reseal(
                    [(row, sealed) for row, sealed in exchanges if sealed is not None]
                )
        return DataKeyRotation(ring.active_id, resealed, tuple(damaged))

    def _event(
        self, kind: str, subject: str, detail: Mapping[str, object], actor: str, origin: Origin
    ) -> AuditEvent:
        return AuditEvent(
            at=self.now(),
            kind=kind,
            project_id=None,
            actor=actor,
            subject=subject,
            origin=origin,
            detail=detail,
        )


def _resealed(ring: KeyRing, row: SealedRow) -> bytes | None:
    """The same secret under the active data key; None where it does not open."""
    try:
        return ring.seal(ring.unseal(row.sealed, row.bound_to), row.bound_to)
    except SealError:
        return None
