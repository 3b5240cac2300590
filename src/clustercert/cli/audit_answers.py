"""What the commands of `clustercert audit` show, and what they are given: keys, checkpoints, reports, events."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.output import Output, Row, answer, csv, document, note, printable, show_one, time_text
from clustercert.cli.session import UnclearError
from clustercert.errors import LogDamaged

if TYPE_CHECKING:
    # The commands load what reads the log only when they are run.
    from clustercert.audit.checking import Mismatch
    from clustercert.audit.evidence import Report, Trusted
    from clustercert.merkle import VerifierKey
    from clustercert.store.audit import StoredEvent


EVENT_FIELDS = (
    "id",
    "place",
    "at",
    "kind",
    "project_id",
    "actor",
    "subject",
    "source",
    "request_id",
    "detail",
)
"""What `event_row` tells of each event."""


def verifier_key(given: str | None, own: "VerifierKey | None", whose: str) -> "VerifierKey":
    """The key to verify with: the one that was given, as text or in a file, or else the log's own.

    Raises UnclearError.
    """
    from clustercert.merkle import NoteError, VerifierKey

    if given is None:
        if own is None:
            raise UnclearError(f"There is no audit log in {whose} yet.")
        note(
            f"The key is the one that {whose} has: whoever can change the log can change it. Keep a copy and give it"
            " with --key."
        )
        return own
    if not Path(given).exists() and "+" not in given:
        raise UnclearError(f"--key: there is no file {given}, and a verifier key looks like NAME+HASH+KEY.")
    text = _read(Path(given)) if Path(given).exists() else given
    try:
        return VerifierKey.parsed(text)
    except NoteError as error:
        raise UnclearError(f"--key: {error}.") from error


def trusted_heads(files: Iterable[Path], key: "VerifierKey") -> "list[Trusted]":
    """The checkpoints in files that somebody keeps. Raises NoteError or UnclearError."""
    from clustercert.audit.verification import kept_heads

    return [head for file in files for head in kept_heads(_read(file), str(file), key)]


@contextlib.contextmanager
def notes_explained() -> Iterator[None]:
    """Make a sentence of what is wrong with a checkpoint."""
    from clustercert.merkle import NoteError

    try:
        yield
    except NoteError as error:
        raise LogDamaged(f"A checkpoint can't be trusted: {error}.") from error


def show_report(report: "Report", output: Output) -> None:
    """What a check came to; for people, what was found is said beside."""
    summary: dict[str, object] = {
        "size": report.size,
        "root": report.root,
        "events": report.events,
        "deleted": report.deleted,
        "unsealed": report.unsealed,
        "checkpoints": report.trusted,
        "findings": report.found,
    }
    if output in (Output.JSON, Output.YAML):
        found = [
            {
                "problem": finding.problem,
                "place": finding.place,
                "id": finding.event_id,
                "message": finding.sentence,
            }
            for finding in report.findings
        ]
        answer(document(summary | {"findings": found, "found": report.found}, output))
        return
    show_one(summary, output, name="root")
    for finding in report.findings:
        note(f"{finding.problem.upper()}: {finding.sentence}")
    if report.found > len(report.findings):
        note(f"There are {report.found - len(report.findings)} more.")


def print_events(events: "Sequence[StoredEvent]", output: Output) -> None:
    """Events as they come: a line each, in CSV without the header, or in YAML a document each."""
    for event in events:
        row = event_row(event)
        match output:
            case Output.JSON:
                answer(json.dumps(row | {"at": time_text(event.at)}, ensure_ascii=True) + "\n")
            case Output.YAML:
                answer("---\n" + document(row | {"at": time_text(event.at)}, output))
            case Output.CSV:
                answer(csv([row], EVENT_FIELDS).partition("\r\n")[2])
            case Output.NAME:
                answer(f"{event.id}\n")
            case _:
                fields = (time_text(event.at), str(event.id), event.kind, event.actor, event.subject)
                answer(printable("   ".join(fields)).replace("\n", "\\n") + "\n")
    # Whoever reads from a pipe is not to wait until it is full.
    sys.stdout.flush()


def event_row(event: "StoredEvent") -> dict[str, object]:
    """An event with all that its body says."""
    from clustercert.audit.evidence import parsed

    body = parsed(event.body)
    return {
        "id": event.id,
        "place": event.leaf_index,
        "at": event.at,
        "kind": event.kind,
        "project_id": event.project_id,
        "actor": event.actor,
        "subject": event.subject,
        "source": body.get("source"),
        "request_id": body.get("request_id"),
        "detail": body.get("detail"),
    }


def check_proof(event: "StoredEvent", size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Raise LogDamaged unless the event is what stands at its place in the log of this root."""
    from clustercert.merkle import ProofError, leaf_hash
    from clustercert.merkle.tree import verify_inclusion
    from clustercert.store.events import commitment

    leaf = leaf_hash(commitment(event.salt, event.body))
    try:
        verify_inclusion(leaf, event.leaf_index or 0, size, proof, root)
    except ProofError as error:
        raise LogDamaged(
            f"Event {event.id} is not what was sealed: {error}. Run `clustercert audit verify`."
        ) from error


def mismatch_row(mismatch: "Mismatch") -> Row:
    """A certificate that is not what it should be."""
    record = mismatch.certificate.record
    return {
        "fingerprint": record.fingerprint.hex(),
        "serial": record.serial,
        "cluster_id": record.cluster_id,
        "user_id": record.user_id,
        "problems": list(mismatch.problems),
    }


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnclearError(f"The file {file} can't be read: {error}.") from error
