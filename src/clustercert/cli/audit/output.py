"""Prints audit events and verification reports, and reads keys and checkpoints given by the user."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.options import UsageError, read_file
from clustercert.cli.output import (
    Output,
    Row,
    Table,
    csv,
    document,
    is_wide,
    print_note,
    row_of,
    show_one,
    write_out,
)
from clustercert.cli.printable import printable
from clustercert.cli.session import CLUSTER_ID
from clustercert.model.errors import LogDamaged, NotFound
from clustercert.model.ids import is_id
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.audit.findings import VerificationReport
    from clustercert.audit.retention import Mismatch
    from clustercert.audit.verification import TrustedHead
    from clustercert.cli.session import Operator
    from clustercert.merkle.notes import VerifierKey
    from clustercert.store.audit import StoredEvent


_FINGERPRINT_DIGITS = 64
# The number of digits to show of a fingerprint: enough for `certificate show` to find the certificate.
_SHOWN_DIGITS = 16


class EventNames:
    """Finds the names of users and clusters in the store. Looks up each name only once."""

    def __init__(self, operator: "Operator") -> None:
        self._operator = operator
        self._known: dict[str, str] = {}

    async def user(self, user_id: str) -> str:
        """Return the name of a user of the built-in identity service, or the id of any other user."""
        if not is_id(user_id):
            return user_id
        if user_id not in self._known:
            try:
                self._known[user_id] = (await self._operator.directory.find_user(user_id, None)).name
            except NotFound:
                self._known[user_id] = user_id
        return self._known[user_id]

    async def subject(self, event: "StoredEvent") -> str:
        """Return the subject's name from the event or the store. Shortens a fingerprint or hash."""
        from clustercert.audit.event_parsing import parse_body

        detail = parse_body(event.body).get("detail")
        if isinstance(detail, dict) and isinstance(name := detail.get("name"), str) and name:
            return name
        if CLUSTER_ID.fullmatch(event.subject):
            return await self._cluster(event.subject)
        if len(event.subject) == _FINGERPRINT_DIGITS:
            return event.subject[:_SHOWN_DIGITS]
        return await self.user(event.subject)

    async def _cluster(self, cluster_id: str) -> str:
        if cluster_id not in self._known:
            found = await self._operator.components.clusters.queries.find(cluster_id, None)
            self._known[cluster_id] = found[0].name if found else cluster_id
        return self._known[cluster_id]


EVENT_FIELDS = (
    *("place", "at", "kind", "version", "project_id", "actor", "subject"),
    *("source", "request_id", "detail"),
)
"""The fields that `event_row` returns: the header of CSV output."""


def parse_key(given: str) -> "VerifierKey":
    """Parse a verifier key, given as a string or as a file name. Raises UsageError, or CommandError."""
    from clustercert.merkle.notes import NoteError, VerifierKey

    if not Path(given).exists() and "+" not in given:
        raise UsageError(f"--key: {given} is neither a file nor a key of the form NAME+HASH+KEY.")
    text = _text(Path(given)) if Path(given).exists() else given
    try:
        return VerifierKey.parse(text)
    except NoteError as error:
        raise UsageError(f"--key: {error}.") from error


def trusted_heads(files: Iterable[Path], key: "VerifierKey") -> "list[TrustedHead]":
    """Read checkpoints that the user saved to files.

    Raises LogDamaged if a checkpoint is not valid, or CommandError if a file can't be read.
    """
    from clustercert.audit.verification import parse_checkpoints

    with translate_note_errors():
        return [head for file in files for head in parse_checkpoints(_text(file), str(file), key)]


@contextlib.contextmanager
def translate_note_errors() -> Iterator[None]:
    """Turn a NoteError from the `with` block into LogDamaged."""
    from clustercert.merkle.notes import NoteError

    try:
        yield
    except NoteError as error:
        raise LogDamaged(f"A checkpoint can't be trusted: {error}.") from error


def show_report(report: "VerificationReport", output: Output) -> None:
    """Print a verification report. In table format, findings go to standard error."""
    summary = {
        **row_of(report, "size", "root", "events", "deleted", "unsealed"),
        "unsealed_since": rfc3339(report.unsealed_since) if report.unsealed_since is not None else None,
        "checkpoints": report.trusted,
        "findings": report.found,
    }
    if output in (Output.JSON, Output.YAML):
        found = [
            {
                "problem": each.kind.problem,
                "place": each.place,
                "id": each.event_id,
                "message": each.text(),
            }
            for each in report.findings
        ]
        write_out(document(summary | {"findings": found, "found": report.found}, output))
        return
    show_one(summary, output, name="root")
    for finding in report.findings:
        print_note(f"{finding.kind.problem.upper()}: {finding.text()}")
    if report.found > len(report.findings):
        print_note(f"There are {report.found - len(report.findings)} more findings.")


class EventPrinter:
    """Prints each event as it arrives, on one line or as a YAML document. Does not print the header of CSV.

    A table in a terminal has names instead of ids, and relative times.
    """

    def __init__(self, output: Output, names: "EventNames") -> None:
        self._output = output
        self._names = names
        self._table = Table(("place", "at", "kind", "subject", "actor"), "place")

    async def print(self, events: "Sequence[StoredEvent]") -> None:
        if self._output is Output.TABLE and sys.stdout.isatty():
            self._table.print([await self._row(event) for event in events])
        else:
            for event in events:
                write_out(_event_line(event, self._output))
        # Flush, so that the reader of a pipe receives each event immediately.
        sys.stdout.flush()

    async def _row(self, event: "StoredEvent") -> Row:
        row = {"place": event.leaf_index, **row_of(event, "at", "kind", "subject", "actor")}
        if is_wide():
            return row
        names = self._names
        return row | {"subject": await names.subject(event), "actor": await names.user(event.actor)}


def _event_line(event: "StoredEvent", output: Output) -> str:
    row = event_row(event)
    match output:
        case Output.JSON:
            return json.dumps(row | {"at": rfc3339(event.at)}, ensure_ascii=True) + "\n"
        case Output.YAML:
            return "---\n" + document(row | {"at": rfc3339(event.at)}, output)
        case Output.CSV:
            return csv([row], EVENT_FIELDS).partition("\r\n")[2]
        case Output.NAME:
            return f"{event.leaf_index}\n"
        case _:
            fields = (rfc3339(event.at), str(event.leaf_index), event.kind, event.actor, event.subject)
            return printable("   ".join(fields)).replace("\n", "\\n") + "\n"


def event_row(event: "StoredEvent") -> dict[str, object]:
    """Return the fields of an event and of its body."""
    from clustercert.audit.event_parsing import parse_body

    body = parse_body(event.body)
    return {
        "place": event.leaf_index,
        **row_of(event, "at", "kind"),
        "version": body.get("version"),
        **row_of(event, "project_id", "actor", "subject"),
        **{field: body.get(field) for field in ("source", "request_id", "detail")},
    }


def check_proof(event: "StoredEvent", size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Raise LogDamaged unless the proof shows that the log with this root includes the event."""
    from clustercert.merkle.tree import ProofError, leaf_hash, verify_inclusion
    from clustercert.store.events import commitment

    leaf = leaf_hash(commitment(event.salt, event.body))
    try:
        verify_inclusion(leaf, event.leaf_index or 0, size, proof, root)
    except ProofError as error:
        raise LogDamaged(
            f"The event at leaf index {event.leaf_index} differs from the sealed event: {error}. "
            "Run `clustercert audit verify`."
        ) from error


def mismatch_row(mismatch: "Mismatch") -> Row:
    """Return the row for a certificate that failed the check."""
    record = mismatch.certificate.record
    row = {"fingerprint": record.fingerprint.hex(), **row_of(record, "serial", "cluster_id", "user_id")}
    return {**row, "problems": list(mismatch.problems)}


def _text(file: Path) -> str:
    # Replace invalid bytes: the parsers reject the replacement character, which no key or checkpoint contains.
    return read_file(file).decode(errors="replace")
