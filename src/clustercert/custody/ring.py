"""Unwraps data keys with the keys of one or more sources, and wraps data keys with the first key of each source."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from clustercert.custody.sources import KekSource, OpenSource, names, open_sources
from clustercert.model.errors import CustodyError, KeysUnavailable, UnsealError
from clustercert.pki.envelope import DataKey, KeyRing, WrappingKey
from clustercert.store.keys import KeyQueries, WrappedKey, Wrapping

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """Data keys by id, and why the other data keys can't be unwrapped.

    Attributes:
        failures: for each data key that can't be unwrapped: KeysUnavailable if a key management service can't be used
            now, else CustodyError.
    """

    data_keys: Mapping[int, DataKey] = field(repr=False)
    failures: Mapping[int, CustodyError | KeysUnavailable]

    def require_all(self) -> None:
        """Raise the first failure."""
        for failure in self.failures.values():
            raise failure


async def unwrap(wrapped: Iterable[WrappedKey], opened: Sequence[OpenSource]) -> Unwrapped:
    """Unwrap each data key with the first source that can do it."""
    data_keys: dict[int, DataKey] = {}
    failures: dict[int, CustodyError | KeysUnavailable] = {}
    # A key management service that does not answer is asked only once, because each question takes seconds.
    waiting: dict[str, KeysUnavailable] = {}
    for key in wrapped:
        try:
            data_keys[key.id] = await _unwrap(key, opened, waiting)
        except (CustodyError, KeysUnavailable) as failure:
            failures[key.id] = failure
    return Unwrapped(data_keys, failures)


async def _unwrap(
    key: WrappedKey, opened: Sequence[OpenSource], waiting: dict[str, KeysUnavailable]
) -> DataKey:
    wrapped = {wrapping.kek_id: wrapping.wrapped for wrapping in key.wrappings}
    damage: UnsealError | None = None
    usable = [kek for each in opened for kek in each.keks if kek.id in wrapped]
    for kek in usable:
        try:
            if kek.id not in waiting:
                return await kek.unwrap(key.id, wrapped[kek.id])
        except KeysUnavailable as failure:
            waiting[kek.id] = failure
        except UnsealError as error:
            logger.warning("wrapped data key damaged", data_key=key.id, kek=kek.id, reason=error.reason)
            damage = error
    for kek in usable:
        if kek.id in waiting:
            raise waiting[kek.id]
    if damage is not None:
        raise CustodyError(
            f"The database is damaged: {damage.reason}. Restore the table data_key_wrapping from a backup."
        ) from damage
    for each in opened:
        if each.problem is not None:
            raise each.problem
    found = ", ".join(kek.id for each in opened for kek in each.keks)
    raise CustodyError(
        f"The data keys of this database are wrapped by key-encryption key {', '.join(sorted(wrapped))}, but "
        f"{names([each.source for each in opened])} has {found}. Start with the key-encryption keys that belong to "
        "this database."
    )


async def load_ring(queries: KeyQueries, sources: Sequence[KekSource]) -> KeyRing:
    """Read and unwrap all data keys. Raises CustodyError or Unavailable."""
    wrapped, unwrapped = await load(queries, sources)
    unwrapped.require_all()
    return KeyRing(unwrapped.data_keys.values(), active_id(wrapped))


async def load(
    queries: KeyQueries, sources: Sequence[KekSource], known: Mapping[int, DataKey] | None = None
) -> tuple[tuple[WrappedKey, ...], Unwrapped]:
    """Read all data keys, and unwrap those that are not in `known`. Raises CustodyError or Unavailable."""
    for is_last in (False, True):
        # Read the data keys before the KEKs. A new KEK is stored before it wraps a data key, so every KEK that these
        # data keys need is found.
        wrapped = await queries.data_keys()
        missing = [key for key in wrapped if key.id not in (known or {})]
        found = Unwrapped({}, {}) if not missing else await unwrap(missing, await open_sources(sources))
        # A rotation may have replaced a KEK after the data keys were read and before the KEKs were read, so read both
        # again.
        if is_last or not any(isinstance(each, CustodyError) for each in found.failures.values()):
            break
    return wrapped, found


def active_id(wrapped: Iterable[WrappedKey]) -> int:
    """Return the id of the active data key. Raises CustodyError if there is none."""
    for key in wrapped:
        if key.active:
            return key.id
    raise CustodyError("The database has no active data key. Run `clustercert db upgrade`.")


async def wrap_all(data_key: DataKey, keks: Iterable[WrappingKey]) -> tuple[Wrapping, ...]:
    """Wrap a data key with each of these keys. Raises KeysUnavailable or CustodyError."""
    wrappings = [Wrapping(kek.id, await kek.wrap(data_key)) for kek in keks]
    return tuple(sorted(wrappings, key=lambda wrapping: wrapping.kek_id))


async def new_active_key(data_key: DataKey, opened: Sequence[OpenSource], now: datetime) -> WrappedKey:
    """Wrap a data key with the first key of each source, and return it as the active key. The caller must store it.

    Raises KeysUnavailable or CustodyError.
    """
    return WrappedKey(
        data_key.id, active=True, created_at=now, wrappings=await wrap_all(data_key, first_keks(opened))
    )


def first_keks(opened: Iterable[OpenSource]) -> tuple[WrappingKey, ...]:
    """Return the first key of each source. Raises CustodyError if a source can't be read."""
    opened = tuple(opened)
    for each in opened:
        if each.problem is not None:
            raise each.problem
    return tuple(each.keks[0] for each in opened)
