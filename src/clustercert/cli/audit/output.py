"""Prints audit events and verification reports, and reads keys and checkpoints given by the user."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.options import UsageError, read_file
from clustercert.cli.terminal.output import (
    Output,
    document,
    print_note,
    row_of,
    show_one,
    write_out,
)
from clustercert.model.errors import LogDamaged
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.audit.findings import VerificationReport
    from clustercert.audit.verification import TrustedHead
    from clustercert.merkle.notes import VerifierKey


def parse_key(given: str) -> "VerifierKey":
    """Parse a verifier key, given as a string or as a file name. Raises UsageError or CommandError."""
    from clustercert.merkle.notes import NoteError, VerifierKey

    if not Path(given).exists() and "+" not in given:
        raise UsageError(f"--key: {given} is neither a file nor a key of the form NAME+HASH+KEY.")
    text = read_text(Path(given)) if Path(given).exists() else given
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
        return [head for file in files for head in parse_checkpoints(read_text(file), str(file), key)]


@contextlib.contextmanager
def translate_note_errors() -> Iterator[None]:
    """Raise LogDamaged instead of a NoteError from the `with` block."""
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


def read_text(file: Path) -> str:
    """Read a file with a key, a checkpoint or a proof. Raises UsageError or CommandError."""
    # Replace invalid bytes: the parsers reject the replacement character, which no key or checkpoint contains.
    return read_file(file).decode(errors="replace")
