"""Reads events from files: the folder of `audit export`, or lines of JSON as `audit tail --output json` prints."""

from collections.abc import Iterator
from pathlib import Path

from clustercert.audit.event_parsing import parse_body
from clustercert.model import JsonObject


def read_events(path: Path) -> Iterator[JsonObject]:
    """Yield the events in a file, or in all event files of an exported log. Raises OSError.

    A line that is not an event gives an empty object. Does not verify the log; see `verification`.
    """
    files = sorted((path / "events").glob("*.jsonl")) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as lines:
            yield from map(_parse_line, lines)


def _parse_line(line: bytes) -> JsonObject:
    fields = parse_body(line)
    body = fields.get("body")
    return parse_body(body.encode()) if isinstance(body, str) else fields
