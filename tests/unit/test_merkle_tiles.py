"""Tiles: what the specification says of them, and growth in any steps, which comes to the same tiles."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.merkle.tiles import (
    ENTRIES,
    WIDTH,
    PathError,
    TileId,
    TilePath,
    all_tiles,
    append_leaves,
    decode_bundle,
    encode_bundle,
    node_from_tile,
    partial_tiles,
    split_hashes,
    tile_of,
    tile_width,
)
from clustercert.merkle.tree import Node, complete_root, leaf_hash, root_of
from support.merkle_frontier import Frontier


def commitment(index: int) -> bytes:
    return hashlib.sha256(b"leaf %d" % index).digest()


def in_steps(steps: list[int]) -> tuple[int, dict[TileId, bytes]]:
    """A log that grew so, and all its tiles."""
    size, tiles = 0, dict[TileId, bytes]()
    for step in steps:
        present = {tile: tiles[tile] for tile in partial_tiles(size)}
        changed = append_leaves(size, present, [commitment(size + more) for more in range(step)])
        assert not set(changed) & (set(tiles) - set(present)), "a full tile never changes"
        tiles |= changed
        size += step
    return size, tiles


# Source: c2sp.org/tlog-tiles, and the paths of its reference implementation.
@pytest.mark.parametrize(
    ("path", "level", "index", "width"),
    [
        ("0/000", 0, 0, 256),
        ("0/x001/x234/067", 0, 1234067, 256),
        ("1/x001/000.p/112", 1, 1000, 112),
        ("entries/x001/x234/067.p/8", ENTRIES, 1234067, 8),
        ("63/999", 63, 999, 256),
    ],
)
def test_a_tile_has_one_path(path: str, level: int, index: int, width: int) -> None:
    tile = TilePath(TileId(level, index), width)
    assert str(tile) == path
    assert TilePath.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0",
        "0/",
        "0/0",
        "0/0000",
        "00/000",
        "64/000",
        "-1/000",
        "0/x000/001",
        "0/001/002",
        "0/x001",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/007",
        "0/000.p/257",
        "0/000.p/",
        "0/000/",
        "0/\N{ARABIC-INDIC DIGIT ZERO}00",
        "entries/x1/000",
        "entry/000",
        "0/000\n",
        "0/" + "x999/" * 6 + "999",
        "0/" + "x999/" * 2000 + "999",
    ],
)
def test_invalid_paths_are_refused(path: str) -> None:
    with pytest.raises(PathError):
        TilePath.parse(path)


@given(level=st.integers(-1, 63), index=st.integers(0, (1 << 63) - 1), width=st.integers(1, 256))
def test_every_path_names_its_tile(level: int, index: int, width: int) -> None:
    tile = TilePath(TileId(level, index), width)
    assert TilePath.parse(str(tile)) == tile


def test_the_specifications_example_of_70000_leaves() -> None:
    paths = list(all_tiles(70_000))
    by_level = {
        level: [path.width for path in paths if path.tile.level == level] for level in (ENTRIES, 0, 1, 2, 3)
    }
    assert by_level[0] == by_level[ENTRIES] == [256] * 273 + [112]
    assert by_level[1] == [256, 17]
    assert by_level[2] == [1]
    assert by_level[3] == []
    assert partial_tiles(70_000) == [TileId(ENTRIES, 273), TileId(0, 273), TileId(1, 1), TileId(2, 0)]


def test_256_leaves_are_a_full_tile_and_one_hash_above_it() -> None:
    size, tiles = in_steps([256])
    assert {tile: len(hashes) for tile, hashes in tiles.items()} == {
        TileId(ENTRIES, 0): 8192,
        TileId(0, 0): 8192,
        TileId(1, 0): 32,
    }
    assert partial_tiles(size) == [TileId(1, 0)]
    assert tiles[TileId(1, 0)] == complete_root(split_hashes(tiles[TileId(0, 0)]))


@given(steps=st.lists(st.integers(0, 700), min_size=1, max_size=5))
def test_growth_in_any_steps_comes_to_the_same_tree(steps: list[int]) -> None:
    size, tiles = in_steps(steps)
    assert tiles == in_steps([size])[1]
    assert {tile: len(hashes) // 32 for tile, hashes in tiles.items()} == {
        path.tile: path.width for path in all_tiles(size)
    }
    leaves = [commitment(index) for index in range(size)]
    bundles = [
        hashes for tile, hashes in sorted(tiles.items(), key=lambda item: item[0].index) if tile.level < 0
    ]
    assert split_hashes(b"".join(bundles)) == leaves
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf_hash(leaf))
    needed = {tile: tiles[tile] for tile in partial_tiles(size)}
    assert root_of(size, lambda node: node_from_tile(needed[tile_of(node)], node)) == frontier.root()


def test_a_tree_of_three_levels_has_the_right_root() -> None:
    size, tiles = in_steps([65_536, 300])
    assert set(partial_tiles(size)) < set(tiles)
    frontier = Frontier()
    for index in range(size):
        frontier.append(leaf_hash(commitment(index)))
    assert root_of(size, lambda node: node_from_tile(tiles[tile_of(node)], node)) == frontier.root()


def test_every_node_is_computed_from_its_tile() -> None:
    size, tiles = in_steps([1000])
    for height in range(10):
        for index in range(size >> height):
            node = Node(height, index)
            hashes = [leaf_hash(commitment(at)) for at in range(index << height, (index + 1) << height)]
            assert node_from_tile(tiles[tile_of(node)], node) == complete_root(hashes)


def test_a_node_is_not_in_a_tile_that_is_too_narrow() -> None:
    with pytest.raises(IndexError):
        node_from_tile(bytes(32 * 3), Node(2, 0))
    with pytest.raises(IndexError):
        node_from_tile(b"", Node(0, 0))


@given(size=st.integers(0, 1 << 50))
def test_partial_tiles_are_at_the_right_edge(size: int) -> None:
    for tile in partial_tiles(size):
        assert 0 < tile_width(tile, size) < WIDTH
    assert len({tile.level for tile in partial_tiles(size)}) == len(partial_tiles(size))


@given(leaves=st.lists(st.binary(max_size=300), max_size=5))
def test_an_entry_bundle_round_trips_and_a_truncated_one_is_refused(leaves: list[bytes]) -> None:
    bundle = encode_bundle(leaves)
    assert decode_bundle(bundle) == leaves
    ends = {0, *itertools.accumulate(len(leaf) + 2 for leaf in leaves)}
    for length in set(range(len(bundle))) - ends:
        with pytest.raises(ValueError, match="truncated"):
            decode_bundle(bundle[:length])
