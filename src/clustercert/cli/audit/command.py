"""`clustercert audit`: read, verify, export and prune the audit log."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.audit import events, verify
from clustercert.cli.audit.events import PlaceArgument
from clustercert.cli.commands import on_store
from clustercert.cli.options import InvalidOption, YesOption, time_ago
from clustercert.cli.session import Operator
from clustercert.cli.terminal.output import Output, OutputOption, print_note, show_one
from clustercert.cli.terminal.prompts import confirm
from clustercert.model.errors import LogDamaged
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.audit.retention import Retention

app = typer.Typer(name="audit", help="Read, verify, export and prune the audit log.", no_args_is_help=True)

_MAX_WHY = 200

app.command("verify")(verify.verify)
app.command("export")(verify.export)
app.command("checkpoint")(verify.checkpoint)
app.command("tail")(events.tail)
app.command("show")(events.show)


@app.command()
@on_store
async def prune(
    operator: Operator,
    older_than: Annotated[
        datetime,
        typer.Option(parser=time_ago, metavar="DURATION", help="Minimum age of the events, such as 400d."),
    ],
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Delete old events.

    The log keeps the commitments of the deleted events, and records the deletion. If the command is interrupted, run
    the command again.

    Examples:
        clustercert audit prune --older-than 400d
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
        raise InvalidOption(f"Give 1 to {_MAX_WHY} printable characters.")
    return text


@app.command()
@on_store
async def erase(
    operator: Operator,
    place: PlaceArgument,
    reason: Annotated[
        str, typer.Option(parser=_parse_reason, metavar="TEXT", help="Reason, recorded in the log.")
    ],
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Delete one event, for privacy.

    The log keeps the event's commitment, and records the deletion.

    Examples:
        clustercert audit erase 4711 --reason 'request of the data subject'
    """
    event = await operator.components.audit_log.pages.event(place)
    if event is not None:
        confirm(f"Permanently delete event {place}, {event.kind} of {rfc3339(event.at)}?", yes=yes)
    await _retention(operator).erase(place, reason, actor=operator.actor)
    await _seal_waiting_events(operator)
    show_one({"place": place}, output, name="place")


def _retention(operator: Operator) -> "Retention":
    from clustercert.audit.retention import Retention
    from clustercert.model import utc_now
    from clustercert.store.audit.evidence import EvidenceQueries

    return Retention(EvidenceQueries(operator.components.database), utc_now)


async def _seal_waiting_events(operator: Operator) -> None:
    """Seal the waiting events (add them to the Merkle tree), because only sealed events are listed.

    Prints a warning if the log is damaged.
    """
    try:
        await operator.components.log_sealer.seal_all()
    except LogDamaged as damage:
        print_note(f"Warning: {damage.message}")
