"""Verifies a whole log: events against leaves, leaves against the tree, the tree against signed checkpoints.

The log is read in chunks. Memory use grows with the number of findings, not with the log.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime

from clustercert.audit.event_check import EventCheck
from clustercert.audit.findings import FindingKind, VerificationReport
from clustercert.audit.log_source import READ_ERRORS, LogSource
from clustercert.audit.tree_check import TreeCheck, TrustedHead
from clustercert.audit.unsealed_check import check_unsealed
from clustercert.merkle.notes import Checkpoint, NoteError, VerifierKey, verify_checkpoint
from clustercert.merkle.tiles import WIDTH
from clustercert.model import utc_now
from clustercert.store.event_pages import SLACK
from clustercert.store.evidence import LogHead

# The number of leaves to read at once, a multiple of a tile's width.
LEAVES_PER_READ = 16 * WIDTH
# A signed note consists of a text, an empty line, and signatures. Source: c2sp.org/signed-note.
_NOTE = re.compile(r"(?:[^\n]+\n)+\n(?:\N{EM DASH} [^\n]+\n)+")


def parse_checkpoints(text: str, name: str, key: VerifierKey) -> list[TrustedHead]:
    """Parse and verify a file of concatenated checkpoints. Raises NoteError."""
    notes = _NOTE.findall(text)
    if not notes or _NOTE.sub("", text).strip():
        raise NoteError(f"{name} must contain one or more checkpoints and nothing else")
    heads = [verify_checkpoint(note, key) for note in notes]
    return [
        TrustedHead(f"the checkpoint in {name} of size {head.size}", head.size, head.root) for head in heads
    ]


async def verify(
    source: LogSource,
    key: VerifierKey,
    trusted: Sequence[TrustedHead] = (),
    report_progress: Callable[[int, int], None] = lambda _done, _total: None,
    now: Callable[[], datetime] = utc_now,
    patience: float = 3.0,
) -> VerificationReport:
    """Check a log against its newest checkpoint, which must be signed by `key`, and against `trusted` heads.

    Raises NoteError if the log has no valid checkpoint signed by this key.

    Args:
        report_progress: called with the numbers of checked events and of all events.
        patience: wait so many seconds for deletions that the service records meanwhile to be sealed.
    """
    head, newest = await _newest_checkpoint(source, key)
    report = VerificationReport(size=newest.size, root=newest.root.hex())
    _check_size(head, report)
    heads = [*trusted, TrustedHead("the newest checkpoint", newest.size, newest.root)]
    report.trusted = len(heads)
    for each in heads:
        if each.size > newest.size:
            report.add(FindingKind.TRUNCATED, head=each.name, head_size=each.size, size=newest.size)
    tree, events = TreeCheck(source, report), EventCheck(source, report)
    tree.compare_root(heads)
    for first in range(0, newest.size, LEAVES_PER_READ):
        last = min(first + LEAVES_PER_READ, newest.size)
        leaves = await tree.read_leaves(first, last)
        due = [each for each in heads if first < each.size <= last]
        await events.check(first, leaves)
        await tree.extend(leaves, [*due, *await _stored_heads(source, key, first, last, events, report)])
        report_progress(last, newest.size)
    await tree.compare_partial_tiles()
    await events.report_missing(patience)
    await events.report_mismatched()
    await check_unsealed(source, report, now())
    report.sort()
    return report


async def _newest_checkpoint(source: LogSource, key: VerifierKey) -> tuple[LogHead, Checkpoint]:
    try:
        head = await source.head()
    except READ_ERRORS as error:
        raise NoteError("the newest checkpoint, or an event after it, can't be read") from error
    if head.note is None:
        raise NoteError("the log has no checkpoint: nothing is sealed before the service has run")
    return head, verify_checkpoint(str(head.note), key)


def _check_size(head: LogHead, report: VerificationReport) -> None:
    """Report stored sizes that differ from the signed size, and events beyond the signed size."""
    for source, size in head.sizes.items():
        if size != report.size:
            report.add(FindingKind.SIZE_MISMATCH, source=source, size=size, signed=report.size)
    for event in head.stray:
        report.add(FindingKind.BEYOND_END, place=event.leaf_index, event_id=event.id, size=report.size)


async def _stored_heads(
    source: LogSource,
    key: VerifierKey,
    first: int,
    last: int,
    events: EventCheck,
    report: VerificationReport,
) -> list[TrustedHead]:
    """Read the log's stored checkpoints for tree sizes greater than `first` and up to `last`. Reports invalid ones."""
    heads: list[TrustedHead] = []
    try:
        stored = await source.checkpoints(first + 1, last + 1)
    except READ_ERRORS:
        report.add(FindingKind.CHECKPOINT_UNREADABLE, first=first + 1, last=last)
        return heads
    for row in stored:
        # Lists by time rely on the time of a checkpoint, which is not signed.
        if (newest := events.newest_before(row.size)) is not None and row.at + SLACK < newest[1]:
            report.add(FindingKind.CHECKPOINT_BACKDATED, place=newest[0], row_size=row.size)
        try:
            found = verify_checkpoint(str(row.note), key)
        except NoteError as error:
            report.add(FindingKind.CHECKPOINT_INVALID, row_size=row.size, reason=str(error))
            continue
        if (found.size, found.root) == (row.size, row.root):
            heads.append(TrustedHead(f"the stored checkpoint of size {found.size}", found.size, found.root))
        else:
            report.add(
                FindingKind.CHECKPOINT_ROW_MISMATCH,
                row_size=row.size,
                size=found.size,
                root=found.root.hex(),
            )
    return heads
