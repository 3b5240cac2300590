"""What a check of the whole log reads, wherever it lies: a store, or an exported folder. And what it finds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from clustercert.model import JsonObject
from clustercert.store.audit import StoredCheckpoint, StoredEvent
from clustercert.store.evidence import DELETED, LogHead

__all__ = ["DELETED", "Evidence", "Finding", "LogHead", "Report", "StoredEvent", "Trusted", "deleted_places"]

Problem = Literal["changed", "removed", "inserted", "reordered", "tree", "checkpoint"]
"""What a finding is about: an event, the tree over the commitments, or a signed head."""

# More of them tell no more; they are only counted.
MAX_FINDINGS = 1000


class Evidence(Protocol):
    """A log, read a piece at a time. Places are those of the leaves, from 0."""

    async def head(self) -> LogHead: ...

    async def tiles(self, level: int, first: int, last: int) -> Mapping[int, bytes]:
        """The tiles of a level from `first` up to `last` by index, as wide as they are; those that there are."""

    async def events(self, first: int, last: int) -> list[StoredEvent]:
        """The events at the places from `first` up to `last`, in the order in which they stand there."""

    async def checkpoints(self, first: int, last: int) -> list[StoredCheckpoint]:
        """Kept checkpoints of sizes from `first` up to `last`."""

    async def markers(self, first: int) -> list[StoredEvent]:
        """The events that say what was deleted, behind a place."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was sealed.

    Attributes:
        place: of the leaf that it is about, or None.
        event_id: the store's number of the event that it is about, or None.
        sentence: what is wrong, for people.
    """

    problem: Problem
    place: int | None
    event_id: int | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Trusted:
    """A head of the log that somebody has kept, or that is signed.

    Attributes:
        name: what it is called in a finding.
        root: 32 bytes.
    """

    name: str
    size: int
    root: bytes


@dataclass(slots=True)
class Report:
    """What a check came to.

    Attributes:
        size: of the log, as its newest checkpoint says.
        root: of that checkpoint, hex.
        events: how many events are there and fit.
        deleted: how many were deleted, and the log says so; their commitments are as they were.
        unsealed: how many events were too young to have a place.
        trusted: how many heads the log was held against, its newest one included.
        findings: the first of them, by place.
        found: how many there are.
    """

    size: int = 0
    root: str = ""
    events: int = 0
    deleted: int = 0
    unsealed: int = 0
    trusted: int = 0
    findings: list[Finding] = field(default_factory=list)
    found: int = 0

    def add(
        self, problem: Problem, sentence: str, *, place: int | None = None, event_id: int | None = None
    ) -> None:
        """Report one more."""
        self.found += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(problem, place, event_id, sentence))


def deleted_places(body: bytes, below: int) -> list[tuple[int, int]]:
    """The places that an event says were deleted, as ranges whose ends belong to them.

    `below` is the event's own place: what it says of later ones, when nothing was there yet, excuses nothing.
    """
    said = parsed(body)
    detail = said.get("detail")
    if said.get("kind") != DELETED or not isinstance(detail, dict):
        return []
    places = detail.get("places")
    pairs = places if isinstance(places, list) else []
    return [(pair[0], pair[1]) for pair in pairs if _is_range(pair) and pair[1] < below]


def parsed(body: bytes) -> JsonObject:
    """The JSON object in a body; empty where there is none."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def wrong_columns(event: StoredEvent, made: bytes) -> list[str]:
    """Which columns don't say what the body says, which fits its leaf."""
    said = parsed(event.body)
    columns = {
        "kind": event.kind,
        "project_id": event.project_id,
        "actor": event.actor,
        "subject": event.subject,
    }
    wrong = [name for name, value in columns.items() if said.get(name) != value]
    if _time(said.get("at")) != event.at:
        wrong.append("at")
    if event.commitment != made:
        wrong.append("commitment")
    return wrong


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        return None


def _is_range(pair: object) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == len(("first", "last"))
        and all(isinstance(end, int) for end in pair)
        and 0 <= pair[0] <= pair[1]
    )
