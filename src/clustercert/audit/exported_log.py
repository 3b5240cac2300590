"""Reads an exported log, and defines the folder layout.

    checkpoint                     the newest checkpoint; written last
    verifier-key                   the log's verifier key, copied from the store
    tile/<level>/<index>           the tree, see c2sp.org/tlog-tiles; entry bundles are in tile/entries/
    events/<first index>.jsonl     one event per line: {"place", "salt", "body"}; deleted events are omitted

`place` is the leaf index; `body` is the sealed body, which is ASCII; `salt` is hex.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from clustercert.audit.event_parsing import parse_body, parse_time
from clustercert.merkle.tiles import ENTRIES, WIDTH, TileId, TilePath, decode_bundle
from clustercert.merkle.tree import HASH_BYTES
from clustercert.store.audit import StoredCheckpoint, StoredEvent
from clustercert.store.events import commitment
from clustercert.store.evidence import LogHead, UnsealedEvent

CHECKPOINT, VERIFIER_KEY = "checkpoint", "verifier-key"
_NEVER = datetime.min.replace(tzinfo=UTC)


class ExportedLog:
    """An exported log as a source for verification. Missing or malformed files count as missing content."""

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

    async def markers(self, first: int) -> list[StoredEvent]:
        """Return nothing: `events` returns all events of an export, deletion events included."""
        del first
        return []

    async def unsealed(self, after: int | None) -> list[UnsealedEvent]:
        """Return nothing: an export contains only sealed events."""
        del after
        return []

    async def outside(self) -> list[int]:
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
    """Existing files with partial versions of a full tile."""
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
    """Parse a line. The event's leaf index is None if the line has none."""
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
