"""`clustercert certificate access|crl`: the access report and the CRL of a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import ClusterOption, InProjectOption, OnlyUserOption
from clustercert.cli.output import Output, OutputOption, Row, note, paragraph, show_list, show_one, write_out
from clustercert.cli.session import Operator

if TYPE_CHECKING:
    from clustercert.model import JsonObject

# A report of this size takes about a minute. Only this command waits for it, so no smaller limit is needed.
MAX_CREDENTIALS = 500_000

_COLUMNS = ("user", "fingerprint", "state", "has_access", "not_after", "last_seen_at", "groups", "stopped_by")

_UNKNOWN_COLUMNS = ("username", "has_access", "fingerprint", "groups", "last_seen_at")


@on_store
async def show_access(
    operator: Operator,
    cluster: ClusterOption,
    project: InProjectOption = None,
    user: OnlyUserOption = None,
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="List only members of this Kubernetes group.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show who has access to a cluster.

    Also shows which mechanisms would enforce a revocation, and how fast. JSON and YAML contain the whole report, the
    other formats one line for each certificate that has not expired.
    """
    from clustercert.http.api.inventory_rows import report_row

    registered = await operator.cluster(cluster, project)
    user_id = await operator.user_id(user) if user is not None else None
    access = operator.parts.inventory.access
    report = report_row(await access.report(registered, user_id=user_id, group=group, most=MAX_CREDENTIALS))
    if output in (Output.JSON, Output.YAML):
        show_one(report, output)
        return
    show_list(_certificate_rows(report), output, columns=_COLUMNS, name="fingerprint")
    if output is Output.TABLE:
        _print_explanations(report)


@on_store
async def crl(
    operator: Operator,
    cluster: ClusterOption,
    project: InProjectOption = None,
    ca: Annotated[str | None, typer.Option(metavar="ID", help="Client CA. [default: the active one]")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. [default: standard output]")
    ] = None,
) -> None:
    """Print the certificate revocation list of a client CA (PEM).

    kube-apiserver does not read CRLs; other verifiers do.
    """
    from clustercert.pki.crl import crl_pem

    registered = await operator.cluster(cluster, project)
    made = await operator.parts.crls.crl(registered.id, ca or registered.client_ca.id)
    pem = crl_pem(made.der)
    if out is None:
        write_out(pem.decode())
    else:
        out.write_bytes(pem)
        note(f"Wrote {out}.")


def _certificate_rows(report: "JsonObject") -> list[Row]:
    users = cast("list[dict[str, object]]", report["users"])
    return [
        {"user": user["user_name"], "user_id": user["user_id"], **credential}
        for user in users
        for credential in cast("list[dict[str, object]]", user["credentials"])
    ]


def _print_explanations(report: "JsonObject") -> None:
    if not report["complete"]:
        note("Not all certificates are listed. Filter them with --user.")
    if unknown := cast("list[Row]", report["unknown_credentials"]):
        write_out("\nClient certificates from other issuers, used at the API server:\n\n")
        show_list(unknown, Output.TABLE, columns=_UNKNOWN_COLUMNS)
    if groups := cast("list[Row]", report["groups"]):
        write_out("\nKubernetes groups in these certificates:\n\n")
        show_list(groups, Output.TABLE, columns=("name", "users", "credentials", "last_seen_at"))
    write_out("\nControls that stop a revoked certificate, and how fast:\n\n")
    for control in cast("list[dict[str, str]]", report["controls"]):
        set_up = "" if control["set_up"] else " (not set up)"
        lacking = f" {control['lacking']}" if control["lacking"] else ""
        paragraph(
            f"{control['name']}{set_up}:{lacking} {control['within']} Does not stop: {control['does_not_stop']}"
        )
    write_out("\nNot stopped by any revocation:\n\n")
    for sentence in cast("list[str]", report["residual_risks"]):
        paragraph(f"- {sentence}")
