"""Checks the events that are not sealed: those that wait for it, and those that nothing will ever seal."""

from datetime import datetime, timedelta

from clustercert.audit.event_parsing import differing_columns
from clustercert.audit.findings import FindingKind, VerificationReport
from clustercert.audit.log_source import READ_ERRORS, LogSource
from clustercert.store.events import commitment
from clustercert.store.evidence import UnsealedEvent

# Events are sealed within seconds. A restart or an outage of the database may take some minutes.
LATE = timedelta(minutes=5)


async def check_unsealed(source: LogSource, report: VerificationReport, now: datetime) -> None:
    """Compare waiting events with their rows. Reports events that wait for long, or are not part of the log at all."""
    after: int | None = None
    try:
        while batch := await source.unsealed(after):
            for waiting in batch:
                _check(waiting, report)
            after = batch[-1].id
        outside = await source.outside()
    except READ_ERRORS:
        report.add(FindingKind.WAITING_UNREADABLE)
        return
    for event_id in outside:
        report.add(FindingKind.OUTSIDE, event_id=event_id)
    if report.unsealed_since is not None and now - report.unsealed_since > LATE:
        since = report.unsealed_since.isoformat(timespec="seconds")
        report.add(FindingKind.SEALING_LATE, count=report.unsealed, since=since)


def _check(waiting: UnsealedEvent, report: VerificationReport) -> None:
    report.unsealed += 1
    event = waiting.event
    if event is None:
        report.add(FindingKind.WAITING_REMOVED, event_id=waiting.id)
        return
    report.unsealed_since = min(report.unsealed_since or event.at, event.at)
    computed = commitment(event.salt, event.body)
    columns = differing_columns(event, computed)
    if waiting.commitment != computed:
        columns.append("commitment to be sealed")
    if columns:
        report.add(FindingKind.WAITING_CHANGED, event_id=waiting.id, columns=", ".join(columns))
