"""`clustercert certificate`: issued certificates."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import access, revoke
from clustercert.cli.commands import on_store
from clustercert.cli.options import (
    MAX_LINES,
    ListLimitOption,
    OnlyClusterOption,
    OnlyProjectOption,
    OnlyUserOption,
    future_time,
    past_time,
)
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.session import MIN_DIGITS, Operator
from clustercert.model.choices import CertificateState, KeyOrigin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clustercert.store.certificate_view import CertificateView
    from clustercert.store.inventory import CertificateFilter, Scope

app = typer.Typer(
    name="certificate",
    help="List, show and revoke certificates, and see who has access.",
    no_args_is_help=True,
)

_PAGE_SIZE, _TABLE_LINES = 500, 100
_COLUMNS = ("fingerprint", "state", "user_name", "cluster_id", "groups", "not_after", "last_seen_at")


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """The options that filter a list of certificates."""

    cluster: OnlyClusterOption = None
    project: OnlyProjectOption = None
    user: OnlyUserOption = None
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

    async def find(self, operator: Operator) -> "CertificateFilter":
        """Build the filter, with ids instead of names. Raises NotFound if no object has a given name."""
        from clustercert.store.inventory import CertificateFilter

        given = asdict(self)
        project, cluster, user = (given.pop(name) for name in ("project", "cluster", "user"))
        return CertificateFilter(
            **given,
            project_id=(await operator.project(project)).id if project is not None else None,
            cluster_id=await operator.cluster_id(cluster, project) if cluster is not None else None,
            user_id=await operator.user_id(user) if user is not None else None,
        )


@app.command("list")
@on_store
async def list_certificates(
    operator: Operator,
    filters: FilterOptions,
    limit: ListLimitOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List certificates, newest first."""
    from clustercert.http.api.inventory_rows import certificate_row

    # Programs read the other formats, and would mistake a partial list for the complete one.
    limit = limit or (_TABLE_LINES if output is Output.TABLE else MAX_LINES)
    found, more = await _read_pages(operator, await filters.find(operator), limit)
    now = datetime.now(UTC)
    rows = [certificate_row(each, now) for each in found]
    show_list(rows, output, columns=_COLUMNS, name="fingerprint")
    if more:
        note(f"Only the first {len(rows)} are listed. Raise --limit, or filter the list.")


@app.command()
@on_store
async def show(
    operator: Operator,
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
    from clustercert.http.api.inventory_rows import certificate_row, whole_certificate_row

    found = await operator.certificate(certificate)
    row = certificate_row if output is Output.TABLE else whole_certificate_row
    show_one(row(found, datetime.now(UTC)), output, name="fingerprint")


app.command("revoke")(revoke.revoke)
app.command("undo")(revoke.undo)
app.command("revocations")(revoke.revocations)
app.command("access")(access.show_access)
app.command("crl")(access.crl)


async def _read_pages(
    operator: Operator, filters: "CertificateFilter", limit: int
) -> "tuple[Sequence[CertificateView], bool]":
    """Read at most `limit` certificates. Also returns whether there may be more."""
    found: list[CertificateView] = []
    before: int | None = None
    scope: Scope | None = "user_id" if filters.user_id else "cluster_id" if filters.cluster_id else None
    while len(found) < limit:
        page = await operator.parts.inventory.queries.page(
            filters, datetime.now(UTC), limit=min(limit - len(found), _PAGE_SIZE), before=before, scope=scope
        )
        found += page.items
        before = page.next
        if before is None:
            break
    return found, before is not None
