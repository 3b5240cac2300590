"""Loads and unwraps the data keys of a database."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from clustercert.custody.keks import KekSource
from clustercert.model.errors import CustodyError, UnsealError
from clustercert.pki.envelope import DataKey, Kek, KeyRing
from clustercert.store.keys import KeyQueries, WrappedKey


async def load_ring(queries: KeyQueries, keks: KekSource) -> KeyRing:
    """Read and unwrap all data keys. Raises CustodyError or Unavailable."""
    try:
        return await _load_ring(queries, keks)
    except CustodyError:
        # A rotation may have replaced the KEK after the data keys were read and before the KEKs were read, so read both
        # again.
        return await _load_ring(queries, keks)


async def _load_ring(queries: KeyQueries, keks: KekSource) -> KeyRing:
    # Read the data keys before the KEKs. A new KEK is stored before it wraps a data key, so every KEK that these data
    # keys need is found.
    wrapped = await queries.data_keys()
    return open_ring(wrapped, await asyncio.to_thread(keks.read), keks.name)


def open_ring(wrapped: Sequence[WrappedKey], keks: Sequence[Kek], name: str) -> KeyRing:
    """Unwrap all data keys. `name` is the name of the KEK source in messages. Raises CustodyError."""
    by_id = {kek.id: kek for kek in keks}
    missing = sorted({key.kek_id for key in wrapped} - by_id.keys())
    if missing:
        raise CustodyError(
            f"The data keys of this database are wrapped by key-encryption key {', '.join(missing)}, but {name} "
            f"has {', '.join(by_id)}. Start with the key-encryption keys that belong to this database."
        )
    active_id = next((key.id for key in wrapped if key.active), None)
    if active_id is None:
        raise CustodyError("The database has no active data key. Run `clustercert db upgrade`.")
    try:
        data_keys = [DataKey.unwrap(key.id, key.wrapped, by_id[key.kek_id]) for key in wrapped]
    except UnsealError as error:
        raise CustodyError(
            f"The database is damaged: {error.reason}. Restore the table data_key from a backup."
        ) from error
    return KeyRing(data_keys, active_id)


def active_wrapped_key(data_key: DataKey, kek: Kek, now: datetime) -> WrappedKey:
    """Wrap a data key with a KEK, and return the result as the active key. The caller must store the result."""
    return WrappedKey(data_key.id, kek.id, data_key.wrap(kek), active=True, created_at=now)
