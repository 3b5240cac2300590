"""Reads the audit log: its key, checkpoints, tiles, events and proofs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clustercert.merkle.notes import VerifierKey
from clustercert.merkle.tiles import TilePath, node_from_tile, tile_of
from clustercert.merkle.tree import (
    HASH_BYTES,
    LeafRange,
    consistency_ranges,
    fold,
    inclusion_ranges,
    subtrees,
)
from clustercert.model.errors import InvalidRequest, LogDamaged, NotFound, Unavailable, UnsealError
from clustercert.pki.envelope import SecretSealer
from clustercert.store.audit.evidence import LogHead, UnsealedEvent
from clustercert.store.audit.log import (
    LOG,
    AuditQueries,
    EventFilter,
    EventPage,
    EventPages,
    StoredCheckpoint,
    StoredEvent,
    StoredLog,
)

# The encryption context of the log's private key.
KEY_CONTEXT = f"audit_log:{LOG}"


async def unseal_private_key(sealed_key: bytes, custody: SecretSealer) -> Ed25519PrivateKey:
    """Decrypt the log's private key. Raises UnsealError or Unavailable."""
    raw = await custody.unseal(sealed_key, KEY_CONTEXT)
    try:
        return Ed25519PrivateKey.from_private_bytes(raw)
    except ValueError as error:
        raise UnsealError("the audit log's private key is not an Ed25519 key") from error


MAX_PAGE = 1000


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Proof that the log with this checkpoint includes an event.

    Attributes:
        hashes: the siblings' hashes, from the leaf's level up to just below the root.
    """

    event: StoredEvent
    hashes: tuple[bytes, ...]
    checkpoint: StoredCheckpoint


@dataclass(frozen=True, slots=True)
class AuditLog:
    """Reads the audit log and creates proofs. Does not check who may read an event; see `event_access`."""

    queries: AuditQueries
    pages: EventPages

    async def log(self) -> StoredLog:
        """Return the log's stored state. Raises Unavailable if no log exists yet."""
        log = await self.queries.log()
        if log is None:
            raise Unavailable("The audit log does not exist yet. Try again in a moment.")
        return log

    async def verifier_key(self) -> VerifierKey:
        """Return the key that verifies checkpoints. Raises Unavailable if no log exists yet."""
        log = await self.log()
        return VerifierKey(log.origin, log.public_key)

    async def checkpoint(self, size: int | None = None) -> StoredCheckpoint:
        """Return the checkpoint for log size `size`, by default the newest checkpoint.

        Raises NotFound if no checkpoint of this size is stored, or Unavailable if the log has no checkpoint yet.
        """
        checkpoint = await self.queries.checkpoint(size)
        if checkpoint is None and size is None:
            raise Unavailable("The audit log has no checkpoint yet. Try again in a moment.")
        if checkpoint is None:
            raise NotFound(
                "No checkpoint of this size is stored. Request the newest checkpoint and a consistency proof."
            )
        return checkpoint

    async def tile(self, path: TilePath) -> bytes:
        """Return the concatenated hashes of a tile, or the leaves of an entry bundle.

        Raises NotFound if the log has too few leaves for this tile.
        """
        tile = (await self.queries.tiles([path.tile])).get(path.tile, b"")
        if len(tile) < path.width * HASH_BYTES:
            raise NotFound("The log has no such tile. See the checkpoint for the size of the log.")
        return tile[: path.width * HASH_BYTES]

    async def inclusion(self, event: StoredEvent, size: int | None = None) -> InclusionProof:
        """Prove that the log of size `size` includes an event. By default, uses the size in the newest checkpoint.

        Raises InvalidRequest if the event is not among the first `size` events of the log, or NotFound if no checkpoint
        of size `size` is stored.
        """
        checkpoint = await self.checkpoint(size)
        if event.leaf_index is None or event.leaf_index >= checkpoint.size:
            raise InvalidRequest(f"size: must be larger than the event's leaf index, {event.leaf_index}.")
        ranges = inclusion_ranges(event.leaf_index, checkpoint.size)
        return InclusionProof(event, await self._hashes(ranges), checkpoint)

    async def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """Prove that the log of size `new` begins with the log of size `old`.

        Raises InvalidRequest if the sizes are in the wrong order, or NotFound if the log is smaller than `new`.
        """
        if not 0 <= old <= new:
            raise InvalidRequest("from, to: must be two sizes of the log, the smaller size first.")
        if new > (await self.log()).size:
            raise NotFound("to: must not exceed the size of the log (see the newest checkpoint).")
        return await self._hashes(consistency_ranges(old, new))

    async def events(
        self, filters: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        """Return a page of at most `MAX_PAGE` matching events."""
        return await self.pages.page(
            filters, cursor=cursor, newest_first=newest_first, limit=max(1, min(limit, MAX_PAGE))
        )

    async def _hashes(self, ranges: Sequence[LeafRange]) -> tuple[bytes, ...]:
        """Compute the hash over each range of leaves. Reads only the necessary tiles."""
        parts = [subtrees(start, end) for start, end in ranges]
        tiles = await self.queries.tiles({tile_of(node) for part in parts for node in part})
        try:
            return tuple(
                fold([node_from_tile(tiles[tile_of(node)], node) for node in part]) for part in parts
            )
        except (KeyError, IndexError) as error:
            raise LogDamaged("A tile of the audit log is missing. Run `clustercert audit verify`.") from error


# Reading a row raises these errors if a value has a wrong type. SQLite accepts any type in any column.
READ_ERRORS = (ValueError, TypeError, AttributeError)


class LogSource(Protocol):
    """A log that is read in chunks. Ranges include `first` and exclude `last`."""

    async def head(self) -> LogHead: ...

    async def tiles(self, level: int, first: int, last: int) -> Mapping[int, bytes]:
        """Return the stored tiles of a level, by index. Some tiles may be partial."""

    async def events(self, first: int, last: int) -> list[StoredEvent]:
        """Return the events at these leaf indexes, in the order in which they are stored."""

    async def checkpoints(self, first: int, last: int) -> list[StoredCheckpoint]:
        """Return the stored checkpoints for these log sizes."""

    async def deletion_events(self, first: int) -> list[StoredEvent]:
        """Return the deletion events with leaf indexes from `first` on, and all deletion events that are not sealed."""

    async def unsealed(self, after: int | None) -> list[UnsealedEvent]:
        """Return the next batch of unsealed events, sorted by row id. Returns an empty list at the end.

        `after` is the last row id of the previous batch; None for the first batch.
        """

    async def events_outside_log(self) -> list[int]:
        """Return the row ids of events that have no leaf index and do not wait to be sealed.

        The list may be incomplete.
        """


async def readable_tiles(source: LogSource, level: int, first: int, last: int) -> Mapping[int, bytes]:
    """Like `LogSource.tiles`, but returns no tiles if one of the tiles can't be read."""
    try:
        return await source.tiles(level, first, last)
    except READ_ERRORS:
        return {}
