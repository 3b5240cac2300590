"""Parses the JSON bodies of stored events, which may have been tampered with."""

import json
from datetime import datetime

from clustercert.audit.ranges import PlaceRange
from clustercert.model import JsonObject
from clustercert.store.audit import StoredEvent
from clustercert.store.evidence import DELETED


def parse_body(body: bytes) -> JsonObject:
    """Parse a body as a JSON object. Returns an empty object for anything else."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def parse_time(value: object) -> datetime | None:
    """Parse an ISO 8601 time with an offset. Returns None for anything else."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def deleted_places(body: bytes, below: int) -> list[PlaceRange]:
    """Return the ranges of leaf indexes that a deletion event lists; empty for other events.

    `below` is the event's own leaf index. Larger indexes are ignored: an event can't delete later events.
    """
    fields = parse_body(body)
    detail = fields.get("detail")
    if fields.get("kind") != DELETED or not isinstance(detail, dict):
        return []
    places = detail.get("places")
    pairs = places if isinstance(places, list) else []
    return [(pair[0], pair[1]) for pair in pairs if _is_range(pair) and pair[1] < below]


def differing_columns(event: StoredEvent, commitment: bytes) -> list[str]:
    """Return the columns in an event's row that differ from its body or from the computed commitment."""
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
