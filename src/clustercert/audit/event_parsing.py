"""Parses audit events and event files, and computes ranges of leaf indexes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from clustercert.model import JsonObject
from clustercert.store.audit.evidence import DELETED
from clustercert.store.audit.log import StoredEvent

PlaceRange = tuple[int, int]


def merge(ranges: Iterable[PlaceRange]) -> list[PlaceRange]:
    """Merge overlapping and adjacent ranges. Returns the merged ranges in ascending order."""
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
    """Return the parts of `ranges` that are not in `removed`. `ranges` must be sorted and must not overlap."""
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


def parse_body(body: bytes) -> JsonObject:
    """Parse a body as a JSON object. Returns an empty object if the body is not a JSON object."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_time(value: object) -> datetime | None:
    """Parse an ISO 8601 time with an offset. Returns None for any other value."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def deleted_places(body: bytes, below: int) -> list[PlaceRange]:
    """Return the ranges of leaf indexes that a deletion event lists; an empty list for other events.

    Ignores ranges that end at or after `below`, because an event can't delete itself or later events. `below` is the
    event's own leaf index, or a lower bound for this index.
    """
    fields = parse_body(body)
    detail = fields.get("detail")
    if fields.get("kind") != DELETED or not isinstance(detail, dict):
        return []
    places = detail.get("places")
    pairs = places if isinstance(places, list) else []
    return [(pair[0], pair[1]) for pair in pairs if _is_range(pair) and pair[1] < below]


def differing_columns(event: StoredEvent, commitment: bytes) -> list[str]:
    """Return the columns of an event's row that differ from the event's body or from the computed commitment."""
    fields = parse_body(event.body)
    columns = {
        "kind": event.kind,
        "project_id": event.project_id,
        "actor": event.actor,
        "subject": event.subject,
    }
    differing = [name for name, value in columns.items() if fields.get(name) != value]
    if event.place_project_id != fields.get("project_id"):
        differing.append("project_id of its leaf index")
    if parse_time(fields.get("at")) != event.at:
        differing.append("at")
    if event.commitment != commitment:
        differing.append("commitment")
    return differing


def _is_range(pair: object) -> bool:
    match pair:
        case [int(first), int(last)]:
            return 0 <= first <= last
    return False


def read_events(path: Path) -> Iterator[JsonObject]:
    """Yield the events in a file, or in all event files of an exported log. Raises OSError.

    Yields an empty object for a line that is not an event. Does not verify the log; see `verification`.
    """
    files = sorted((path / "events").glob("*.jsonl")) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as lines:
            yield from map(_parse_line, lines)


def _parse_line(line: bytes) -> JsonObject:
    fields = parse_body(line)
    body = fields.get("body")
    return parse_body(body.encode(errors="surrogatepass")) if isinstance(body, str) else fields
