"""The data keys of a database, read and unwrapped: all of them, or a sentence that says why not."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from clustercert.custody.keks import KekSource
from clustercert.errors import CustodyError, SealError
from clustercert.sealing import DataKey, Kek, KeyRing
from clustercert.store.keys import KeyRows, WrappedKey


async def load_ring(rows: KeyRows, keks: KekSource) -> KeyRing:
    """All data keys of the database, unwrapped. Raises CustodyError, Unavailable."""
    try:
        return await _load_ring(rows, keks)
    except CustodyError:
        # Between the two readings, a rotation may have wrapped the data keys anew and dropped what wrapped them.
        return await _load_ring(rows, keks)


async def _load_ring(rows: KeyRows, keks: KekSource) -> KeyRing:
    # In this order: a new key-encryption key is in its place before anything is wrapped by it.
    wrapped = await rows.all()
    return open_ring(wrapped, await asyncio.to_thread(keks.read), keks.name)


def open_ring(wrapped: Sequence[WrappedKey], keks: Sequence[Kek], name: str) -> KeyRing:
    """The data keys, unwrapped, all of them or none. Raises CustodyError, which calls where the keys are by `name`."""
    by_id = {kek.id: kek for kek in keks}
    missing = sorted({key.kek_id for key in wrapped} - by_id.keys())
    if missing:
        raise CustodyError(
            f"The data keys of this database are wrapped by key-encryption key {', '.join(missing)}, and {name} "
            f"holds {', '.join(by_id)}. Start with the key-encryption keys that belong to this database."
        )
    active_id = next((key.id for key in wrapped if key.active), None)
    if active_id is None:
        raise CustodyError("The database has no data key to seal with. Run `clustercert db upgrade`.")
    try:
        data_keys = [DataKey.unwrap(key.id, key.wrapped, by_id[key.kek_id]) for key in wrapped]
    except SealError as error:
        raise CustodyError(
            f"The database is damaged: {error.reason}, though {name} holds the key that wraps it. "
            "Restore the table data_key from a backup."
        ) from error
    return KeyRing(data_keys, active_id)


def wrapped_anew(data_key: DataKey, kek: Kek, now: datetime) -> WrappedKey:
    """A new data key as the store keeps it, active."""
    return WrappedKey(data_key.id, kek.id, data_key.wrap(kek), active=True, created_at=now)
