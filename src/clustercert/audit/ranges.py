"""Ranges of places, whose ends belong to them."""

from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same places as the fewest ranges, in order."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def ranges_of(places: Iterable[int]) -> list[Range]:
    """Places as ranges."""
    return merged((place, place) for place in places)


def without(ranges: Sequence[Range], taken: Iterable[Range]) -> list[Range]:
    """What is left of ranges, which are in order and apart, when the places of others are taken away."""
    left: list[Range] = []
    apart = merged(taken)
    at = 0
    for first, last in ranges:
        while at < len(apart) and apart[at][1] < first:
            at += 1
        start, cursor = first, at
        while cursor < len(apart) and apart[cursor][0] <= last:
            begin, end = apart[cursor]
            if begin > start:
                left.append((start, begin - 1))
            start = max(start, end + 1)
            cursor += 1
        if start <= last:
            left.append((start, last))
    return left


def count(ranges: Iterable[Range]) -> int:
    """How many places they have."""
    return sum(last - first + 1 for first, last in ranges)
