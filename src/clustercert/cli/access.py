"""`clustercert certificate access|crl`: who can still get into a cluster, and its revocation list."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli.cluster import InProjectOption
from clustercert.cli.named import user_id_of
from clustercert.cli.output import Output, OutputOption, Row, answer, note, paragraph, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import JsonObject

# It takes a minute or so, and nobody else waits for it.
MAX_CREDENTIALS = 500_000

ClusterOption = Annotated[str, typer.Option("--cluster", metavar="CLUSTER", help="Which, by name or id.")]

_COLUMNS = ("user", "fingerprint", "state", "gets_in", "not_after", "last_seen_at", "groups", "stopped_by")


def show_access(
    context: typer.Context,
    cluster: ClusterOption,
    project: InProjectOption = None,
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Only this user, by name, or id if they are gone.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Only members of this Kubernetes group.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show who can still get into a cluster, what stops them and how fast, and what goes on all the same.

    JSON and YAML have everything; the other forms have a line for each certificate that has not ended.
    """

    async def work(operator: Operator) -> "JsonObject":
        from clustercert.inventory.rows import report_row

        registered = await cluster_commands.find(operator, cluster, project)
        report = await operator.parts.inventory.access.report(
            registered, user_id=await user_id_of(operator, user), group=group, most=MAX_CREDENTIALS
        )
        return report_row(report)

    report = operate(context, work)
    if output in (Output.JSON, Output.YAML):
        show_one(report, output)
        return
    show_list(_lines(report), output, columns=_COLUMNS, name="fingerprint")
    if output is Output.TABLE:
        _explain(report)


def crl(
    context: typer.Context,
    cluster: ClusterOption,
    project: InProjectOption = None,
    ca: Annotated[
        str | None, typer.Option(metavar="ID", help="Of this client CA. [default: the one that signs]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there. [default: standard output]")
    ] = None,
) -> None:
    """Print the certificate revocation list of a client CA, PEM. kube-apiserver reads none; other verifiers do."""

    async def work(operator: Operator) -> bytes:
        from clustercert.crl import crl_pem

        registered = await cluster_commands.find(operator, cluster, project)
        made = await operator.parts.crls.crl(registered.id, ca or registered.client_ca.id)
        return crl_pem(made.der)

    pem = operate(context, work)
    if out is None:
        answer(pem.decode())
    else:
        out.write_bytes(pem)
        note(f"Wrote {out}.")


def _lines(report: "JsonObject") -> list[Row]:
    """A row for each certificate."""
    holders = cast("list[dict[str, object]]", report["users"])
    return [
        {"user": holder["user_name"], "user_id": holder["user_id"], **credential}
        for holder in holders
        for credential in cast("list[dict[str, object]]", holder["credentials"])
    ]


def _explain(report: "JsonObject") -> None:
    """The rest of the report, for people."""
    if not report["complete"]:
        note("There are more certificates than these: narrow it down with --user.")
    if unknown := cast("list[Row]", report["unknown_credentials"]):
        answer("\nClient certificates that the API server saw and that were not issued here:\n\n")
        show_list(unknown, Output.TABLE, columns=("username", "fingerprint", "groups", "last_seen_at"))
    if groups := cast("list[Row]", report["groups"]):
        answer("\nKubernetes groups that they get in with:\n\n")
        show_list(groups, Output.TABLE, columns=("name", "users", "credentials", "last_seen_at"))
    answer("\nWhat stops a certificate once it is revoked, and how fast:\n\n")
    for way in cast("list[dict[str, str]]", report["ways_to_stop"]):
        set_up = "" if way["set_up"] else " (not set up)"
        lacking = f" {way['lacking']}" if way["lacking"] else ""
        paragraph(f"{way['name']}{set_up}:{lacking} {way['within']} Does not stop: {way['does_not_stop']}")
    answer("\nWhat goes on all the same:\n\n")
    for sentence in cast("list[str]", report["what_remains"]):
        paragraph(f"- {sentence}")
