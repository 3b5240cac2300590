"""Ranges of leaf indexes, both ends included."""

from collections.abc import Iterable, Sequence

PlaceRange = tuple[int, int]


def merge(ranges: Iterable[PlaceRange]) -> list[PlaceRange]:
    """Merge ranges into as few as possible, in order."""
    merged: list[PlaceRange] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def ranges_of(places: Iterable[int]) -> list[PlaceRange]:
    """Convert leaf indexes to ranges."""
    return merge((place, place) for place in places)


def subtract(ranges: Sequence[PlaceRange], removed: Iterable[PlaceRange]) -> list[PlaceRange]:
    """Return the parts of `ranges` that are not in `removed`. `ranges` must be in order without overlaps."""
    remaining: list[PlaceRange] = []
    disjoint = merge(removed)
    at = 0
    for first, last in ranges:
        while at < len(disjoint) and disjoint[at][1] < first:
            at += 1
        start, cursor = first, at
        while cursor < len(disjoint) and disjoint[cursor][0] <= last:
            begin, end = disjoint[cursor]
            if begin > start:
                remaining.append((start, begin - 1))
            start = max(start, end + 1)
            cursor += 1
        if start <= last:
            remaining.append((start, last))
    return remaining


def count_places(ranges: Iterable[PlaceRange]) -> int:
    return sum(last - first + 1 for first, last in ranges)
