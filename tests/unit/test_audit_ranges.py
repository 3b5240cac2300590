"""Ranges of places, and the ranges that deletion events name."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.audit.event_parsing import (
    PlaceRange,
    count_places,
    deleted_places,
    merge,
    parse_body,
    ranges_of,
    read_events,
    subtract,
)

ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)).map(lambda pair: (pair[0], sum(pair))))


def places(of: list[PlaceRange]) -> set[int]:
    return {place for first, last in of for place in range(first, last + 1)}


@given(ranges)
def test_merged_ranges_have_the_same_places_in_order_without_overlap(some: list[PlaceRange]) -> None:
    found = merge(some)
    assert places(found) == places(some)
    assert all(last + 1 < following for (_, last), (following, _) in itertools.pairwise(found))
    assert found == ranges_of(places(some))
    assert count_places(found) == len(places(some))


@given(ranges, ranges)
def test_subtracting_ranges_is_the_difference_of_places(
    some: list[PlaceRange], taken: list[PlaceRange]
) -> None:
    found = subtract(merge(some), taken)
    assert places(found) == places(some) - places(taken)
    assert found == sorted(found)


@pytest.mark.parametrize("body", [b'{"detail":' * 100_000, b"[" * 100_000, b'{"body":"\\ud800"}'])
def test_a_body_that_json_cannot_nest_or_encode_is_an_empty_object(body: bytes, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(body + b"\n")
    assert list(read_events(file)) == [{}]


@given(st.binary(max_size=200))
def test_any_body_can_be_parsed(body: bytes) -> None:
    assert isinstance(parse_body(body), dict)
    assert deleted_places(body, 1000) == []


def test_a_deeply_nested_body_is_no_event() -> None:
    assert parse_body(b"[" * 1_000_000) == {}


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        ('{"places":[[0,20],[22,22]]}', [(0, 20), (22, 22)]),
        ('{"places":[[5,4],[-1,3],[1],[1,2,3],["1",2],7,[1,2]]}', [(1, 2)]),
        ('{"places":7}', []),
        ("[]", []),
    ],
)
def test_only_ranges_of_places_are_taken_for_deleted(detail: str, said: list[PlaceRange]) -> None:
    assert deleted_places(b'{"kind":"events.deleted","detail":' + detail.encode() + b"}", 1000) == said
    assert deleted_places(b'{"kind":"other.kind","detail":' + detail.encode() + b"}", 1000) == []
