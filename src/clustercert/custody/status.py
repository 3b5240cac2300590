"""Reports which key-encryption keys there are, what each one wraps, and whether it can be used now."""

from collections.abc import Sequence
from dataclasses import dataclass

from clustercert.custody.sources import KekSource, open_source
from clustercert.model.errors import CustodyError, KeysUnavailable, UnsealError
from clustercert.pki.envelope import DataKey, WrappingKey, new_data_key
from clustercert.store.keys import KeyQueries, WrappedKey


@dataclass(frozen=True, slots=True)
class KekStatus:
    """A key-encryption key.

    Attributes:
        id: empty if the source can't be read.
        source: name of the source; None if no source in the settings has this key.
        wraps_new: whether this key wraps new data keys.
        data_key_ids: the data keys that this key wraps.
        problem: why the key can't be used now; empty if it was used successfully.
    """

    id: str
    source: str | None
    wraps_new: bool
    data_key_ids: tuple[int, ...]
    problem: str


async def kek_statuses(queries: KeyQueries, sources: Sequence[KekSource]) -> tuple[KekStatus, ...]:
    """Use each key-encryption key to unwrap the data keys that it wraps. Raises Unavailable."""
    wrapped = await queries.data_keys()
    unwrapped: dict[int, DataKey] = {}
    statuses = []
    for source in sources:
        opened = await open_source(source)
        if opened.problem is not None:
            statuses.append(KekStatus("", source.name, True, (), opened.problem.message))
        for kek in opened.keks:
            problem = await _problem(kek, wrapped, unwrapped)
            statuses.append(
                KekStatus(kek.id, source.name, kek is opened.keks[0], _wrapped_by(kek.id, wrapped), problem)
            )
    known = {status.id for status in statuses}
    others = sorted({kek_id for key in wrapped for kek_id in key.kek_ids} - known)
    statuses += [
        KekStatus(kek_id, None, False, _wrapped_by(kek_id, wrapped), "no source in the settings has this key")
        for kek_id in others
    ]
    return tuple(statuses)


async def _problem(kek: WrappingKey, wrapped: Sequence[WrappedKey], unwrapped: dict[int, DataKey]) -> str:
    """Return why a key can't be used, or an empty text. Adds the data keys that the key unwraps to `unwrapped`."""
    try:
        # A key that wraps nothing yet must be able to wrap.
        await kek.wrap(new_data_key(0))
        for key in wrapped:
            for wrapping in key.wrappings:
                if wrapping.kek_id == kek.id:
                    data_key = await kek.unwrap(key.id, wrapping.wrapped)
                    if unwrapped.setdefault(key.id, data_key) != data_key:
                        return f"data key {key.id} differs from what another key-encryption key has wrapped"
    except (KeysUnavailable, UnsealError) as failure:
        return failure.reason
    except CustodyError as failure:
        return failure.message
    return ""


def _wrapped_by(kek_id: str, wrapped: Sequence[WrappedKey]) -> tuple[int, ...]:
    return tuple(key.id for key in wrapped if kek_id in key.kek_ids)
