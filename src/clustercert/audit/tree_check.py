"""Checks a log's stored tree against its leaves, and the leaves against checkpoints."""

from collections.abc import Sequence
from typing import NamedTuple

from clustercert.audit.findings import FindingKind, VerificationReport
from clustercert.audit.log_source import LogSource, readable_tiles
from clustercert.merkle.tiles import (
    ENTRIES,
    WIDTH,
    TileId,
    append_hashes,
    partial_tiles,
    split_hashes,
    tree_root,
)
from clustercert.merkle.tree import HASH_BYTES, leaf_hash


class TrustedHead(NamedTuple):
    """A trusted log size and root hash, from a signed checkpoint or from a copy outside the log.

    Attributes:
        name: the head's name in findings.
        root: 32 bytes.
    """

    name: str
    size: int
    root: bytes


class LogLeaf(NamedTuple):
    """A leaf as stored in the tree.

    Attributes:
        commitment: from the entry bundle; empty if that is missing.
        hash: the leaf hash; zeros if both bundle and tile are missing.
    """

    commitment: bytes
    hash: bytes


class TreeCheck:
    """Rebuilds the tree from the leaves in order, and compares it with the stored tree."""

    def __init__(self, source: LogSource, report: VerificationReport) -> None:
        self._source = source
        self._report = report
        self._size = 0
        # The tiles at the right edge of the tree so far.
        self._partial: dict[TileId, bytes] = {}

    async def read_leaves(self, first: int, last: int) -> list[LogLeaf]:
        """Read the leaves from `first`, which must be a tile's first leaf, up to but excluding `last`.

        Missing leaves are reported and returned as zeros.
        """
        bounds = first // WIDTH, -(-last // WIDTH)
        bundles = await readable_tiles(self._source, ENTRIES, *bounds)
        tiles = await readable_tiles(self._source, 0, *bounds)
        leaves: list[LogLeaf] = []
        for index in range(*bounds):
            width = min(WIDTH, last - index * WIDTH)
            commitments = self._whole_tile(ENTRIES, index, width, bundles.get(index, b""))
            stored = self._whole_tile(0, index, width, tiles.get(index, b""))
            computed = [leaf_hash(commitment) for commitment in commitments]
            if commitments and stored and computed != stored:
                for place, pair in enumerate(zip(computed, stored, strict=True), index * WIDTH):
                    if pair[0] != pair[1]:
                        self._report.add(FindingKind.LEAF_MISMATCH, place=place)
            hashes = computed or stored or [bytes(HASH_BYTES)] * width
            leaves += map(LogLeaf, commitments or [b""] * width, hashes)
        return leaves

    def _whole_tile(self, level: int, index: int, width: int, content: bytes) -> list[bytes]:
        """Return the hashes or commitments in a tile. If the tile has a different width, report it and return none."""
        hashes = split_hashes(content[: width * HASH_BYTES])
        if len(hashes) == width and len(hashes[-1]) == HASH_BYTES:
            return hashes
        place = index * WIDTH + max(len(hashes) - 1, 0)
        self._report.add(FindingKind.TILE_MISSING, place=place, level=level, index=index)
        return []

    async def extend(self, leaves: Sequence[LogLeaf], heads: Sequence[TrustedHead]) -> None:
        """Add the next leaves to the tree. Compare each completed tile, and the root at each head's size."""
        start = self._size
        hashes = [leaf.hash for leaf in leaves]
        for size in sorted({*(head.size for head in heads), start + len(hashes)}):
            changed = append_hashes(self._size, self._partial, hashes[self._size - start : size - start])
            tiles = self._partial | changed
            self._size = size
            self._partial = {tile: tiles[tile] for tile in partial_tiles(size) if tile.level != ENTRIES}
            for tile, content in changed.items():
                if tile not in self._partial:
                    await self._compare_tile(tile, content)
            self.compare_root(heads)

    def compare_root(self, heads: Sequence[TrustedHead]) -> None:
        """Compare the current root with the trusted heads of the current size."""
        due = [head for head in heads if head.size == self._size]
        computed = tree_root(self._size, self._partial) if due else b""
        for head in due:
            if head.root != computed:
                self._report.add(
                    FindingKind.ROOT_MISMATCH,
                    size=head.size,
                    head=head.name,
                    root=head.root.hex(),
                    computed=computed.hex(),
                )

    async def compare_partial_tiles(self) -> None:
        """Compare the partial tiles at the tree's right edge. Call this after the last leaf."""
        for tile, content in self._partial.items():
            await self._compare_tile(tile, content)

    async def _compare_tile(self, tile: TileId, content: bytes) -> None:
        """Compare a computed tile with the stored tile. Skips level 0, which `read_leaves` has compared."""
        if tile.level == 0:
            return
        tiles = await readable_tiles(self._source, tile.level, tile.index, tile.index + 1)
        computed, stored = split_hashes(content), split_hashes(tiles.get(tile.index, b"")[: len(content)])
        if len(stored) != len(computed):
            self._report.add(FindingKind.TILE_MISSING, level=tile.level, index=tile.index)
            return
        leaves = WIDTH**tile.level
        for at, pair in enumerate(zip(computed, stored, strict=True), tile.index * WIDTH):
            if pair[0] != pair[1]:
                first, last = at * leaves, (at + 1) * leaves - 1
                self._report.add(
                    FindingKind.NODE_MISMATCH, place=first, level=tile.level, index=at, first=first, last=last
                )
