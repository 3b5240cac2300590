"""`clustercert audit`: read, verify, export and prune the audit log."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.audit import verify
from clustercert.cli.audit.output import EVENT_FIELDS, EventNames, EventPrinter, check_proof, event_row
from clustercert.cli.commands import on_store
from clustercert.cli.options import YesOption, time_ago
from clustercert.cli.output import Output, OutputOption, print_note, show_one, write_out
from clustercert.cli.prompts import confirm
from clustercert.cli.session import Operator
from clustercert.model.errors import LogDamaged
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.audit.log import AuditLog
    from clustercert.audit.retention import Retention
    from clustercert.store.audit import EventFilter, StoredEvent

app = typer.Typer(name="audit", help="Read, verify, export and prune the audit log.", no_args_is_help=True)

# The maximum number of events per query, and the interval at which `tail --follow` polls.
_PAGE, _WAIT_SECONDS = 1000, 1.0

_MAX_WHY = 200

PlaceArgument = Annotated[
    int, typer.Argument(metavar="PLACE", min=0, max=2**63 - 1, help="The event's leaf index, from `tail`.")
]

app.command("verify")(verify.verify)
app.command("export")(verify.export)
app.command("checkpoint")(verify.checkpoint)
app.command("key")(verify.show_key)


@app.command()
@on_store
async def tail(
    operator: Operator,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=_PAGE, help="Number of past events to show.")
    ] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new events.")] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="List only events of this kind; certificate.* matches all kinds with this prefix.",
        ),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="List only events about this subject.")] = None,
    actor: Annotated[str | None, typer.Option(help="List only events by this actor.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the last events, oldest first.

    JSON output has one object per line. In a terminal, the table shows names, and the first digits of fingerprints;
    -o wide shows ids and whole fingerprints, as they are in the log.
    """
    import asyncio

    from clustercert.store.audit import EventFilter

    event_filter = EventFilter(kind=kind, subject=subject, actor=actor)
    log = operator.components.audit_log
    await _seal_waiting_events(operator)
    # Events sealed after this point are shown only with --follow.
    size = (await log.log()).size
    if output is Output.CSV:
        write_out(",".join(EVENT_FIELDS) + "\r\n")
    printer = EventPrinter(output, EventNames(operator))
    await printer.print(await _last_events(log, event_filter, size, lines))
    last = size - 1 if size else None
    while follow:
        await asyncio.sleep(_WAIT_SECONDS)
        page = await log.events(event_filter, cursor=last, newest_first=False, limit=_PAGE)
        await printer.print(page.events)
        last = page.cursor or (page.events[-1].leaf_index if page.events else last)


async def _last_events(
    log: "AuditLog", event_filter: "EventFilter", size: int, count: int
) -> "list[StoredEvent]":
    """Return the last `count` matching events of the first `size` events in the log, oldest first."""
    found: list[StoredEvent] = []
    cursor = size or None
    while cursor is not None and len(found) < count:
        page = await log.events(event_filter, cursor=cursor, newest_first=True, limit=count - len(found))
        found += page.events
        cursor = page.cursor
    return found[::-1]


@app.command()
@on_store
async def show(operator: Operator, place: PlaceArgument, output: OutputOption = Output.TABLE) -> None:
    """Show an event with its salt and its inclusion proof."""
    from clustercert.model.errors import NotFound

    log = operator.components.audit_log
    await _seal_waiting_events(operator)
    event = await log.pages.event(place)
    if event is None:
        raise NotFound(f"There is no event {place}, or it was deleted.")
    proof = await log.inclusion(event)
    check_proof(event, proof.checkpoint.size, proof.checkpoint.root, proof.hashes)
    row = event_row(event) | {"salt": event.salt.hex(), "commitment": event.commitment.hex()}
    row |= {"proof": [each.hex() for each in proof.hashes], "proved_in": proof.checkpoint.size}
    show_one(row, output, name="place")


@app.command()
@on_store
async def prune(
    operator: Operator,
    older_than: Annotated[
        datetime,
        typer.Option(parser=time_ago, metavar="AGE", help="Minimum age of the events, such as 400d."),
    ],
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Delete old events.

    The log keeps the commitments of the deleted events, and records the deletion. If the command is interrupted, run
    the command again.
    """
    confirm(f"Permanently delete all events from before {rfc3339(older_than)}?", yes=yes)
    retention, deleted = _retention(operator), 0
    while count := await retention.prune(older_than, actor=operator.actor):
        deleted += count
    await _seal_waiting_events(operator)
    show_one({"deleted": deleted, "before": older_than}, output, name="deleted")


def _parse_reason(text: str) -> str:
    from clustercert.policy.templates import is_plain_text

    if not 1 <= len(text) <= _MAX_WHY or not is_plain_text(text):
        raise typer.BadParameter(f"Give 1 to {_MAX_WHY} printable characters.")
    return text


@app.command()
@on_store
async def erase(
    operator: Operator,
    place: PlaceArgument,
    why: Annotated[
        str, typer.Option(parser=_parse_reason, metavar="TEXT", help="Reason, recorded in the log.")
    ],
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Delete one event, for privacy.

    The log keeps the event's commitment, and records the deletion.
    """
    event = await operator.components.audit_log.pages.event(place)
    if event is not None:
        confirm(f"Permanently delete event {place}, {event.kind} of {rfc3339(event.at)}?", yes=yes)
    await _retention(operator).erase(place, why, actor=operator.actor)
    await _seal_waiting_events(operator)
    show_one({"place": place}, output, name="place")


def _retention(operator: Operator) -> "Retention":
    from clustercert.audit.retention import Retention
    from clustercert.model import utc_now
    from clustercert.store.evidence import EvidenceQueries

    return Retention(EvidenceQueries(operator.components.database), utc_now)


app.command("check-certificates")(verify.check_certificates)


async def _seal_waiting_events(operator: Operator) -> None:
    """Seal the waiting events, because only sealed events are listed. Prints a warning if the log is damaged."""
    try:
        await operator.components.log_sealer.seal_all()
    except LogDamaged as damage:
        print_note(f"Warning: {damage.message}")
