"""Rotates keys while the service runs. Secrets stay readable even if a rotation is killed at any point."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.custody.ring import first_keks, load_ring, new_active_key, unwrap, wrap_all
from clustercert.custody.sources import KekSource, OpenSource, locked, open_sources
from clustercert.model import Actor
from clustercert.model.errors import CustodyError, UnsealError
from clustercert.model.events.administration import KeysChanged
from clustercert.pki.envelope import KeyRing, new_data_key
from clustercert.store.engine.generation import Generation
from clustercert.store.keys import SEALED_TABLES, KeyQueries, SealedRow, WrappedKey

# Number of rows that one transaction reads and changes. A small number keeps transactions short.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class KekRotation:
    """The result of a rotation of key-encryption keys.

    Attributes:
        kek_ids: the keys that now wrap all data keys, one of each source.
        added: those of `kek_ids` that this rotation generated.
        rewrapped: the number of data keys that were wrapped again.
    """

    kek_ids: tuple[str, ...]
    added: tuple[str, ...]
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
    sources: tuple[KekSource, ...]
    now: Callable[[], datetime]
    propagation_seconds: float = Generation.PROPAGATION

    async def rotate_kek(self, *, actor: Actor) -> KekRotation:
        """Wrap all data keys with a new KEK of each source, and insert that KEK before the source's existing ones.

        If the first KEK of a source does not wrap all data keys yet, uses the first KEKs and creates no new KEKs. The
        operator has added such a source or KEK, or an earlier rotation was killed. Keeps what KEKs outside the sources
        have wrapped.
        """
        async with locked(self.sources):
            opened, wrapped = await open_sources(self.sources), await self.queries.data_keys()
            unwrapped = await unwrap(wrapped, opened)
            unwrapped.require_all()
            firsts = first_keks(opened)
            before = {kek.id for each in opened for kek in each.keks}
            if all(kek.id in key.kek_ids for kek in firsts for key in wrapped):
                firsts = tuple([await source.add() for source in self.sources])
            exchanges = []
            for key in wrapped:
                kept = tuple(each for each in key.wrappings if each.kek_id not in before)
                new = await wrap_all(unwrapped.data_keys[key.id], firsts)
                exchanges.append((key, replace(key, wrappings=(*kept, *new))))
            added = tuple(kek.id for kek in firsts if kek.id not in before)
            event = KeysChanged(
                at=self.now(),
                kind="keys.rotated",
                actor=actor,
                subject=firsts[0].id,
                kek_ids=tuple(kek.id for kek in firsts),
                data_key_ids=tuple(key.id for key in wrapped),
            )
            await self.queries.rewrap(exchanges, event)
        return KekRotation(tuple(kek.id for kek in firsts), added, len(exchanges))

    async def unused(self) -> tuple[str, ...]:
        """Return the ids of the KEKs that this database does not use."""
        wrapped = await self.queries.data_keys()
        opened = await open_sources(self.sources)
        # Keep the first KEKs, because they will wrap the next data key.
        needed = {kek.id for kek in first_keks(opened)}
        needed |= {kek_id for key in wrapped for kek_id in key.kek_ids}
        return tuple(kek.id for each in opened for kek in each.keks if kek.id not in needed)

    async def retire(self, kek_ids: Collection[str] = (), *, actor: Actor) -> tuple[str, ...]:
        """Remove KEKs from their sources, and delete what they have wrapped. Returns the ids of these KEKs.

        Older backups may need these KEKs, so the operator must keep a copy of the KEKs.

        Args:
            kek_ids: the KEKs; by default, the KEKs that this database does not use. Raises CustodyError if a data key
                could then not be unwrapped, or if one of these KEKs is the first of its source.
        """
        async with locked(self.sources):
            opened, wrapped = await open_sources(self.sources), await self.queries.data_keys()
            retired = tuple(kek_ids) or await self.unused()
            _refuse_needed(retired, opened, wrapped)
            remaining = [
                replace(key, wrappings=tuple(each for each in key.wrappings if each.kek_id not in retired))
                for key in wrapped
            ]
            for key in remaining:
                if not key.wrappings:
                    raise CustodyError(
                        f"Only {', '.join(retired)} wraps the data key {key.id}. Run `clustercert keys rotate` first."
                    )
            (await unwrap(remaining, opened)).require_all()
            if retired:
                event = KeysChanged(
                    at=self.now(),
                    kind="keys.retired",
                    actor=actor,
                    subject=retired[0],
                    kek_ids=retired,
                )
                async with self.queries.rewrapping(zip(wrapped, remaining, strict=True), event):
                    for each in opened:
                        if own := {kek.id for kek in each.keks}.intersection(retired):
                            await each.source.remove(own)
        return retired

    async def rotate_data_key(self, *, actor: Actor) -> DataKeyRotation:
        """Encrypt all secrets again with a new data key.

        Keeps the old data keys, because caches may still contain secrets that old data keys encrypted.
        """
        async with locked(self.sources):
            opened, wrapped = await open_sources(self.sources), await self.queries.data_keys()
            (await unwrap(wrapped, opened)).require_all()
            data_key = new_data_key(max(key.id for key in wrapped) + 1)
            new = await new_active_key(data_key, opened, self.now())
            event = KeysChanged(
                at=new.created_at,
                kind="keys.rotated",
                actor=actor,
                subject=str(new.id),
                kek_ids=new.kek_ids,
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
        ring = await load_ring(self.queries, self.sources)
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


def _refuse_needed(
    retired: Collection[str], opened: Sequence[OpenSource], wrapped: Sequence[WrappedKey]
) -> None:
    """Raise CustodyError if a KEK to be retired is unknown, or the first KEK of its source."""
    known = {kek.id for each in opened for kek in each.keks} | {
        kek_id for key in wrapped for kek_id in key.kek_ids
    }
    if unknown := sorted(set(retired) - known):
        raise CustodyError(
            f"There is no key-encryption key {', '.join(unknown)}. Run `clustercert keys list`."
        )
    for each in opened:
        if each.keks and each.keks[0].id in retired:
            raise CustodyError(
                f"The key-encryption key {each.keks[0].id} is in use: it wraps new data keys. Remove "
                f"{each.source.name} from the settings first, or put another key before this key."
            )


def _resealed(ring: KeyRing, row: SealedRow) -> bytes | None:
    """Seal the row's secret with the active data key. Returns None if the secret can't be decrypted."""
    try:
        return ring.seal(ring.unseal(row.sealed, row.bound_to), row.bound_to)
    except UnsealError:
        return None
