"""Findings of a verification of the audit log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from clustercert.merkle.tiles import ENTRIES

# The maximum number of findings in a report. Further findings are only counted.
MAX_FINDINGS = 1000


class FindingKind(Enum):
    """Kinds of findings.

    Attributes:
        problem: `changed`, `removed`, `inserted`, `reordered`, `unsealed`, `tree`, `checkpoint`, `log` or `key`.
        template: a sentence in which the finding's facts replace the names in braces.
    """

    EVENT_CHANGED = "changed", "The event at leaf index {place} does not match its leaf."
    COLUMNS_CHANGED = "changed", "The event at leaf index {place} differs from its row in: {columns}."
    EVENT_UNREADABLE = "changed", "The event at leaf index {place} can't be read: its row was changed."
    LINE_UNREADABLE = "changed", "One of the events at leaf indexes {first} to {last} can't be read."
    EVENTS_REMOVED = "removed", "The {events} missing, and no event records the deletion."
    DELETION_UNSEALED = (
        "removed",
        "The {events} missing. The deletion is not sealed yet, so it may be forged. Verify again in a few seconds.",
    )
    WAITING_REMOVED = "removed", "The event in row {event_id} waits to be sealed, but is missing."
    WAITING_CHANGED = (
        "changed",
        "The event in row {event_id} waits to be sealed, but its rows differ in: {columns}.",
    )
    WAITING_UNREADABLE = "changed", "An event that waits to be sealed can't be read: its row was changed."
    SEALING_LATE = (
        "unsealed",
        "Events have waited to be sealed since {since}: {count}. Such events are unprotected. See the service's log.",
    )
    OUTSIDE = "inserted", "The event in row {event_id} has no leaf index, and does not wait to be sealed."
    BEYOND_END = "inserted", "An event has leaf index {place}, but the log has only {size} leaves."
    OUT_OF_ORDER = "inserted", "An event has leaf index {place}, which is taken or out of order."
    EVENT_MOVED = "reordered", "The event at leaf index {place} matches the leaf at index {home}."
    TILE_MISSING = "tree", "{tile} is missing or too short."
    LEAF_MISMATCH = (
        "tree",
        "The commitment at leaf index {place} does not match the hash of its leaf in the tree.",
    )
    NODE_MISMATCH = (
        "tree",
        "Hash {index} at level {level} (leaf indexes {first} to {last}) does not match the hashes below it.",
    )
    SIZE_MISMATCH = (
        "checkpoint",
        "The log has {size} leaves according to {source}, but {signed} according to its newest signed checkpoint.",
    )
    TRUNCATED = "checkpoint", "The log was cut off: {head} has {head_size} leaves, but only {size} are left."
    ROOT_MISMATCH = (
        "checkpoint",
        "The first {size} leaves do not match {head}: they have the root {computed}, and not {root}.",
    )
    CHECKPOINT_UNREADABLE = "checkpoint", "A checkpoint for a size between {first} and {last} can't be read."
    CHECKPOINT_INVALID = "checkpoint", "The stored checkpoint of size {row_size} is not valid: {reason}."
    CHECKPOINT_ROW_MISMATCH = (
        "checkpoint",
        "The stored checkpoint of size {row_size} does not match its row: the note has size {size} and root {root}.",
    )
    CHECKPOINT_BACKDATED = (
        "checkpoint",
        "The stored checkpoint of size {row_size} is older than an event in it, so lists by time may skip the event.",
    )
    NEWEST_INVALID = (
        "checkpoint",
        "The newest checkpoint can't be trusted, so no event was checked: {reason}.",
    )
    CHECKPOINT_DISORDERED = (
        "checkpoint",
        "The stored checkpoint of size {row_size} is older than the one of size {before}. Check the service's clock.",
    )
    CHECKPOINT_POSTDATED = "checkpoint", "The stored checkpoint of size {row_size} is from the future: {at}."
    LOG_REPLACED = (
        "log",
        "The table audit_log must have one row, with the id {expected}, but has these ids: {found}.",
    )
    KEY_DIFFERS = "key", "The public key {stored} in the table audit_log is not the given key {given}."
    KEY_REPLACED = (
        "key",
        "The public key {stored} in the table audit_log was replaced: the sealed private key belongs to {derived}.",
    )
    KEY_UNREADABLE = (
        "key",
        "The private key in the table audit_log was changed: {reason}. Don't trust the public key there either.",
    )

    def __init__(self, problem: str, template: str) -> None:
        self.problem = problem
        self.template = template


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the log and its sealed state.

    Attributes:
        place: the leaf index, or None if the finding is not about one leaf.
        event_id: the id of the event's row in the store, or None.
        facts: further values for the kind's sentence, by name.
    """

    kind: FindingKind
    place: int | None = None
    event_id: int | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    def text(self) -> str:
        """Render the finding as a sentence."""
        facts = {"place": self.place, "event_id": self.event_id, **self.facts}
        match self.kind:
            case FindingKind.TILE_MISSING if facts["level"] == ENTRIES:
                facts["tile"] = f"Entry bundle {facts['index']}"
            case FindingKind.TILE_MISSING:
                facts["tile"] = f"Tile {facts['index']} at level {facts['level']}"
            case FindingKind.EVENTS_REMOVED | FindingKind.DELETION_UNSEALED if (
                facts["first"] == facts["last"]
            ):
                facts["events"] = f"event at leaf index {facts['first']} is"
            case FindingKind.EVENTS_REMOVED | FindingKind.DELETION_UNSEALED:
                facts["events"] = f"events at leaf indexes {facts['first']} to {facts['last']} are"
        return self.kind.template.format_map(facts)


@dataclass(slots=True)
class VerificationReport:
    """The result of verifying a log.

    Attributes:
        size: the log size in the newest checkpoint.
        root: the root hash in the newest checkpoint, in hex.
        events: the number of events that match their leaves.
        deleted: the number of events missing because of a recorded deletion.
        unsealed: the number of events not sealed yet.
        unsealed_since: the time of the oldest unsealed event; None if all events are sealed.
        trusted: the number of trusted heads (log sizes with root hashes) that the log was compared with, including the
            newest checkpoint.
        findings: at most `MAX_FINDINGS`, ordered by leaf index.
        found: the total number of findings, including those beyond `MAX_FINDINGS`.
    """

    size: int = 0
    root: str = ""
    events: int = 0
    deleted: int = 0
    unsealed: int = 0
    unsealed_since: datetime | None = None
    trusted: int = 0
    findings: list[Finding] = field(default_factory=list)
    found: int = 0

    def add(
        self, kind: FindingKind, *, place: int | None = None, event_id: int | None = None, **facts: object
    ) -> None:
        """Add a finding, or only count the finding if the report already has `MAX_FINDINGS` findings."""
        self.found += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind, place, event_id, facts))

    def sort(self) -> None:
        """Order the findings by leaf index. Findings without a leaf index come last."""
        self.findings.sort(key=lambda finding: (finding.place is None, finding.place))
