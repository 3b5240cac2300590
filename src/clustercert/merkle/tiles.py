"""The tree cut into tiles: which tiles it has, what stands in them, what they are called.

A tile of level L holds up to 256 consecutive hashes of nodes of height 8 L; the nodes between are computed from them.
Level `ENTRIES` is ours: the leaves themselves, which are 32 bytes each in this log.

Source: c2sp.org/tlog-tiles.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clustercert.merkle.tree import HASH_BYTES, Node, complete_root, leaf_hash

HEIGHT = 8
WIDTH = 1 << HEIGHT
ENTRIES = -1
MAX_LEVEL = 63
# Nobody's log is larger, and a database's whole numbers end here.
_MAX_SIZE = 1 << 63

_PATH = re.compile(
    r"(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII
)


class PathError(ValueError):
    """No tile is called this."""


@dataclass(frozen=True, slots=True)
class TileId:
    """A tile, whether full or not."""

    level: int
    index: int


@dataclass(frozen=True, slots=True)
class TilePath:
    """A tile of a certain width, as a client asks for it.

    Attributes:
        tile: of level `ENTRIES` for an entry bundle.
        width: how many hashes; `WIDTH` for a full tile.
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
    def parsed(cls, path: str) -> "TilePath":
        """The tile that a path names. Raises PathError; each tile has exactly one name."""
        if not (match := _PATH.fullmatch(path)):
            raise PathError
        level = ENTRIES if match[1] == "entries" else int(match[1])
        index = int(re.sub(r"\D", "", match[2]))
        found = cls(TileId(level, index), int(match[3] or WIDTH))
        if level > MAX_LEVEL or found.width > WIDTH or index >= _MAX_SIZE or str(found) != path:
            raise PathError
        return found


def width_in(tile: TileId, size: int) -> int:
    """How many hashes a tile has in a tree of this size."""
    count = size >> (HEIGHT * max(tile.level, 0))
    return max(0, min(WIDTH, count - tile.index * WIDTH))


def edge(size: int) -> list[TileId]:
    """The tiles that are partial in a tree of this size, which are those that grow next."""
    tiles = []
    level = 0
    while count := size >> (HEIGHT * level):
        if count % WIDTH:
            tiles.append(TileId(level, count // WIDTH))
        level += 1
    return [TileId(ENTRIES, size // WIDTH), *tiles] if size % WIDTH else tiles


def all_tiles(size: int) -> Iterable[TilePath]:
    """Every tile and bundle of a tree of this size, those of each level from the first to the last."""
    for level in range(ENTRIES, MAX_LEVEL + 1):
        count = size >> (HEIGHT * max(level, 0))
        if not count:
            return
        for index in range(-(-count // WIDTH)):
            tile = TileId(level, index)
            yield TilePath(tile, width_in(tile, size))


def grown(size: int, tiles: Mapping[TileId, bytes], leaves: Sequence[bytes]) -> dict[TileId, bytes]:
    """The tiles that change when leaves are put behind the last of `size`, as they are then.

    `tiles` are those of the `edge`, as they are now; `leaves` are the data, 32 bytes each.
    """
    changed = _extended(ENTRIES, size, tiles, leaves)
    level, hashes = 0, [leaf_hash(leaf) for leaf in leaves]
    while hashes:
        count = size >> (HEIGHT * level)
        extended = _extended(level, count, tiles, hashes)
        changed |= extended
        hashes = [complete_root(split(tile)) for tile in extended.values() if len(tile) == WIDTH * HASH_BYTES]
        level += 1
    return changed


def _extended(
    level: int, count: int, tiles: Mapping[TileId, bytes], hashes: Sequence[bytes]
) -> dict[TileId, bytes]:
    """The tiles of one level that more hashes go into, in order; `count` are there already."""
    first, present = divmod(count, WIDTH)
    begun = split(tiles[TileId(level, first)]) if present else []
    values = [*begun, *hashes]
    return {
        TileId(level, first + at // WIDTH): b"".join(values[at : at + WIDTH])
        for at in range(0, len(values), WIDTH)
    }


def split(tile: bytes) -> list[bytes]:
    """The hashes in a tile, or the leaves in a bundle as we keep it."""
    return [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]


def tile_of(node: Node) -> TileId:
    """The tile from which a node is computed."""
    level, within = divmod(node.height, HEIGHT)
    return TileId(level, (node.index << within) // WIDTH)


def node_in(tile: bytes, node: Node) -> bytes:
    """The hash of a node, out of its tile. Raises IndexError where the tile is too narrow for it."""
    within = node.height % HEIGHT
    start = (node.index << within) % WIDTH * HASH_BYTES
    part = split(tile[start : start + (HASH_BYTES << within)])
    if len(part) != 1 << within:
        raise IndexError
    return complete_root(part)


def encoded_bundle(leaves: Iterable[bytes]) -> bytes:
    """An entry bundle as it is served: each leaf behind its length in two bytes, big-endian."""
    return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)


def decoded_bundle(bundle: bytes) -> list[bytes]:
    """The leaves in an entry bundle as it is served. Raises ValueError where it is cut off."""
    leaves = []
    at = 0
    while at < len(bundle):
        length = int.from_bytes(bundle[at : at + 2], "big")
        leaf = bundle[at + 2 : at + 2 + length]
        if len(bundle) < at + 2 or len(leaf) != length:
            raise ValueError("the entry bundle is cut off")
        leaves.append(leaf)
        at += 2 + length
    return leaves
