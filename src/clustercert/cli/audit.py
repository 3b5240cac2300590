"""`clustercert audit`: the audit log, to be read, checked, copied and kept in bounds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.asking import agreed
from clustercert.cli.audit_answers import (
    EVENT_FIELDS,
    check_proof,
    event_row,
    mismatch_row,
    notes_explained,
    print_events,
    show_report,
    trusted_heads,
    verifier_key,
)
from clustercert.cli.options import YesOption
from clustercert.cli.output import Output, OutputOption, Row, answer, note, show_list, show_one, time_text
from clustercert.cli.session import Operator, UnclearError, operate
from clustercert.errors import LogDamaged

if TYPE_CHECKING:
    # The commands load what reads the log only when they are run.
    from datetime import datetime

    from clustercert.audit.evidence import Report
    from clustercert.store.audit import StoredEvent

app = typer.Typer(
    name="audit", help="The audit log: read it, verify it, keep copies of it.", no_args_is_help=True
)

# Events that are looked through at once, and how long `tail --follow` waits for more.
_PAGE, _WAIT_SECONDS = 1000, 1.0
_MAX_WHY = 200

EventArgument = Annotated[
    int, typer.Argument(metavar="ID", max=2**63 - 1, help="The event's id, as `tail` shows it.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="The log's verifier key that you keep, or a file with it."),
]


@app.command()
def verify(
    context: typer.Context,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Checkpoints that you keep; the log must begin with theirs."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check this exported folder instead of the store.")
    ] = None,
    key: KeyOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check the whole log: every event, the tree, its checkpoint. Exit with 1 if anything is not as it was sealed.

    An exported folder is checked with the key alone: no store and no settings are needed.
    """
    from clustercert.audit.verification import verify as verified
    from clustercert.store.evidence import EvidenceRows

    files = checkpoint or []
    if export is not None:
        report = _verified_export(export, files, key)
    else:

        async def work(operator: Operator) -> "Report":
            rows = EvidenceRows(operator.parts.database)
            verifier = verifier_key(key, await rows.verifier(), "the store")
            return await verified(rows, verifier, trusted_heads(files, verifier))

        with notes_explained():
            report = operate(context, work)
    show_report(report, output)
    if report.found:
        raise typer.Exit(1)
    if not files:
        note("Nothing was checked against a checkpoint that you keep. See --checkpoint.")


@app.command()
def export(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder; one with an older export is brought up to date.")
    ],
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Write all events anew, so that deleted ones go from the folder."),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Copy the log into a folder that `verify --export` and other tools for transparency logs can check."""
    from clustercert.audit.export import Exporter
    from clustercert.store.evidence import EvidenceRows

    _check_room(out)

    async def work(operator: Operator) -> Row:
        parts = operator.parts
        await parts.log_sealer.seal_all()
        done = await Exporter(EvidenceRows(parts.database), parts.audit_log).export(out, refresh=refresh)
        return {"folder": str(out), "size": done.size, "tiles": done.tiles, "events": done.events}

    show_one(operate(context, work), output, name="folder")


@app.command()
def checkpoint(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Seal what waits, and show the newest checkpoint: keep it where nobody who can reach the database can."""

    async def work(operator: Operator) -> Row:
        parts = operator.parts
        await parts.log_sealer.seal_all()
        found = await parts.audit_log.checkpoint()
        return {
            "size": found.size,
            "root": found.root.hex(),
            "at": found.at,
            "note": found.note,
            "verifier_key": str(await parts.audit_log.verifier_key()),
        }

    row = operate(context, work)
    if output is Output.TABLE:
        answer(str(row["note"]))
    else:
        show_one(row, output, name="root")


@app.command("key")
def show_key(context: typer.Context) -> None:
    """Show the log's verifier key, which checkpoints are verified with: keep it beside them."""

    async def work(operator: Operator) -> str:
        return str(await operator.parts.audit_log.verifier_key())

    answer(f"{operate(context, work)}\n")


@app.command()
def tail(
    context: typer.Context,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=_PAGE, help="How many to begin with.")
    ] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Only of this kind; certificate.* is all that begin so."),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Only about this.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only by this one.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the last events, oldest first; as JSON, one a line."""
    import asyncio

    from clustercert.store.event_pages import EventFilter

    wanted = EventFilter(kind=kind, subject=subject, actor=actor)

    async def work(operator: Operator) -> None:
        log = operator.parts.audit_log
        await _sealed(operator)
        # What is sealed from here on is for those who follow.
        size = (await log.log()).size
        found: list[StoredEvent] = []
        cursor = size or None
        while cursor is not None and len(found) < lines:
            page = await log.events(wanted, cursor=cursor, newest_first=True, limit=lines - len(found))
            found += page.events
            cursor = page.cursor
        last = size - 1 if size else None
        if output is Output.CSV:
            answer(",".join(EVENT_FIELDS) + "\r\n")
        print_events(found[::-1], output)
        while follow:
            await asyncio.sleep(_WAIT_SECONDS)
            page = await log.events(wanted, cursor=last, newest_first=False, limit=_PAGE)
            print_events(page.events, output)
            last = page.cursor or (page.events[-1].leaf_index if page.events else last)

    operate(context, work)


@app.command()
def show(context: typer.Context, event_id: EventArgument, output: OutputOption = Output.TABLE) -> None:
    """Show an event with its salt, its place in the log, and the proof that it stands there."""
    from clustercert.errors import NotFound

    async def work(operator: Operator) -> Row:
        log = operator.parts.audit_log
        event = await log.pages.event(event_id)
        if event is None:
            raise NotFound(f"There is no event {event_id}, or it was deleted.")
        await _sealed(operator)
        event = await log.pages.event(event_id) or event
        row = event_row(event) | {"salt": event.salt.hex(), "commitment": event.commitment.hex()}
        if event.leaf_index is None:
            return row | {"proof": None, "proved_in": None}
        proof = await log.inclusion(event)
        check_proof(event, proof.checkpoint.size, proof.checkpoint.root, proof.hashes)
        return row | {
            "proof": [each.hex() for each in proof.hashes],
            "proved_in": proof.checkpoint.size,
        }

    show_one(operate(context, work), output, name="id")


@app.command()
def prune(
    context: typer.Context,
    older_than: Annotated[str, typer.Option(help="How old an event must be, such as 400d or 104w.")],
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete events that are old enough; the log keeps their commitments and says what was deleted.

    Stopped half-way, it goes on when it is run again.
    """
    from clustercert.audit.retention import Retention
    from clustercert.model import utc_now
    from clustercert.store.evidence import EvidenceRows

    before = _ago(older_than)
    agreed(f"Events from before {time_text(before)} will be gone for good. Go on?", yes=yes)

    async def work(operator: Operator) -> int:
        retention = Retention(EvidenceRows(operator.parts.database), utc_now)
        pruned = 0
        while count := await retention.prune(before, **operator.who):
            pruned += count
        return pruned

    show_one({"deleted": operate(context, work), "before": before}, output, name="deleted")


@app.command()
def erase(
    context: typer.Context,
    event_id: EventArgument,
    why: Annotated[str, typer.Option(help="The reason, which the log keeps.")],
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete one event, for somebody's privacy; the log keeps its commitment and says that it was deleted."""
    from clustercert.audit.retention import Retention
    from clustercert.model import utc_now
    from clustercert.policy import is_plain_text
    from clustercert.store.evidence import EvidenceRows

    if not 1 <= len(why) <= _MAX_WHY or not is_plain_text(why):
        raise typer.BadParameter(f"give 1 to {_MAX_WHY} printable characters.", param_hint="--why")
    agreed(f"Event {event_id} will be gone for good. Go on?", yes=yes)

    async def work(operator: Operator) -> int:
        retention = Retention(EvidenceRows(operator.parts.database), utc_now)
        return await retention.erase(event_id, why, **operator.who)

    show_one({"id": event_id, "place": operate(context, work)}, output, name="id")


@app.command("check-certificates")
def check_certificates(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Check every stored certificate against its row, its CA and the policy's bounds; exit with 1 on a mismatch.

    A running service does the same in the background, and records what it finds.
    """
    from clustercert.audit.checking import CertificateChecker
    from clustercert.model import utc_now

    async def work(operator: Operator) -> tuple[int, list[Row]]:
        policy = operator.parts.settings.policy.policy()
        checker = CertificateChecker(operator.parts.database, policy, utc_now)
        count, position, rows = 0, 0, list[Row]()
        while True:
            checked, position = await checker.after(position, _PAGE)
            count += checked.count
            rows += [mismatch_row(mismatch) for mismatch in checked.mismatches]
            if checked.count < _PAGE:
                return count, rows

    count, rows = operate(context, work)
    if rows or output is not Output.TABLE:
        show_list(
            rows, output, columns=("fingerprint", "serial", "cluster_id", "problems"), name="fingerprint"
        )
    note(f"{count} certificates were checked; {len(rows)} of them are not what they should be.")
    if rows:
        raise typer.Exit(1)


def _verified_export(folder: Path, files: list[Path], key: str | None) -> "Report":
    import asyncio

    from clustercert.audit.export import VERIFIER_KEY, ExportedLog
    from clustercert.audit.verification import verify as verified

    if not folder.is_dir() or (key is None and not (folder / VERIFIER_KEY).is_file()):
        raise UnclearError(f"{folder} is no exported log: see `clustercert audit export`.")
    if key is None:
        note(
            f"The key is the one in {folder}: whoever made the folder chose it. Keep a copy and give it with --key."
        )
    verifier = verifier_key(key or str(folder / VERIFIER_KEY), None, str(folder))
    with notes_explained():
        return asyncio.run(verified(ExportedLog(folder), verifier, trusted_heads(files, verifier)))


def _check_room(folder: Path) -> None:
    """Raise UnclearError where other files lie than those of an export, finished or not."""
    from clustercert.audit.export import is_foreign

    if folder.exists() and (not folder.is_dir() or is_foreign(folder)):
        raise UnclearError(
            f"{folder} has something else in it than an exported log. Name a new or empty folder."
        )


async def _sealed(operator: Operator) -> None:
    """Seal what waits, so that it is shown; what can't be sealed isn't, and it's said."""
    try:
        await operator.parts.log_sealer.seal_all()
    except LogDamaged as damage:
        note(f"Warning: {damage.message}")


def _ago(older_than: str) -> "datetime":
    from clustercert.model import utc_now
    from clustercert.policy import parse_lifetime

    try:
        return utc_now() - parse_lifetime(older_than)
    except (ValueError, OverflowError):
        raise typer.BadParameter("write it like 400d, 12h or 104w.", param_hint="--older-than") from None
