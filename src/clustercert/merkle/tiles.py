"""Computes the tiles of the Merkle tree, and parses and formats the paths of tiles.

A tile at level L has up to 256 consecutive hashes of nodes at height 8 * L. Nodes at other heights are computed
from tiles. In this module, entry bundles are tiles at level `ENTRIES`. An entry bundle contains the leaves themselves,
32 bytes each in this log.

Source: c2sp.org/tlog-tiles.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clustercert.merkle.tree import HASH_BYTES, Node, complete_root, leaf_hash, root_of

HEIGHT = 8
WIDTH = 1 << HEIGHT
ENTRIES = -1
MAX_LEVEL = 63
# The index of a tile must be lower than this number, because the database can't store larger integers.
_MAX_SIZE = 1 << 63

_PATH = re.compile(
    r"(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII
)


class PathError(ValueError):
    """The path is not a valid tile path."""


@dataclass(frozen=True, slots=True)
class TileId:
    """Identifies a full or partial tile by its level and index."""

    level: int
    index: int


@dataclass(frozen=True, slots=True)
class TilePath:
    """A tile, and the width (number of hashes) that a client requests.

    Attributes:
        tile: the tile; if it is an entry bundle, the tile's level is `ENTRIES`.
        width: number of hashes; `WIDTH` for a full tile.
    """

    tile: TileId
    width: int = WIDTH

    def __str__(self) -> str:
        """The path below `tile/`, such as `0/x001/067.p/5` or `entries/000`."""
        level = "entries" if self.tile.level == ENTRIES else str(self.tile.level)
        thousands, last = divmod(self.tile.index, 1000)
        parts = [f"{last:03}"]
        while thousands:
            thousands, part = divmod(thousands, 1000)
            parts.append(f"x{part:03}")
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"{level}/{'/'.join(reversed(parts))}{partial}"

    @classmethod
    def parse(cls, path: str) -> "TilePath":
        """Parse a tile path. Each tile has exactly one valid path. Raises PathError."""
        if not (match := _PATH.fullmatch(path)):
            raise PathError
        level = ENTRIES if match[1] == "entries" else int(match[1])
        index = int(re.sub(r"\D", "", match[2]))
        found = cls(TileId(level, index), int(match[3] or WIDTH))
        if level > MAX_LEVEL or found.width > WIDTH or index >= _MAX_SIZE or str(found) != path:
            raise PathError
        return found


def tile_width(tile: TileId, size: int) -> int:
    """The number of hashes that a tile has in a tree of this size."""
    count = size >> (HEIGHT * max(tile.level, 0))
    return max(0, min(WIDTH, count - tile.index * WIDTH))


def partial_tiles(size: int) -> list[TileId]:
    """The partial tiles at the right edge of a tree of this size."""
    tiles = []
    level = 0
    while count := size >> (HEIGHT * level):
        if count % WIDTH:
            tiles.append(TileId(level, count // WIDTH))
        level += 1
    return [TileId(ENTRIES, size // WIDTH), *tiles] if size % WIDTH else tiles


def all_tiles(size: int) -> Iterable[TilePath]:
    """All tiles and entry bundles in a tree of this size, level by level."""
    for level in range(ENTRIES, MAX_LEVEL + 1):
        count = size >> (HEIGHT * max(level, 0))
        if not count:
            return
        for index in range(-(-count // WIDTH)):
            tile = TileId(level, index)
            yield TilePath(tile, tile_width(tile, size))


def append_leaves(size: int, tiles: Mapping[TileId, bytes], leaves: Sequence[bytes]) -> dict[TileId, bytes]:
    """Append leaves to a tree with `size` leaves. Returns the new content of the tiles that change.

    `tiles` must contain the tree's current tiles that `partial_tiles` lists. `leaves` has 32 bytes of data for each
    leaf.
    """
    bundles = _append(ENTRIES, size, tiles, leaves)
    return bundles | append_hashes(size, tiles, [leaf_hash(leaf) for leaf in leaves])


def append_hashes(size: int, tiles: Mapping[TileId, bytes], hashes: Sequence[bytes]) -> dict[TileId, bytes]:
    """Like `append_leaves`, but takes leaf hashes and omits entry bundles."""
    changed: dict[TileId, bytes] = {}
    level = 0
    while hashes:
        appended = _append(level, size >> (HEIGHT * level), tiles, hashes)
        changed |= appended
        hashes = [
            complete_root(split_hashes(tile)) for tile in appended.values() if len(tile) == WIDTH * HASH_BYTES
        ]
        level += 1
    return changed


def tree_root(size: int, tiles: Mapping[TileId, bytes]) -> bytes:
    """Compute the tree's root hash from the tiles that `partial_tiles` lists.

    Raises KeyError if a tile is missing, or IndexError if a tile has too few hashes.
    """
    return root_of(size, lambda node: node_from_tile(tiles[tile_of(node)], node))


def _append(
    level: int, count: int, tiles: Mapping[TileId, bytes], hashes: Sequence[bytes]
) -> dict[TileId, bytes]:
    """Append hashes to the `count` existing hashes at one level. Returns the tiles that change, left to right."""
    first, present = divmod(count, WIDTH)
    begun = split_hashes(tiles[TileId(level, first)]) if present else []
    values = [*begun, *hashes]
    return {
        TileId(level, first + at // WIDTH): b"".join(values[at : at + WIDTH])
        for at in range(0, len(values), WIDTH)
    }


def split_hashes(tile: bytes) -> list[bytes]:
    """Split a tile into hashes, or a stored entry bundle into leaves."""
    return [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]


def tile_of(node: Node) -> TileId:
    """The tile from which a node is computed."""
    level, within = divmod(node.height, HEIGHT)
    return TileId(level, (node.index << within) // WIDTH)


def node_from_tile(tile: bytes, node: Node) -> bytes:
    """Compute a node's hash from its tile. Raises IndexError if the tile has too few hashes."""
    within = node.height % HEIGHT
    start = (node.index << within) % WIDTH * HASH_BYTES
    part = split_hashes(tile[start : start + (HASH_BYTES << within)])
    if len(part) != 1 << within:
        raise IndexError
    return complete_root(part)


def encode_bundle(leaves: Iterable[bytes]) -> bytes:
    """Encode an entry bundle for clients: each leaf is preceded by its length in two bytes, big-endian."""
    return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)


def decode_bundle(bundle: bytes) -> list[bytes]:
    """Decode the leaves in an entry bundle that `encode_bundle` encoded. Raises ValueError for a truncated bundle."""
    leaves = []
    at = 0
    while at < len(bundle):
        length = int.from_bytes(bundle[at : at + 2], "big")
        leaf = bundle[at + 2 : at + 2 + length]
        if len(bundle) < at + 2 or len(leaf) != length:
            raise ValueError("the entry bundle is truncated")
        leaves.append(leaf)
        at += 2 + length
    return leaves
