"""Checks a log's events against its leaves."""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime

from clustercert.audit.event_parsing import deleted_places, differing_columns
from clustercert.audit.findings import MAX_FINDINGS, FindingKind, VerificationReport
from clustercert.audit.log_source import READ_ERRORS, LogSource, readable_tiles
from clustercert.audit.ranges import PlaceRange, count_places, merge, subtract
from clustercert.audit.tree_check import LogLeaf
from clustercert.merkle.tiles import ENTRIES, WIDTH, split_hashes
from clustercert.merkle.tree import leaf_hash
from clustercert.store.audit import StoredEvent
from clustercert.store.events import commitment

_BUNDLES_PER_READ = 16
_PAUSE_SECONDS = 0.2


class EventCheck:
    """Compares events with leaves in log order, then classifies the mismatches."""

    def __init__(self, source: LogSource, report: VerificationReport) -> None:
        self._source = source
        self._report = report
        self._missing: list[PlaceRange] = []
        self._deleted: list[PlaceRange] = []
        # Events that do not match the leaf at their index. The key is the computed commitment.
        self._mismatched: dict[bytes, StoredEvent] = {}
        # Leaf indexes and times of the events that are newer than all before them, since the last check began.
        self._newest: list[tuple[int, datetime]] = []

    async def check(self, first: int, leaves: Sequence[LogLeaf]) -> None:
        """Compare the events with these leaves, which start at index `first`."""
        del self._newest[:-1]
        last = first + len(leaves)
        expected = first
        for event in await self._read_events(first, last):
            place = event.leaf_index
            if place is None:
                self._report.add(FindingKind.LINE_UNREADABLE, place=first, first=first, last=last - 1)
            elif not expected <= place < last:
                self._report.add(FindingKind.OUT_OF_ORDER, place=place, event_id=event.id)
            else:
                self._add_missing(expected, place - 1)
                expected = place + 1
                self._check_event(event, place, leaves[place - first])
        self._add_missing(expected, last - 1)

    async def _read_events(self, first: int, last: int) -> list[StoredEvent]:
        """Read the events in a range. After an error, halves the range to find the unreadable event."""
        try:
            return await self._source.events(first, last)
        except READ_ERRORS:
            if last - first == 1:
                self._report.add(FindingKind.EVENT_UNREADABLE, place=first)
                return []
        middle = (first + last) // 2
        return [*await self._read_events(first, middle), *await self._read_events(middle, last)]

    def _check_event(self, event: StoredEvent, place: int, leaf: LogLeaf) -> None:
        computed = commitment(event.salt, event.body)
        # If the entry bundle is missing, compare with the leaf hash in the tree.
        if computed != leaf.commitment if leaf.commitment else leaf_hash(computed) != leaf.hash:
            if len(self._mismatched) < MAX_FINDINGS:
                self._mismatched[computed] = event
            else:
                self._report.found += 1
            return
        self._report.events += 1
        self._deleted += deleted_places(event.body, place)
        if columns := differing_columns(event, computed):
            self._report.add(
                FindingKind.COLUMNS_CHANGED, place=place, event_id=event.id, columns=", ".join(columns)
            )
        elif not self._newest or event.at > self._newest[-1][1]:
            self._newest.append((place, event.at))

    def newest_before(self, size: int) -> tuple[int, datetime] | None:
        """Return leaf index and time of the newest of the first `size` events, which the last check must include."""
        at = bisect_left(self._newest, size, key=lambda each: each[0])
        return self._newest[at - 1] if at else None

    def _add_missing(self, first: int, last: int) -> None:
        if first <= last:
            self._missing.append((first, last))

    async def report_missing(self, patience: float) -> None:
        """Count missing events whose deletion is recorded and sealed, and report the others.

        Args:
            patience: wait so many seconds for recorded deletions to be sealed.
        """
        if not self._missing:
            return
        missing = merge(self._missing)
        waited = 0.0
        while True:
            sealed, unsealed = await self._later_deletions()
            unproved = subtract(missing, self._deleted + sealed)
            removed = subtract(unproved, unsealed)
            if unproved == removed or waited >= patience:
                break
            # The service may be deleting events now. It seals such a deletion within a second or two.
            await asyncio.sleep(_PAUSE_SECONDS)
            waited += _PAUSE_SECONDS
        self._report.deleted = count_places(missing) - count_places(unproved)
        for kind, ranges in (
            (FindingKind.EVENTS_REMOVED, removed),
            (FindingKind.DELETION_UNSEALED, subtract(unproved, removed)),
        ):
            for first, last in ranges:
                self._report.add(kind, place=first, first=first, last=last)

    async def _later_deletions(self) -> tuple[list[PlaceRange], list[PlaceRange]]:
        """Read which events were deleted after the log had the checked size: sealed deletions, and unsealed ones."""
        try:
            deletions = await self._source.markers(self._report.size)
        except READ_ERRORS:
            deletions = []
        sealed, unsealed = list[PlaceRange](), list[PlaceRange]()
        for event in deletions:
            places = unsealed if event.leaf_index is None else sealed
            places += deleted_places(event.body, self._report.size)
        return sealed, unsealed

    async def report_mismatched(self) -> None:
        """Report mismatched events as moved if they match another leaf, else as changed."""
        homes = await self._places_of_mismatched() if self._mismatched else {}
        for computed, event in self._mismatched.items():
            place, home = event.leaf_index, homes.get(computed)
            if home is None or home == place:
                self._report.add(FindingKind.EVENT_CHANGED, place=place, event_id=event.id)
            else:
                self._report.add(FindingKind.EVENT_MOVED, place=place, event_id=event.id, home=home)

    async def _places_of_mismatched(self) -> dict[bytes, int]:
        """Find leaves that match a mismatched event. Returns their leaf indexes, with the commitment as key."""
        homes: dict[bytes, int] = {}
        for first in range(0, -(-self._report.size // WIDTH), _BUNDLES_PER_READ):
            bundles = await readable_tiles(self._source, ENTRIES, first, first + _BUNDLES_PER_READ)
            for index, bundle in bundles.items():
                places = enumerate(split_hashes(bundle), index * WIDTH)
                homes |= {leaf: place for place, leaf in places if leaf in self._mismatched}
        return homes
