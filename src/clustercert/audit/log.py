"""Reads the audit log: checkpoints, tiles, events, and inclusion and consistency proofs."""

from collections.abc import Sequence
from dataclasses import dataclass

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
from clustercert.model.errors import InvalidRequest, LogDamaged, NotFound, Unavailable
from clustercert.store.audit import AuditQueries, StoredCheckpoint, StoredEvent, StoredLog
from clustercert.store.event_pages import EventFilter, EventPage, EventPages

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
        """Return the checkpoint for log size `size`, by default the newest one.

        Raises NotFound if there is none for this size, or Unavailable if there is none at all yet.
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
        """The concatenated hashes of a tile, or the leaves of an entry bundle.

        Raises NotFound if the log is too small for it.
        """
        tile = (await self.queries.tiles([path.tile])).get(path.tile, b"")
        if len(tile) < path.width * HASH_BYTES:
            raise NotFound("The log has no such tile. See the checkpoint for the size of the log.")
        return tile[: path.width * HASH_BYTES]

    async def inclusion(self, event: StoredEvent, size: int | None = None) -> InclusionProof:
        """Prove that the log of this size includes an event. The default is the newest checkpoint's size.

        Raises InvalidRequest if the log of this size does not contain the event, or NotFound if its checkpoint is not
        stored.
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
            raise InvalidRequest("from, to: must be two sizes of the log, the smaller one first.")
        if new > (await self.log()).size:
            raise NotFound("to: must not exceed the size of the log (see the newest checkpoint).")
        return await self._hashes(consistency_ranges(old, new))

    async def events(
        self, wanted: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        """Return a page of at most `MAX_PAGE` matching events."""
        return await self.pages.page(
            wanted, cursor=cursor, newest_first=newest_first, limit=max(1, min(limit, MAX_PAGE))
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
