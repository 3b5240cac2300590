"""The tree grown again from its leaves, and the ranges of places: held against the plainest way to say the same."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.audit.addresses import parsed_address
from clustercert.audit.evidence import deleted_places, parsed
from clustercert.audit.ranges import count, merged, ranges_of, without
from clustercert.audit.regrown import RegrownTree
from clustercert.merkle import EMPTY_ROOT, TileId

Range = tuple[int, int]


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:split]) + mth(leaves[split:])).digest()


def hashes(count: int) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in range(count)]


@given(st.lists(st.integers(0, 300), max_size=6))
def test_the_root_is_that_of_the_leaves_however_they_come(portions: list[int]) -> None:
    leaves, tree = hashes(sum(portions)), RegrownTree()
    for portion in portions:
        tree.extend(leaves[tree.size : tree.size + portion])
        assert tree.root() == mth(leaves[: tree.size])


def test_the_tiles_above_are_those_of_the_layout() -> None:
    leaves, tree = hashes(256 * 257 + 3), RegrownTree()
    [full] = tree.extend(leaves)
    assert full.tile == TileId(1, 0)
    assert full.hashes == [mth(leaves[at : at + 256]) for at in range(0, 65536, 256)]
    assert [(each.tile, each.hashes) for each in tree.partial()] == [
        (TileId(1, 1), [mth(leaves[65536:65792])]),
        (TileId(2, 0), [mth(leaves[:65536])]),
    ]
    assert tree.root() == mth(leaves)


ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)).map(lambda pair: (pair[0], sum(pair))))


def places(of: list[Range]) -> set[int]:
    return {place for first, last in of for place in range(first, last + 1)}


@given(ranges)
def test_merged_ranges_are_the_same_places_apart_and_in_order(some: list[Range]) -> None:
    found = merged(some)
    assert places(found) == places(some)
    assert all(last + 1 < following for (_, last), (following, _) in itertools.pairwise(found))
    assert found == ranges_of(places(some))
    assert count(found) == len(places(some))


@given(ranges, ranges)
def test_what_is_left_without_others_is_the_difference(some: list[Range], taken: list[Range]) -> None:
    found = without(merged(some), taken)
    assert places(found) == places(some) - places(taken)
    assert found == sorted(found)


@given(st.binary(max_size=200))
def test_a_body_of_any_bytes_says_nothing_or_what_it_says(body: bytes) -> None:
    assert isinstance(parsed(body), dict)
    assert deleted_places(body, 1000) == []


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        ('{"places":[[0,20],[22,22]]}', [(0, 20), (22, 22)]),
        ('{"places":[[5,4],[-1,3],[1],[1,2,3],["1",2],7,[1,2]]}', [(1, 2)]),
        ('{"places":7}', []),
        ("[]", []),
    ],
)
def test_only_ranges_of_places_are_taken_for_deleted(detail: str, said: list[Range]) -> None:
    assert deleted_places(b'{"kind":"events.deleted","detail":' + detail.encode() + b"}", 1000) == said
    assert deleted_places(b'{"kind":"other.kind","detail":' + detail.encode() + b"}", 1000) == []


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("file:/var/lib/kept", "file", "file:/var/lib/kept"),
        ("https://user:secret@keeper.example/log?token=x", "url", "https://keeper.example/log"),
        ("http://127.0.0.1:9/x", "url", "http://127.0.0.1:9/x"),
        ("http://[::1]/", "url", "http://[::1]/"),
        ("http://localhost/", "url", "http://localhost/"),
        ("syslog:/dev/log", "socket", "syslog:/dev/log"),
        ("syslog://log.example", "udp", "syslog://log.example:514"),
        ("syslog://log.example:5140", "udp", "syslog://log.example:5140"),
    ],
)
def test_addresses_are_what_they_say_and_show_no_secret(text: str, kind: str, shown: str) -> None:
    address = parsed_address(text)
    assert (address.kind, str(address)) == (kind, shown)
    assert "secret" not in repr(address)


@pytest.mark.parametrize(
    "text",
    ["", "kept", "/var/kept", "file:kept", "file:/", "file://host/kept", "http://keeper.example/", "ftp://x/y",
     "syslog://", "syslog://h:x", "syslog://h/path", "https:///x", "https://[::1", 7, None],
)  # fmt: skip
def test_any_other_address_is_refused_with_what_there_is(text: object) -> None:
    with pytest.raises(ValueError, match="write it like file:/path"):
        parsed_address(text)
