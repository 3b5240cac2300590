"""`clustercert certificate`: issued certificates."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import access, revoke
from clustercert.cli.commands import on_service
from clustercert.cli.options import (
    MAX_LINES,
    MIN_DIGITS,
    ListLimitOption,
    OnlyClusterOption,
    OnlyProjectOption,
    OnlyUserOption,
    future_time,
    past_time,
)
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.model.choices import CertificateState, KeyOrigin

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient

app = typer.Typer(
    name="certificate",
    help="List, show and revoke certificates, and see who has access.",
    no_args_is_help=True,
)

_TABLE_LINES = 100
_COLUMNS = (
    "certificate",
    "state",
    "user_name",
    "cluster",
    "not_after",
    "last_seen_at",
    "project",
    "groups",
    "fingerprint",
)
AllOption = Annotated[
    bool, typer.Option("--all", help="List all certificates that you may see, not only yours.")
]


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """The options that filter a list of certificates by their properties. Their names are those of the API."""

    state: Annotated[CertificateState | None, typer.Option(help="List only this state.")] = None
    expires_before: Annotated[
        datetime | None,
        typer.Option(
            parser=future_time, metavar="TIME", help="Expires before TIME: RFC 3339, or 7d from now."
        ),
    ] = None
    expires_after: Annotated[
        datetime | None, typer.Option(parser=future_time, metavar="TIME", help="Expires at or after TIME.")
    ] = None
    key_origin: Annotated[
        KeyOrigin | None,
        typer.Option(help="List only certificates with a key from the service, or only those from a CSR."),
    ] = None
    seen_before: Annotated[
        datetime | None,
        typer.Option(parser=past_time, metavar="TIME", help="Last used before TIME: RFC 3339, or 7d ago."),
    ] = None
    seen_after: Annotated[
        datetime | None, typer.Option(parser=past_time, metavar="TIME", help="Last used at or after TIME.")
    ] = None
    never_seen: Annotated[
        bool, typer.Option("--never-seen", help="List only certificates never used at an API server.")
    ] = False

    def query(self) -> dict[str, str]:
        """Return the parameters of the request."""
        from clustercert.model.times import rfc3339

        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: rfc3339(value) if isinstance(value, datetime) else str(value).lower()
            for name, value in given.items()
            if value is not None and value is not False
        }


@app.command("list")
@on_service
def list_certificates(
    client: "AdministrationClient",
    filters: FilterOptions,
    everything: AllOption = False,
    cluster: OnlyClusterOption = None,
    project: OnlyProjectOption = None,
    user: OnlyUserOption = None,
    limit: ListLimitOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List your certificates, newest first.

    With --cluster, --project, --user or --all: those that you may see. Operators and admins of a project see those of
    all users.
    """
    from clustercert.cli import certificate_search
    from clustercert.cli.output import with_names, with_times

    # Programs read the other formats, and would mistake a partial list for the complete one.
    limit = limit or (_TABLE_LINES if output is Output.TABLE else MAX_LINES)
    scope = certificate_search.Scope(everything, cluster, project, user)
    found, more = certificate_search.search_certificates(client, scope, filters.query(), limit)
    is_table = output is Output.TABLE
    rows = [with_names(each) if is_table else with_times(each) for each in found]
    show_list(rows, output, columns=_COLUMNS, name="certificate" if is_table else "fingerprint")
    if more:
        note(f"Only the first {len(rows)} are listed. Raise --limit, or filter the list.")


@app.command()
@on_service
def show(
    client: "AdministrationClient",
    certificate: Annotated[
        str,
        typer.Argument(
            metavar="CERTIFICATE",
            help=f"Fingerprint or its first {MIN_DIGITS} digits, credential number or serial.",
        ),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a certificate. JSON and YAML also contain the PEM."""
    from clustercert.cli.certificate_search import find_certificate
    from clustercert.cli.output import with_times

    found, _ = find_certificate(client, certificate)
    row = with_times(found)
    if output is Output.TABLE:
        del row["pem"]
    show_one(row, output, name="fingerprint")


app.command("revoke")(revoke.revoke)
app.command("undo")(revoke.undo)
app.command("revocations")(revoke.revocations)
app.command("access")(access.show_access)
app.command("crl")(access.crl)
