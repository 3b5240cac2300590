"""Check a whole log: each event against its leaf, the leaves against the tree, the tree against signed heads.

A piece at a time: what is kept in memory doesn't grow with the log, but with what is wrong with it.
"""

import re
from collections.abc import Mapping, Sequence

from clustercert.audit.evidence import (
    MAX_FINDINGS,
    Evidence,
    Report,
    StoredEvent,
    Trusted,
    deleted_places,
    wrong_columns,
)
from clustercert.audit.ranges import Range, count, without
from clustercert.audit.regrown import RegrownTile, RegrownTree
from clustercert.merkle import NoteError, VerifierKey, leaf_hash, opened
from clustercert.merkle.tiles import ENTRIES, WIDTH, split
from clustercert.merkle.tree import HASH_BYTES
from clustercert.store.events import commitment

# Leaves that are read at once; a multiple of a tile's width.
AT_ONCE = 16 * WIDTH
# What comes of values of another type than their column's: SQLite takes any.
UNREADABLE = (ValueError, TypeError, AttributeError)
# Source: c2sp.org/signed-note: a text, an empty line, signatures.
_NOTE = re.compile(r"(?:[^\n]+\n)+\n(?:\N{EM DASH} [^\n]+\n)+")


def kept_heads(text: str, name: str, key: VerifierKey) -> list[Trusted]:
    """The heads in a file of checkpoints, one behind the other, as they are published. Raises NoteError."""
    notes = _NOTE.findall(text)
    if not notes or _NOTE.sub("", text).strip():
        raise NoteError(f"{name} has something other than checkpoints in it, or none")
    heads = [opened(note, key) for note in notes]
    return [Trusted(f"the checkpoint in {name} of size {head.size}", head.size, head.root) for head in heads]


async def verify(evidence: Evidence, key: VerifierKey, trusted: Sequence[Trusted] = ()) -> Report:
    """Hold the log against its newest checkpoint, which `key` must have signed, and against heads kept elsewhere.

    Raises NoteError where it has no checkpoint by this key: then nothing can be said.
    """
    try:
        head = await evidence.head()
    except UNREADABLE as error:
        raise NoteError("the newest checkpoint, or an event behind it, can't even be read") from error
    if head.note is None:
        raise NoteError("the log has no checkpoint: nothing of it is sealed")
    newest = opened(str(head.note), key)
    report = Report(size=newest.size, root=newest.root.hex(), unsealed=head.unsealed)
    for what, size in head.sizes.items():
        if size != newest.size:
            report.add(
                "checkpoint",
                f"By {what} the log has {size} leaves, and its newest checkpoint is signed for {newest.size}: it was "
                "cut off, or one of the two was changed.",
            )
    for stray in head.stray:
        report.add(
            "inserted",
            f"Event {stray.id} stands at place {stray.leaf_index}, which the log of {newest.size} leaves doesn't have.",
            place=stray.leaf_index,
            event_id=stray.id,
        )
    heads = [*trusted, Trusted("the newest checkpoint", newest.size, newest.root)]
    await _Walk(evidence, key, newest.size, report).walk(heads)
    report.findings.sort(key=lambda finding: (finding.place is None, finding.place))
    return report


class _Walk:
    """One walk over a log from its first leaf to its last."""

    def __init__(self, evidence: Evidence, key: VerifierKey, size: int, report: Report) -> None:
        self._evidence = evidence
        self._key = key
        self._size = size
        self._report = report
        self._tree = RegrownTree()
        self._missing: list[Range] = []
        self._deleted: list[Range] = []
        # Events that don't fit their place, by their real commitment.
        self._unfit: dict[bytes, StoredEvent] = {}

    async def walk(self, heads: Sequence[Trusted]) -> None:
        for head in heads:
            self._report.trusted += 1
            if head.size > self._size:
                self._report.add(
                    "checkpoint",
                    f"The log was cut off: {head.name} has {head.size} leaves, and {self._size} are left.",
                )
        self._hold([head for head in heads if head.size == 0])
        for first in range(0, self._size, AT_ONCE):
            last = min(first + AT_ONCE, self._size)
            leaves, hashes = await self._leaves(first, last)
            due = [head for head in heads if first < head.size <= last]
            await self._grow(hashes, sorted([*due, *await self._own_heads(first, last)], key=_size_of))
            expected = list(zip(leaves, hashes, strict=True))
            self._events(first, last, expected, await self._read_events(first, last))
        for tile in self._tree.partial():
            await self._compare(tile)
        await self._explain_missing()
        await self._explain_unfit()

    async def _leaves(self, first: int, last: int) -> tuple[list[bytes], list[bytes]]:
        """The leaves and their hashes, as the tree has them; what is missing is made up by zeros, and reported."""
        bounds = first // WIDTH, -(-last // WIDTH)
        bundles = await self._read_tiles(ENTRIES, *bounds)
        tiles = await self._read_tiles(0, *bounds)
        leaves: list[bytes] = []
        hashes: list[bytes] = []
        for index in range(*bounds):
            start = index * WIDTH
            width = min(WIDTH, last - start)
            data = split(bundles.get(index, b"")[: width * HASH_BYTES])
            kept = split(tiles.get(index, b"")[: width * HASH_BYTES])
            for name, found in (("entry bundle", data), ("tile of level 0", kept)):
                if len(found) != width or len(found[-1]) != HASH_BYTES:
                    self._report.add(
                        "tree",
                        f"The {name} {index} is missing or cut off.",
                        place=start + max(len(found) - 1, 0),
                    )
                    found[:] = []
            made = [leaf_hash(one) for one in data]
            if data and kept and made != kept:
                self._report_leaves(start, made, kept)
            leaves += data or [b""] * width
            hashes += made or kept or [bytes(HASH_BYTES)] * width
        return leaves, hashes

    async def _read_tiles(self, level: int, first: int, last: int) -> Mapping[int, bytes]:
        """What can't be read is as good as missing."""
        try:
            return await self._evidence.tiles(level, first, last)
        except UNREADABLE:
            return {}

    async def _read_events(self, first: int, last: int) -> list[StoredEvent]:
        """The events of a piece; where one of them can't be read, one by one."""
        try:
            return await self._evidence.events(first, last)
        except UNREADABLE:
            if last - first == 1:
                self._report.add(
                    "changed",
                    f"What stands at place {first} can't even be read: it was changed.",
                    place=first,
                )
                return []
        middle = (first + last) // 2
        return [*await self._read_events(first, middle), *await self._read_events(middle, last)]

    async def _read_markers(self) -> list[StoredEvent]:
        """What can't be read excuses nothing."""
        try:
            return await self._evidence.markers(self._size)
        except UNREADABLE:
            return []

    def _report_leaves(self, start: int, made: list[bytes], kept: list[bytes]) -> None:
        for place, (one, other) in enumerate(zip(made, kept, strict=True), start):
            if one != other:
                self._report.add(
                    "tree",
                    f"The commitment at place {place} and the tree over it don't belong together: one was changed.",
                    place=place,
                )

    async def _own_heads(self, first: int, last: int) -> list[Trusted]:
        """The checkpoints that are kept beside the log itself, of sizes in a piece."""
        heads: list[Trusted] = []
        try:
            kept = await self._evidence.checkpoints(first + 1, last + 1)
        except UNREADABLE:
            self._report.add(
                "checkpoint", f"A kept checkpoint of a size from {first + 1} to {last} can't even be read."
            )
            return heads
        for row in kept:
            try:
                found = opened(str(row.note), self._key)
            except NoteError as error:
                self._report.add("checkpoint", f"A kept checkpoint is no good: {error}.")
                continue
            if (found.size, found.root) == (row.size, row.root):
                heads.append(Trusted(f"the kept checkpoint of size {found.size}", found.size, found.root))
            else:
                self._report.add(
                    "checkpoint",
                    f"The store says otherwise than the kept checkpoint itself, where it keeps the one of size "
                    f"{row.size}: that one is of size {found.size}, and its root {found.root.hex()}.",
                )
        return heads

    async def _grow(self, hashes: list[bytes], heads: Sequence[Trusted]) -> None:
        """Take a piece into the tree, and hold it against the heads on the way."""
        start = self._tree.size
        for size in sorted({*(head.size for head in heads), start + len(hashes)}):
            for tile in self._tree.extend(hashes[self._tree.size - start : size - start]):
                await self._compare(tile)
            self._hold([head for head in heads if head.size == size])

    def _hold(self, heads: Sequence[Trusted]) -> None:
        if not heads:
            return
        root = self._tree.root()
        for head in heads:
            if head.root != root:
                self._report.add(
                    "checkpoint",
                    f"The first {head.size} leaves are not those of {head.name}: its root is {head.root.hex()}, and "
                    f"they come to {root.hex()}.",
                )

    async def _compare(self, regrown: RegrownTile) -> None:
        level, index = regrown.tile.level, regrown.tile.index
        tiles = await self._read_tiles(level, index, index + 1)
        kept = split(tiles.get(index, b"")[: len(regrown.hashes) * HASH_BYTES])
        if kept == regrown.hashes:
            return
        if len(kept) != len(regrown.hashes):
            self._report.add("tree", f"The tile {index} of level {level} is missing or cut off.")
            return
        span = WIDTH**level
        for at, (one, other) in enumerate(zip(regrown.hashes, kept, strict=True), index * WIDTH):
            if one != other:
                self._report.add(
                    "tree",
                    f"The hash {at} of level {level}, over the places {at * span} to {(at + 1) * span - 1}, does not "
                    "follow from what is below it.",
                    place=at * span,
                )

    def _events(
        self, first: int, last: int, expected: Sequence[tuple[bytes, bytes]], events: Sequence[StoredEvent]
    ) -> None:
        """Hold the events of a piece against its leaves and their hashes."""
        due = first
        for event in events:
            place = event.leaf_index
            if place is None:
                self._report.add(
                    "changed",
                    f"One of the events at places {first} to {last - 1} can't be read.",
                    place=first,
                )
                continue
            if not due <= place < last:
                self._report.add(
                    "inserted",
                    f"Event {event.id} claims the place {place}, where it doesn't stand or which is taken.",
                    place=place,
                    event_id=event.id,
                )
                continue
            self._add_missing(due, place - 1)
            due = place + 1
            self._event(event, place, *expected[place - first])
        self._add_missing(due, last - 1)

    def _event(self, event: StoredEvent, place: int, leaf: bytes, hashed: bytes) -> None:
        made = commitment(event.salt, event.body)
        # Where the bundle is missing, the tree still knows.
        if made != leaf if leaf else leaf_hash(made) != hashed:
            if len(self._unfit) < MAX_FINDINGS:
                self._unfit[made] = event
            else:
                self._report.found += 1
            return
        self._report.events += 1
        if wrong := wrong_columns(event, made):
            self._report.add(
                "changed",
                f"The store says otherwise than event {event.id} itself, at place {place}: {', '.join(wrong)}.",
                place=place,
                event_id=event.id,
            )
        self._deleted += deleted_places(event.body, place)

    def _add_missing(self, first: int, last: int) -> None:
        if first > last:
            return
        if self._missing and self._missing[-1][1] == first - 1:
            first, _ = self._missing.pop()
        self._missing.append((first, last))

    async def _explain_missing(self) -> None:
        """Tell what was deleted, and said so, from what is gone."""
        if not self._missing:
            return
        for marker in await self._read_markers():
            self._deleted += deleted_places(marker.body, self._size)
        gone = without(self._missing, self._deleted)
        self._report.deleted = count(self._missing) - count(gone)
        for first, last in gone:
            which = (
                f"event at place {first} is" if first == last else f"events at places {first} to {last} are"
            )
            self._report.add(
                "removed", f"The {which} gone, and nothing in the log says what deleted them.", place=first
            )

    async def _explain_unfit(self) -> None:
        """Tell events that stand at another's place from those that are not what they were."""
        if not self._unfit:
            return
        homes: dict[bytes, int] = {}
        for first in range(0, -(-self._size // WIDTH), AT_ONCE // WIDTH):
            for index, bundle in (await self._read_tiles(ENTRIES, first, first + AT_ONCE // WIDTH)).items():
                places = enumerate(split(bundle), index * WIDTH)
                homes |= {leaf: place for place, leaf in places if leaf in self._unfit}
        for made, event in self._unfit.items():
            place, home = event.leaf_index, homes.get(made)
            if home is None or home == place:
                self._report.add(
                    "changed",
                    f"Event {event.id} at place {place} isn't what was sealed there: body or salt was changed.",
                    place=place,
                    event_id=event.id,
                )
            else:
                self._report.add(
                    "reordered",
                    f"Event {event.id} stands at place {place} and belongs at place {home}.",
                    place=place,
                    event_id=event.id,
                )


def _size_of(head: Trusted) -> int:
    return head.size
