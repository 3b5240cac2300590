"""Exports the audit log to a folder, and reads exported logs."""

import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clustercert.audit.event_parsing import (
    PlaceRange,
    deleted_places,
    merge,
    parse_body,
    parse_time,
    ranges_of,
    subtract,
)
from clustercert.audit.log import AuditLog
from clustercert.audit.verification import LEAVES_PER_READ
from clustercert.merkle.notes import NoteError, verify_checkpoint
from clustercert.merkle.tiles import (
    ENTRIES,
    WIDTH,
    TileId,
    TilePath,
    all_tiles,
    decode_bundle,
    encode_bundle,
    split_hashes,
)
from clustercert.merkle.tree import HASH_BYTES, ProofError, verify_consistency
from clustercert.model.errors import LogDamaged
from clustercert.store.audit.events import commitment
from clustercert.store.audit.evidence import EvidenceQueries, LogHead, UnsealedEvent
from clustercert.store.audit.log import StoredCheckpoint, StoredEvent

CHECKPOINT, VERIFIER_KEY = "checkpoint", "verifier-key"
_NEVER = datetime.min.replace(tzinfo=UTC)


class ExportedLog:
    """An exported log, as input for verification. Missing and malformed files are treated as missing content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def head(self) -> LogHead:
        path = self._folder / CHECKPOINT
        return LogHead(path.read_text(encoding="utf-8", errors="replace") if path.exists() else None)

    async def tiles(self, level: int, first: int, last: int) -> Mapping[int, bytes]:
        found = {index: self._tile(TileId(level, index)) for index in range(first, last)}
        return {index: hashes for index, hashes in found.items() if hashes}

    async def events(self, first: int, last: int) -> list[StoredEvent]:
        """Read the events in the file that starts at leaf index `first`."""
        del last
        path = events_file(self._folder, first)
        if not path.exists():
            return []
        with path.open("rb") as lines:
            return [_parse_event(line) for line in lines]

    async def checkpoints(self, first: int, last: int) -> list[StoredCheckpoint]:
        """Return nothing: an export contains only the newest checkpoint."""
        del first, last
        return []

    async def deletion_events(self, first: int) -> list[StoredEvent]:
        """Return nothing: `events` returns all events of an export, including deletion events."""
        del first
        return []

    async def unsealed(self, after: int | None) -> list[UnsealedEvent]:
        """Return nothing: an export contains only sealed events."""
        del after
        return []

    async def events_outside_log(self) -> list[int]:
        """Return nothing: an export contains only events with leaf indexes."""
        return []

    def _tile(self, tile: TileId) -> bytes:
        full = tile_file(self._folder, TilePath(tile))
        path = full if full.exists() else max(partial_tile_files(full), key=partial_width, default=None)
        if path is None:
            return b""
        content = path.read_bytes()
        if tile.level != ENTRIES:
            return content
        try:
            leaves = decode_bundle(content)
        except ValueError:
            return b""
        return b"".join(leaves) if all(len(leaf) == HASH_BYTES for leaf in leaves) else b""


def tile_file(folder: Path, path: TilePath) -> Path:
    return folder / "tile" / str(path)


def partial_tile_files(full: Path) -> list[Path]:
    """Return the existing files for partial versions of a tile."""
    folder = full.with_name(f"{full.name}.p")
    return [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def partial_width(path: Path) -> int:
    return min(int(path.name), WIDTH)


def events_file(folder: Path, first: int) -> Path:
    return folder / "events" / f"{first:015}.jsonl"


def event_line(event: StoredEvent) -> bytes:
    """Encode an event and its salt as a line of JSON."""
    fields = {
        "place": event.leaf_index,
        "salt": event.salt.hex(),
        "body": event.body.decode("ascii", errors="replace"),
    }
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def _parse_event(line: bytes) -> StoredEvent:
    """Parse a line of an event file. The event's leaf index is None if the line has no valid leaf index."""
    fields = parse_body(line)
    place = fields.get("place")
    try:
        salt, body = bytes.fromhex(str(fields.get("salt"))), str(fields.get("body")).encode()
    except ValueError:
        salt, body = b"", b""
    inside = parse_body(body)
    named = inside.get("project_id")
    project_id = None if named is None else str(named)
    return StoredEvent(
        id=None,
        leaf_index=place if isinstance(place, int) else None,
        place_project_id=project_id,
        at=parse_time(inside.get("at")) or _NEVER,
        kind=str(inside.get("kind")),
        project_id=project_id,
        actor=str(inside.get("actor")),
        subject=str(inside.get("subject")),
        body=body,
        salt=salt,
        commitment=commitment(salt, body),
    )


_TILES_PER_READ = 64


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The size of the exported log, and the numbers of tiles and events that this export wrote."""

    size: int
    tiles: int
    events: int


def has_foreign_files(folder: Path) -> bool:
    """Whether a folder contains files that don't belong to an export."""
    # An ext file system has lost+found in its root folder, so an export to a mount point contains that folder.
    ours = {CHECKPOINT, VERIFIER_KEY, "tile", "events", "lost+found"}
    temporary = {_temporary(Path(name)).name for name in ours}
    return any(path.name not in ours | temporary for path in folder.iterdir())


class Exporter:
    """Exports a log to a new folder, or updates an existing export."""

    def __init__(
        self,
        queries: EvidenceQueries,
        log: AuditLog,
        seal: Callable[[], Awaitable[object]],
        report_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Create an exporter.

        Args:
            seal: a function that seals all events that wait to be sealed.
            report_progress: called with the numbers of exported events and of all events.
        """
        self._queries = queries
        self._log = log
        self._seal = seal
        self._report_progress = report_progress

    async def export(self, folder: Path, *, refresh: bool = False) -> ExportResult:
        """Export the log by writing missing files. With `refresh`, also rewrite all event files.

        An interrupted export can be repeated. Raises LogDamaged without writing anything if the log does not extend the
        exported log. Raises Unavailable or OSError if a read or write fails.
        """
        head = await self._log.checkpoint()
        exported = await self._exported_size(folder, head)
        tiles, events, gaps = 0, 0, _Gaps()
        first_stale = 0 if refresh else exported
        while True:
            tiles += await self._write_tree(folder, head.size)
            events += await self._write_all_events(folder, first_stale, head.size, gaps)
            if not await self._explained_later(gaps, head.size):
                break
            # Events were deleted after the checkpoint was read. Also export the deletion events.
            await self._seal()
            first_stale, head = head.size, await self._log.checkpoint()
        # The checkpoint is written last, when all other files are durable. One call of sync is faster than thousands of
        # calls of fsync.
        os.sync()
        _write(folder / VERIFIER_KEY, f"{await self._log.verifier_key()}\n".encode())
        _write(folder / CHECKPOINT, head.note.encode())
        return ExportResult(head.size, tiles, events)

    async def _exported_size(self, folder: Path, head: StoredCheckpoint) -> int:
        """Return the log size in the existing export, or 0. Raises LogDamaged if `head` does not extend the export."""
        path = folder / CHECKPOINT
        if not path.exists():
            return 0
        try:
            earlier = verify_checkpoint(path.read_text(encoding="utf-8"), await self._log.verifier_key())
            grown = earlier.size <= head.size
            proof = await self._log.consistency(earlier.size, head.size) if grown else ()
            verify_consistency(earlier.size, earlier.root, head.size, head.root, proof)
        except (NoteError, ProofError, UnicodeDecodeError) as error:
            raise LogDamaged(
                f"The log in the database does not extend the log that was exported to {folder}: {error}. Keep that"
                " folder as evidence. Export to a different folder, and verify both exports."
            ) from error
        return earlier.size

    async def _write_tree(self, folder: Path, size: int) -> int:
        """Write the missing tiles. Returns the number of written tiles."""
        count = 0
        for batch in _missing_tiles(folder, size):
            level, first, last = batch[0].tile.level, batch[0].tile.index, batch[-1].tile.index + 1
            tiles = await self._queries.tiles(level, first, last)
            for path in batch:
                hashes = tiles.get(path.tile.index, b"")[: path.width * HASH_BYTES]
                content = encode_bundle(split_hashes(hashes)) if level == ENTRIES else hashes
                _write(tile_file(folder, path), content)
                _remove_narrower(folder, path)
            count += len(batch)
        return count

    async def _write_all_events(self, folder: Path, stale: int, size: int, gaps: "_Gaps") -> int:
        """Write the event files that are missing, or that contain leaf indexes from `stale` on.

        Returns the number of written events.
        """
        count = 0
        for first in range(0, size, LEAVES_PER_READ):
            last = min(first + LEAVES_PER_READ, size)
            if stale == 0 or last > stale or not events_file(folder, first).exists():
                events = await self._queries.events(first, last)
                _write(events_file(folder, first), b"".join(event_line(event) for event in events))
                gaps.add(first, last, events)
                count += len(events)
            self._report_progress(last, size)
        return count

    async def _explained_later(self, gaps: "_Gaps", size: int) -> bool:
        """Whether a deletion event that comes after the first `size` events lists events that the export lacks."""
        unexplained = gaps.unexplained()
        if not unexplained:
            return False
        later = [
            places
            for event in await self._queries.deletion_events(size)
            for places in deleted_places(event.body, size)
        ]
        return subtract(unexplained, later) != unexplained


class _Gaps:
    """The leaf indexes of events that an export lacks, and of events whose deletion the export records."""

    def __init__(self) -> None:
        self._missing: list[PlaceRange] = []
        self._deleted: list[PlaceRange] = []

    def add(self, first: int, last: int, events: Sequence[StoredEvent]) -> None:
        """Add the events of a file for the leaf indexes from `first` up to but excluding `last`."""
        present = {event.leaf_index: event.body for event in events if event.leaf_index is not None}
        self._missing += subtract([(first, last - 1)], ranges_of(present))
        for place, body in present.items():
            self._deleted += deleted_places(body, place)

    def unexplained(self) -> list[PlaceRange]:
        """Return the leaf indexes of missing events whose deletion the export does not record."""
        return subtract(merge(self._missing), self._deleted)


def _missing_tiles(folder: Path, size: int) -> Iterator[list[TilePath]]:
    """Yield the missing tiles in batches of consecutive tiles at one level."""
    batch: list[TilePath] = []
    for path in all_tiles(size):
        if tile_file(folder, path).exists():
            continue
        last = batch[-1].tile if batch else None
        follows = last is not None and (last.level, last.index + 1) == (path.tile.level, path.tile.index)
        if batch and (not follows or len(batch) == _TILES_PER_READ):
            yield batch
            batch = []
        batch.append(path)
    if batch:
        yield batch


def _remove_narrower(folder: Path, path: TilePath) -> None:
    """Remove the older files of a partial tile that have fewer hashes than the new file."""
    for other in partial_tile_files(tile_file(folder, TilePath(path.tile))):
        if partial_width(other) < path.width:
            other.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _write(path: Path, content: bytes) -> None:
    """Create or replace a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
