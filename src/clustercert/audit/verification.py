"""Verification of the audit log: its tree, its events, and events that wait to be sealed."""

import asyncio
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from clustercert.audit.event_parsing import (
    PlaceRange,
    count_places,
    deleted_places,
    differing_columns,
    merge,
    subtract,
)
from clustercert.audit.findings import MAX_FINDINGS, FindingKind, VerificationReport
from clustercert.audit.log import READ_ERRORS, LogSource, readable_tiles
from clustercert.merkle.notes import Checkpoint, NoteError, VerifierKey, verify_checkpoint
from clustercert.merkle.tiles import (
    ENTRIES,
    WIDTH,
    TileId,
    append_hashes,
    partial_tiles,
    split_hashes,
    tree_root,
)
from clustercert.merkle.tree import HASH_BYTES, leaf_hash
from clustercert.model import utc_now
from clustercert.store.audit.events import commitment
from clustercert.store.audit.evidence import LogHead, UnsealedEvent
from clustercert.store.audit.log import LOG, SLACK, StoredCheckpoint, StoredEvent


class TrustedHead(NamedTuple):
    """A trusted log size and root hash, from a signed checkpoint or from a copy outside the log.

    Attributes:
        name: the head's name in findings.
        root: 32 bytes.
    """

    name: str
    size: int
    root: bytes


class LogLeaf(NamedTuple):
    """A leaf as stored in the tree.

    Attributes:
        commitment: from the entry bundle; empty if the bundle is missing.
        hash: the leaf hash; zeros if both bundle and tile are missing.
    """

    commitment: bytes
    hash: bytes


class TreeCheck:
    """Rebuilds the tree from the leaves in order, and compares it with the stored tree."""

    def __init__(self, source: LogSource, report: VerificationReport) -> None:
        self._source = source
        self._report = report
        self._size = 0
        # The partial tiles at the right edge of the tree, as far as the tree has been rebuilt.
        self._partial: dict[TileId, bytes] = {}

    async def read_leaves(self, first: int, last: int) -> list[LogLeaf]:
        """Read the leaves from `first`, which must be a tile's first leaf, up to but excluding `last`.

        Missing leaves are reported and returned as zeros.
        """
        bounds = first // WIDTH, -(-last // WIDTH)
        bundles = await readable_tiles(self._source, ENTRIES, *bounds)
        tiles = await readable_tiles(self._source, 0, *bounds)
        leaves: list[LogLeaf] = []
        for index in range(*bounds):
            width = min(WIDTH, last - index * WIDTH)
            commitments = self._whole_tile(ENTRIES, index, width, bundles.get(index, b""))
            stored = self._whole_tile(0, index, width, tiles.get(index, b""))
            computed = [leaf_hash(commitment) for commitment in commitments]
            if commitments and stored and computed != stored:
                for place, pair in enumerate(zip(computed, stored, strict=True), index * WIDTH):
                    if pair[0] != pair[1]:
                        self._report.add(FindingKind.LEAF_MISMATCH, place=place)
            hashes = computed or stored or [bytes(HASH_BYTES)] * width
            leaves += map(LogLeaf, commitments or [b""] * width, hashes)
        return leaves

    def _whole_tile(self, level: int, index: int, width: int, content: bytes) -> list[bytes]:
        """Return a tile's first `width` hashes or commitments.

        If the tile has fewer than `width` hashes, reports the tile and returns an empty list.
        """
        hashes = split_hashes(content[: width * HASH_BYTES])
        if len(hashes) == width and len(hashes[-1]) == HASH_BYTES:
            return hashes
        place = index * WIDTH + max(len(hashes) - 1, 0)
        self._report.add(FindingKind.TILE_MISSING, place=place, level=level, index=index)
        return []

    async def extend(self, leaves: Sequence[LogLeaf], heads: Sequence[TrustedHead]) -> None:
        """Add the next leaves to the tree.

        Compares completed tiles with the stored tiles, and the tree's root hashes with the trusted heads.
        """
        start = self._size
        hashes = [leaf.hash for leaf in leaves]
        for size in sorted({*(head.size for head in heads), start + len(hashes)}):
            changed = append_hashes(self._size, self._partial, hashes[self._size - start : size - start])
            tiles = self._partial | changed
            self._size = size
            self._partial = {tile: tiles[tile] for tile in partial_tiles(size) if tile.level != ENTRIES}
            for tile, content in changed.items():
                if tile not in self._partial:
                    await self._compare_tile(tile, content)
            self.compare_root(heads)

    def compare_root(self, heads: Sequence[TrustedHead]) -> None:
        """Compare the current root with the trusted heads of the current size."""
        due = [head for head in heads if head.size == self._size]
        computed = tree_root(self._size, self._partial) if due else b""
        for head in due:
            if head.root != computed:
                self._report.add(
                    FindingKind.ROOT_MISMATCH,
                    size=head.size,
                    head=head.name,
                    root=head.root.hex(),
                    computed=computed.hex(),
                )

    async def compare_partial_tiles(self) -> None:
        """Compare the partial tiles at the tree's right edge. Call this method after the last leaf."""
        for tile, content in self._partial.items():
            await self._compare_tile(tile, content)

    async def _compare_tile(self, tile: TileId, content: bytes) -> None:
        """Compare a computed tile with the stored tile. Skips level 0, which `read_leaves` has compared."""
        if tile.level == 0:
            return
        tiles = await readable_tiles(self._source, tile.level, tile.index, tile.index + 1)
        computed, stored = split_hashes(content), split_hashes(tiles.get(tile.index, b"")[: len(content)])
        if len(stored) != len(computed):
            self._report.add(FindingKind.TILE_MISSING, level=tile.level, index=tile.index)
            return
        leaves = WIDTH**tile.level
        for at, pair in enumerate(zip(computed, stored, strict=True), tile.index * WIDTH):
            if pair[0] != pair[1]:
                first, last = at * leaves, (at + 1) * leaves - 1
                self._report.add(
                    FindingKind.NODE_MISMATCH, place=first, level=tile.level, index=at, first=first, last=last
                )


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
        # Leaf index and time of each event whose time is later than the times of all events with lower leaf indexes.
        # Each call of `check` first drops all entries except the last one.
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
        """Return the leaf index and time of the newest event among the first `size` events, or None.

        The last call of `check` must have included the leaf at index `size - 1`.
        """
        at = bisect_left(self._newest, size, key=lambda each: each[0])
        return self._newest[at - 1] if at else None

    def _add_missing(self, first: int, last: int) -> None:
        if first <= last:
            self._missing.append((first, last))

    async def report_missing(self, patience: float) -> None:
        """Count missing events whose deletion is recorded and sealed, and report the other missing events.

        Args:
            patience: how many seconds to wait for recorded deletions to be sealed.
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
            # The service may be deleting events now. The service seals such a deletion within a second or two.
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
        """Return the leaf indexes in deletion events that come after the checked part of the log.

        The first list is from sealed deletion events, and the second list from unsealed deletion events.
        """
        try:
            deletions = await self._source.deletion_events(self._report.size)
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
        """Return the leaf index of each leaf that matches a mismatched event, by commitment."""
        homes: dict[bytes, int] = {}
        for first in range(0, -(-self._report.size // WIDTH), _BUNDLES_PER_READ):
            bundles = await readable_tiles(self._source, ENTRIES, first, first + _BUNDLES_PER_READ)
            for index, bundle in bundles.items():
                places = enumerate(split_hashes(bundle), index * WIDTH)
                homes |= {leaf: place for place, leaf in places if leaf in self._mismatched}
        return homes


# Events that are not sealed within this time are reported. Sealing takes seconds, but a database outage may be longer.
LATE = timedelta(minutes=5)


async def check_unsealed(source: LogSource, report: VerificationReport, now: datetime) -> None:
    """Check the database rows of unsealed events. Reports events that wait too long, and events outside the log."""
    after: int | None = None
    try:
        while batch := await source.unsealed(after):
            for waiting in batch:
                _check(waiting, report)
            after = batch[-1].id
        outside = await source.events_outside_log()
    except READ_ERRORS:
        report.add(FindingKind.WAITING_UNREADABLE)
        return
    for event_id in outside:
        report.add(FindingKind.OUTSIDE, event_id=event_id)
    if report.unsealed_since is not None and now - report.unsealed_since > LATE:
        since = report.unsealed_since.isoformat(timespec="seconds")
        report.add(FindingKind.SEALING_LATE, count=report.unsealed, since=since)


def _check(waiting: UnsealedEvent, report: VerificationReport) -> None:
    report.unsealed += 1
    event = waiting.event
    if event is None:
        report.add(FindingKind.WAITING_REMOVED, event_id=waiting.id)
        return
    report.unsealed_since = min(report.unsealed_since or event.at, event.at)
    computed = commitment(event.salt, event.body)
    columns = differing_columns(event, computed)
    if waiting.commitment != computed:
        columns.append("commitment to be sealed")
    if columns:
        report.add(FindingKind.WAITING_CHANGED, event_id=waiting.id, columns=", ".join(columns))


# The number of leaves to read at once, a multiple of a tile's width.
LEAVES_PER_READ = 16 * WIDTH
# A signed note consists of a text, an empty line, and signatures. Source: c2sp.org/signed-note.
_NOTE = re.compile(r"(?:[^\n]+\n)+\n(?:\N{EM DASH} [^\n]+\n)+")


def parse_checkpoints(text: str, name: str, key: VerifierKey) -> list[TrustedHead]:
    """Parse and verify a file of concatenated checkpoints. Raises NoteError."""
    notes = _NOTE.findall(text)
    if not notes or _NOTE.sub("", text).strip():
        raise NoteError(f"{name} must contain one or more checkpoints and nothing else")
    heads = [verify_checkpoint(note, key) for note in notes]
    return [
        TrustedHead(f"the checkpoint in {name} of size {head.size}", head.size, head.root) for head in heads
    ]


async def verify(
    source: LogSource,
    key: VerifierKey,
    trusted: Sequence[TrustedHead] = (),
    report_progress: Callable[[int, int], None] = lambda _done, _total: None,
    now: Callable[[], datetime] = utc_now,
    patience: float = 3.0,
) -> VerificationReport:
    """Check a log against its newest checkpoint, which must be signed by `key`, and against `trusted` heads.

    Raises NoteError if the log has no valid checkpoint signed by this key.

    Args:
        report_progress: called with the numbers of checked events and of all events.
        patience: how many seconds to wait for the service to seal deletions that the service records during the
            verification.
    """
    head, newest = await _newest_checkpoint(source, key)
    report = VerificationReport(size=newest.size, root=newest.root.hex())
    _check_head(head, report)
    heads = [*trusted, TrustedHead("the newest checkpoint", newest.size, newest.root)]
    report.trusted = len(heads)
    for each in heads:
        if each.size > newest.size:
            report.add(FindingKind.TRUNCATED, head=each.name, head_size=each.size, size=newest.size)
    tree, events = TreeCheck(source, report), EventCheck(source, report)
    checkpoints = CheckpointCheck(source, key, events, report, now())
    tree.compare_root(heads)
    for first in range(0, newest.size, LEAVES_PER_READ):
        last = min(first + LEAVES_PER_READ, newest.size)
        leaves = await tree.read_leaves(first, last)
        due = [each for each in heads if first < each.size <= last]
        await events.check(first, leaves)
        await tree.extend(leaves, [*due, *await checkpoints.heads(first, last)])
        report_progress(last, newest.size)
    await tree.compare_partial_tiles()
    await events.report_missing(patience)
    await events.report_mismatched()
    await check_unsealed(source, report, now())
    report.sort()
    return report


async def _newest_checkpoint(source: LogSource, key: VerifierKey) -> tuple[LogHead, Checkpoint]:
    try:
        head = await source.head()
    except READ_ERRORS as error:
        raise NoteError("the newest checkpoint, or an event after it, can't be read") from error
    if head.note is None:
        raise NoteError("the log has no checkpoint yet; start the service, which seals events")
    return head, verify_checkpoint(str(head.note), key)


def _check_head(head: LogHead, report: VerificationReport) -> None:
    """Report a wrong id of the log, stored sizes that differ from the signed size, and events beyond that size."""
    if head.logs != (LOG,):
        report.add(FindingKind.LOG_REPLACED, expected=LOG, found=", ".join(map(str, head.logs)) or "none")
    for source, size in head.sizes.items():
        if size != report.size:
            report.add(FindingKind.SIZE_MISMATCH, source=source, size=size, signed=report.size)
    for event in head.stray:
        report.add(FindingKind.BEYOND_END, place=event.leaf_index, event_id=event.id, size=report.size)


class CheckpointCheck:
    """Checks the stored checkpoints, in the order of their sizes."""

    def __init__(
        self,
        source: LogSource,
        key: VerifierKey,
        events: EventCheck,
        report: VerificationReport,
        now: datetime,
    ) -> None:
        self._source = source
        self._key = key
        self._events = events
        self._report = report
        self._now = now
        self._before: StoredCheckpoint | None = None

    async def heads(self, first: int, last: int) -> list[TrustedHead]:
        """Return the valid checkpoints for tree sizes from `first + 1` to `last`. Reports invalid checkpoints.

        Call this method after the events in this range were checked.
        """
        heads: list[TrustedHead] = []
        try:
            stored = await self._source.checkpoints(first + 1, last + 1)
        except READ_ERRORS:
            self._report.add(FindingKind.CHECKPOINT_UNREADABLE, first=first + 1, last=last)
            return heads
        for row in stored:
            self._check_time(row)
            try:
                found = verify_checkpoint(str(row.note), self._key)
            except NoteError as error:
                self._report.add(FindingKind.CHECKPOINT_INVALID, row_size=row.size, reason=str(error))
                continue
            if (found.size, found.root) == (row.size, row.root):
                name = f"the stored checkpoint of size {found.size}"
                heads.append(TrustedHead(name, found.size, found.root))
            else:
                self._report.add(
                    FindingKind.CHECKPOINT_ROW_MISMATCH,
                    row_size=row.size,
                    size=found.size,
                    root=found.root.hex(),
                )
        return heads

    def _check_time(self, row: StoredCheckpoint) -> None:
        """Check the stored time. The signature does not cover this time, but lists of events by time rely on it."""
        if (newest := self._events.newest_before(row.size)) is not None and row.at + SLACK < newest[1]:
            self._report.add(FindingKind.CHECKPOINT_BACKDATED, place=newest[0], row_size=row.size)
        if self._before is not None and row.at + SLACK < self._before.at:
            self._report.add(FindingKind.CHECKPOINT_DISORDERED, row_size=row.size, before=self._before.size)
        # A time is too late if it is later than the next checkpoint or, for the newest checkpoint, than the clock.
        if row.size == self._report.size and row.at > self._now + SLACK:
            at = row.at.isoformat(timespec="seconds")
            self._report.add(FindingKind.CHECKPOINT_POSTDATED, row_size=row.size, at=at)
        self._before = row
