"""A log's tree grown again from its leaves, tile by tile, to be compared with what is kept of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clustercert.merkle import EMPTY_ROOT, TileId
from clustercert.merkle.tiles import WIDTH
from clustercert.merkle.tree import complete_root, folded, subtrees


@dataclass(frozen=True, slots=True)
class RegrownTile:
    """A tile above the leaves' own, as it ought to be."""

    tile: TileId
    hashes: list[bytes]


class RegrownTree:
    """The tree over the leaves so far; of each level it holds no more than the tile at the right edge."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[list[bytes]] = [[]]
        self._index: list[int] = [0]

    def extend(self, leaves: Sequence[bytes]) -> list[RegrownTile]:
        """Take in the hashes of the next leaves; gives the tiles above them that are full by now."""
        full: list[RegrownTile] = []
        at = 0
        while at < len(leaves):
            room = WIDTH - len(self._edge[0])
            self._edge[0] += leaves[at : at + room]
            at += room
            self._pass_up(full)
        self.size += len(leaves)
        return full

    def _pass_up(self, full: list[RegrownTile]) -> None:
        level = 0
        while len(self._edge[level]) == WIDTH:
            hashes = self._edge[level]
            if level:
                full.append(RegrownTile(TileId(level, self._index[level]), hashes))
            self._edge[level] = []
            self._index[level] += 1
            level += 1
            if level == len(self._edge):
                self._edge.append([])
                self._index.append(0)
            self._edge[level].append(complete_root(hashes))

    def partial(self) -> Iterator[RegrownTile]:
        """The tiles above the leaves' that have begun and are not full."""
        for level, hashes in enumerate(self._edge):
            if level and hashes:
                yield RegrownTile(TileId(level, self._index[level]), hashes)

    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self.size:
            return EMPTY_ROOT
        parts: list[bytes] = []
        for hashes in reversed(self._edge):
            for node in subtrees(0, len(hashes)):
                start = node.index << node.height
                parts.append(complete_root(hashes[start : start + (1 << node.height)]))
        return folded(parts)
