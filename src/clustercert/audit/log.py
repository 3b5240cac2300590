"""Reads the log: its head, its tiles, its events, and the proofs that it is what its head says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clustercert.errors import InvalidRequest, LogDamaged, NotFound, Unavailable
from clustercert.merkle import TilePath, VerifierKey
from clustercert.merkle.tiles import node_in, tile_of
from clustercert.merkle.tree import (
    HASH_BYTES,
    Node,
    Range,
    consistency_ranges,
    folded,
    inclusion_ranges,
    subtrees,
)
from clustercert.store.audit import AuditRows, StoredCheckpoint, StoredEvent, StoredLog
from clustercert.store.event_pages import EventFilter, EventPage, EventPages

MAX_PAGE = 1000


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That an event is in the log.

    Attributes:
        hashes: from the leaf's sibling up to the root's child.
        checkpoint: the head that it is proved against.
    """

    event: StoredEvent
    hashes: tuple[bytes, ...]
    checkpoint: StoredCheckpoint


class AuditLog:
    """The audit log, to be read and proved. Who may see which event is decided where they ask."""

    def __init__(self, rows: AuditRows, pages: EventPages) -> None:
        self.rows = rows
        self.pages = pages

    async def log(self) -> StoredLog:
        """The log itself. Raises Unavailable before it is begun."""
        log = await self.rows.log()
        if log is None:
            raise Unavailable("The audit log has not been begun yet. Try again in a moment.")
        return log

    async def verifier_key(self) -> VerifierKey:
        """What checkpoints are verified with. Raises Unavailable before the log is begun."""
        log = await self.log()
        return VerifierKey(log.origin, log.public_key)

    async def checkpoint(self, size: int | None = None) -> StoredCheckpoint:
        """The log's newest head, or its head at a size. Raises NotFound where that one is not kept, Unavailable."""
        checkpoint = await self.rows.checkpoint(size)
        if checkpoint is None and size is None:
            raise Unavailable("The audit log has no checkpoint yet. Try again in a moment.")
        if checkpoint is None:
            raise NotFound(
                "No checkpoint of this size is kept. Ask for the newest one and a consistency proof."
            )
        return checkpoint

    async def tile(self, path: TilePath) -> bytes:
        """A tile's hashes, or the leaves of an entry bundle, one behind the other.

        Raises NotFound where the log isn't large enough.
        """
        tile = (await self.rows.tiles([path.tile])).get(path.tile, b"")
        if len(tile) < path.width * HASH_BYTES:
            raise NotFound("The log has no such tile. Its checkpoint says how large it is.")
        return tile[: path.width * HASH_BYTES]

    async def inclusion(self, event: StoredEvent, size: int | None = None) -> InclusionProof:
        """The proof that an event is in the log of this size, or of its newest one.

        Raises InvalidRequest where that log ends before the event, NotFound where its head is not kept, Unavailable
        for an event that has no place in the log yet.
        """
        if event.leaf_index is None:
            raise Unavailable("The event is not sealed yet. Try again in a second.")
        checkpoint = await self.checkpoint(size)
        if event.leaf_index >= checkpoint.size:
            raise InvalidRequest(f"size: the event is number {event.leaf_index}, so ask for a larger log.")
        ranges = inclusion_ranges(event.leaf_index, checkpoint.size)
        return InclusionProof(event, await self._hashes(ranges), checkpoint)

    async def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """The proof that the log of the larger size begins with the one of the smaller size.

        Raises InvalidRequest for sizes in the wrong order, NotFound where the log isn't that large.
        """
        if not 0 <= old <= new:
            raise InvalidRequest("from, to: ask for two sizes, the smaller one first.")
        if new > (await self.log()).size:
            raise NotFound("to: the log is not that large. Ask for the newest checkpoint.")
        return await self._hashes(consistency_ranges(old, new))

    async def events(
        self, wanted: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        """A page of the events that are looked for, of at most `MAX_PAGE`."""
        return await self.pages.page(
            wanted, cursor=cursor, newest_first=newest_first, limit=max(1, min(limit, MAX_PAGE))
        )

    async def _hashes(self, ranges: Sequence[Range]) -> tuple[bytes, ...]:
        """The hash over each range of leaves, from no more tiles than that takes."""
        parts = [subtrees(start, end) for start, end in ranges]
        nodes = await self._nodes(node for nodes in parts for node in nodes)
        return tuple(folded([nodes[node] for node in part]) for part in parts)

    async def _nodes(self, wanted: Iterable[Node]) -> dict[Node, bytes]:
        nodes = list(wanted)
        tiles = await self.rows.tiles({tile_of(node) for node in nodes})
        try:
            return {node: node_in(tiles[tile_of(node)], node) for node in nodes}
        except (KeyError, IndexError) as error:
            raise LogDamaged("The audit log lacks a tile; see `clustercert audit verify`.") from error
