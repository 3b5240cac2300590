"""The log in a folder: its tiles and checkpoint as C2SP lays them out, and the events that are disclosed.

    checkpoint                     the newest one that everything below belongs to; written last
    verifier-key                   the key that the store says the log is signed with
    tile/<level>/<index>           and tile/entries/<index>: the tree, see c2sp.org/tlog-tiles
    events/<first place>.jsonl     an event a line, by place: {"place", "id", "salt", "body"}; of deleted ones, none

A body is text of the very bytes that were sealed (they are ASCII), the salt is hex.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clustercert.audit.evidence import parsed
from clustercert.audit.log import AuditLog
from clustercert.audit.verification import AT_ONCE
from clustercert.errors import LogDamaged
from clustercert.merkle import NoteError, ProofError, TileId, TilePath, opened
from clustercert.merkle.tiles import ENTRIES, WIDTH, all_tiles, decoded_bundle, encoded_bundle, split
from clustercert.merkle.tree import HASH_BYTES, verify_consistency
from clustercert.store.audit import StoredCheckpoint, StoredEvent
from clustercert.store.events import commitment
from clustercert.store.evidence import EvidenceRows, LogHead

CHECKPOINT, VERIFIER_KEY = "checkpoint", "verifier-key"
# Tiles that are read at once.
_TILES_AT_ONCE = 64
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to.

    Attributes:
        size: of the log in the folder now.
        tiles, events: how many were written this time.
    """

    size: int
    tiles: int
    events: int


def is_foreign(folder: Path) -> bool:
    """Whether a folder has anything in it that no export writes."""
    # The last one lies in every file system's own root.
    ours = {CHECKPOINT, VERIFIER_KEY, "tile", "events", "lost+found"}
    beside = {_beside(Path(name)).name for name in ours}
    return any(path.name not in ours | beside for path in folder.iterdir())


class Exporter:
    """Copies a log into a folder; one that has an older export is brought up to date."""

    def __init__(self, rows: EvidenceRows, log: AuditLog) -> None:
        self._rows = rows
        self._log = log

    async def export(self, folder: Path, *, refresh: bool = False) -> Exported:
        """Write what the folder lacks; with `refresh`, the events that are there are written anew.

        Stopped half-way, it goes on when it is run again. Raises LogDamaged where the store's log is not a
        continuation of what was exported before: then the folder is evidence, and nothing in it is touched.
        Raises Unavailable or OSError.
        """
        head = await self._log.checkpoint()
        before = await self._earlier(folder, head)
        tiles = 0
        for batch in _batches(folder, head.size):
            tiles += await self._tiles(folder, batch)
        events = 0
        for first in range(0, head.size, AT_ONCE):
            last = min(first + AT_ONCE, head.size)
            if refresh or last > before or not _events_file(folder, first).exists():
                events += await self._events(folder, first, last)
        # The checkpoint says that everything below it is there; flushing each of thousands of files would take minutes.
        os.sync()
        _write(folder / VERIFIER_KEY, f"{await self._log.verifier_key()}\n".encode())
        _write(folder / CHECKPOINT, head.note.encode())
        return Exported(head.size, tiles, events)

    async def _earlier(self, folder: Path, head: StoredCheckpoint) -> int:
        """The size of the log that the folder has already, which the store's must begin with."""
        path = folder / CHECKPOINT
        if not path.exists():
            return 0
        try:
            earlier = opened(path.read_text(encoding="utf-8"), await self._log.verifier_key())
            if earlier.size <= head.size:
                proof = await self._log.consistency(earlier.size, head.size)
            else:
                proof = ()
            verify_consistency(earlier.size, earlier.root, head.size, head.root, proof)
        except (NoteError, ProofError, UnicodeDecodeError) as error:
            raise LogDamaged(
                f"The store's log does not go on from what was exported to {folder}: {error}. Keep that folder: it is "
                "evidence. Export to another one, and verify both."
            ) from error
        return earlier.size

    async def _tiles(self, folder: Path, batch: list[TilePath]) -> int:
        level, first, last = batch[0].tile.level, batch[0].tile.index, batch[-1].tile.index + 1
        kept = await self._rows.tiles(level, first, last)
        for path in batch:
            hashes = kept.get(path.tile.index, b"")[: path.width * HASH_BYTES]
            content = encoded_bundle(split(hashes)) if level == ENTRIES else hashes
            target = folder / "tile" / str(path)
            _write(target, content)
            _drop_narrower(folder, path)
        return len(batch)

    async def _events(self, folder: Path, first: int, last: int) -> int:
        events = await self._rows.events(first, last)
        _write(_events_file(folder, first), b"".join(line(event) for event in events))
        return len(events)


class ExportedLog:
    """An exported folder as evidence. What is missing or broken in it is for the check to find."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def head(self) -> LogHead:
        path = self._folder / CHECKPOINT
        note = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        return LogHead(note)

    async def tiles(self, level: int, first: int, last: int) -> Mapping[int, bytes]:
        found = {index: self._tile(TileId(level, index)) for index in range(first, last)}
        return {index: hashes for index, hashes in found.items() if hashes}

    async def events(self, first: int, last: int) -> list[StoredEvent]:
        """The events of the file that begins with `first`, which is a multiple of what a file has."""
        del last
        path = _events_file(self._folder, first)
        if not path.exists():
            return []
        with path.open("rb") as lines:
            return [_read(text) for text in lines]

    async def checkpoints(self, first: int, last: int) -> list[StoredCheckpoint]:
        """None beside the newest one."""
        del first, last
        return []

    async def markers(self, first: int) -> list[StoredEvent]:
        """None: what is not in the folder is not known here."""
        del first
        return []

    def _tile(self, tile: TileId) -> bytes:
        full = self._folder / "tile" / str(TilePath(tile))
        path = full if full.exists() else max(_narrower(full), key=_width, default=None)
        if path is None:
            return b""
        content = path.read_bytes()
        if tile.level != ENTRIES:
            return content
        try:
            leaves = decoded_bundle(content)
        except ValueError:
            return b""
        return b"".join(leaves) if all(len(leaf) == HASH_BYTES for leaf in leaves) else b""


def line(event: StoredEvent) -> bytes:
    """An event as it is disclosed: a line of JSON, with what it takes to check it."""
    disclosed = {
        "place": event.leaf_index,
        "id": event.id,
        "salt": event.salt.hex(),
        "body": event.body.decode("ascii", errors="replace"),
    }
    return json.dumps(disclosed, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def _read(text: bytes) -> StoredEvent:
    """The event in a line; one without a place where the line says nothing that could be one."""
    said = parsed(text)
    place, event_id = said.get("place"), said.get("id")
    try:
        salt, body = bytes.fromhex(str(said.get("salt"))), str(said.get("body")).encode()
    except ValueError:
        salt, body = b"", b""
    inside = parsed(body)
    project_id = inside.get("project_id")
    try:
        at = datetime.fromisoformat(str(inside.get("at")))
    except ValueError:
        at = _NEVER
    return StoredEvent(
        id=event_id if isinstance(event_id, int) else 0,
        leaf_index=place if isinstance(place, int) else None,
        at=at,
        kind=str(inside.get("kind")),
        project_id=None if project_id is None else str(project_id),
        actor=str(inside.get("actor")),
        subject=str(inside.get("subject")),
        body=body,
        salt=salt,
        commitment=commitment(salt, body),
    )


def _batches(folder: Path, size: int) -> Iterator[list[TilePath]]:
    """The tiles that the folder lacks, those of one level that follow each other together."""
    batch: list[TilePath] = []
    for path in all_tiles(size):
        if (folder / "tile" / str(path)).exists():
            continue
        last = batch[-1].tile if batch else None
        follows = last is not None and (last.level, last.index + 1) == (path.tile.level, path.tile.index)
        if batch and (not follows or len(batch) == _TILES_AT_ONCE):
            yield batch
            batch = []
        batch.append(path)
    if batch:
        yield batch


def _events_file(folder: Path, first: int) -> Path:
    return folder / "events" / f"{first:015}.jsonl"


def _narrower(full: Path) -> list[Path]:
    """The partial tiles that lie where this one would."""
    folder = full.with_name(f"{full.name}.p")
    return [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def _width(path: Path) -> int:
    return min(int(path.name), WIDTH)


def _drop_narrower(folder: Path, path: TilePath) -> None:
    """Remove what a wider tile takes the place of."""
    full = folder / "tile" / str(TilePath(path.tile))
    for other in _narrower(full):
        if _width(other) < path.width:
            other.unlink()


def _beside(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.new")


def _write(path: Path, content: bytes) -> None:
    """Make or replace a file whole: whoever reads it meanwhile sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    beside.replace(path)
