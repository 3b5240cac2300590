"""`clustercert certificate`: what was issued, and what became of it."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clustercert.cli import access, revoking
from clustercert.cli import project as project_commands
from clustercert.cli.named import LEAST_DIGITS, certificate_of, cluster_id_of, user_id_of
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from collections.abc import Sequence

    from clustercert.store.inventory import Along, Listed, Wanted

app = typer.Typer(
    name="certificate",
    help="What was issued: list, show and revoke it, and see who can still get in.",
    no_args_is_help=True,
)

_AT_ONCE = 500
_COLUMNS = ("fingerprint", "state", "user_name", "cluster_id", "groups", "not_after", "last_seen_at")


State = Literal["live", "revoked", "expired"]
"""What a certificate is; revoked wins over expired."""

KeyOrigin = Literal["generated", "csr"]
"""Who made the key."""


def _time_option(help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar="TIME", help=f"{help_text} Else RFC 3339.")
    return option


CertificateArgument = Annotated[
    str,
    typer.Argument(
        metavar="CERTIFICATE",
        help=f"Its fingerprint, the first {LEAST_DIGITS} digits or more of it, its credential number or serial.",
    ),
]


@app.command("list")
def list_certificates(
    context: typer.Context,
    cluster: Annotated[
        str | None, typer.Option(metavar="CLUSTER", help="Only of this cluster, by name or id.")
    ] = None,
    project: Annotated[str | None, typer.Option(metavar="PROJECT", help="Only of this project.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Only of this user, by name or id.")
    ] = None,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    expires_before: Annotated[str | None, _time_option("Only what ends before; 7d: from now.")] = None,
    expires_after: Annotated[str | None, _time_option("Only what ends at or after; 7d: from now.")] = None,
    key_origin: Annotated[KeyOrigin | None, typer.Option(help="Only those whose key was made so.")] = None,
    seen_before: Annotated[str | None, _time_option("Only what was last seen before; 7d: ago.")] = None,
    seen_after: Annotated[str | None, _time_option("Only what was seen at or after; 7d: ago.")] = None,
    never_seen: Annotated[
        bool, typer.Option("--never-seen", help="Only those that no API server was asked with.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List certificates, the newest first."""
    now = datetime.now(UTC)
    times = {
        "expires_before": _time(expires_before, "--expires-before", now, ahead=True),
        "expires_after": _time(expires_after, "--expires-after", now, ahead=True),
        "seen_before": _time(seen_before, "--seen-before", now, ahead=False),
        "seen_after": _time(seen_after, "--seen-after", now, ahead=False),
    }

    async def work(operator: Operator) -> tuple[list[Row], bool]:
        from clustercert.inventory.rows import certificate_row
        from clustercert.store.inventory import Wanted

        wanted = Wanted(
            project_id=(await project_commands.find(operator, project)).id if project is not None else None,
            cluster_id=await cluster_id_of(operator, cluster, project),
            user_id=await user_id_of(operator, user),
            state=state,
            key_origin=key_origin,
            never_seen=never_seen,
            **times,
        )
        found, more = await _listed(operator, wanted, limit)
        return [certificate_row(each, now) for each in found], more

    rows, more = operate(context, work)
    show_list(rows, output, columns=_COLUMNS, name="fingerprint")
    if more:
        note(f"There are more than these {len(rows)}: say so with --limit, or narrow the list down.")


@app.command()
def show(
    context: typer.Context, certificate: CertificateArgument, output: OutputOption = Output.TABLE
) -> None:
    """Show a certificate. JSON and YAML have the certificate itself, too."""

    async def work(operator: Operator) -> Row:
        from clustercert.inventory.rows import certificate_row, whole_certificate_row

        found = await certificate_of(operator, certificate)
        row = certificate_row if output is Output.TABLE else whole_certificate_row
        return row(found, datetime.now(UTC))

    show_one(operate(context, work), output, name="fingerprint")


app.command("revoke")(revoking.revoke)
app.command("undo")(revoking.undo)
app.command("revocations")(revoking.revocations)
app.command("access")(access.show_access)
app.command("crl")(access.crl)


async def _listed(operator: Operator, wanted: "Wanted", limit: int) -> "tuple[Sequence[Listed], bool]":
    """At most so many, page by page; and whether there may be more."""
    found: list[Listed] = []
    before: int | None = None
    # Whoever is at the store may know of everybody's, so the fewest are looked through.
    along: Along | None = "user_id" if wanted.user_id else "cluster_id" if wanted.cluster_id else None
    while len(found) < limit:
        page = await operator.parts.inventory.rows.page(
            wanted, datetime.now(UTC), limit=min(limit - len(found), _AT_ONCE), before=before, along=along
        )
        found += page.items
        before = page.next
        if before is None:
            break
    return found, before is not None


def _time(text: str | None, option: str, now: datetime, *, ahead: bool) -> datetime | None:
    """A point in time, or a lifetime from now or ago. Raises typer.BadParameter."""
    from clustercert.policy import parse_lifetime

    if text is None:
        return None
    try:
        lifetime = parse_lifetime(text)
        return now + lifetime if ahead else now - lifetime
    except (ValueError, OverflowError):
        pass
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            raise ValueError("no offset")
        return time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "write it like 2027-01-31T18:00:00Z, or like 7d.", param_hint=option
        ) from None
