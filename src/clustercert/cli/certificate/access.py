"""`clustercert certificate access`: who has access to a cluster."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.lookup import cluster_path, find_cluster, find_user
from clustercert.cli.options import ClusterOption, InProjectOption, OnlyUserOption, ProjectDomainOption
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Row,
    paragraph,
    print_note,
    show_list,
    show_one,
    with_names,
    with_qualified_names,
    with_times,
    write_out,
)
from clustercert.model.enforcement import enforcement_text
from clustercert.model.refusals import REFUSAL_WORDS

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject
    from clustercert.model.choices import EnforcementState, RefusalState


def print_remaining_access(client: "AdministrationClient", body: "JsonObject") -> None:
    """Print which clusters may accept revoked certificates. `body` is the API's response with the user's clusters."""
    print_note("Clusters that enforce revocations refuse the certificates.")
    with client.check_format():
        clusters: Any = body["clusters"]
        for each in clusters:
            if each["refuses"] in ("writes", "none"):
                text = enforcement_text(each["enforcement"], None)
                print_note(f"{each['name']} ({each['id']}), certificates until {each['until']}: {text}")


_COLUMNS = (
    "certificate",
    "user",
    "state",
    "has_access",
    "not_after",
    "last_seen_at",
    "stopped_by",
    "groups",
    "fingerprint",
)
_USED_COLUMNS = ("certificate", "user", "used_after_revocation_at", "fingerprint")
_UNKNOWN_COLUMNS = ("username", "has_access", "certificate", "last_seen_at", "groups", "fingerprint")


@on_service
def show_access(
    client: "AdministrationClient",
    cluster: ClusterOption,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    user: OnlyUserOption = None,
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="List only members of this Kubernetes group.")
    ] = None,
    verifications: Annotated[
        bool,
        typer.Option(
            "--verifications", help="Include the certificates used to verify clusters and client CAs."
        ),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Explain how fast a revocation takes effect, and which access no revocation stops.",
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show who has access to a cluster. Only for operators, auditors and admins of the project.

    Also shows which mechanisms would enforce a revocation, and how fast. JSON and YAML contain the whole report, the
    other formats one line for each certificate that has not expired.

    Examples:
        clustercert certificate access --cluster prod
        clustercert certificate access --cluster prod --group team:blue --explain
    """
    found = find_cluster(client, cluster, project, domain)
    query: dict[str, str] = {}
    if user is not None:
        query["user"] = str(find_user(client, user, cluster=found)["id"])
    if group is not None:
        query["group"] = group
    if verifications:
        query["verifications"] = "true"
    report = _whole_report(client, cluster_path(found, "access"), query)
    if output in (Output.JSON, Output.YAML):
        show_one(report, output)
        return
    is_table = output is Output.TABLE
    rows = _certificate_rows(report, is_table=is_table)
    name = "certificate" if is_table else "fingerprint"
    columns = list(_COLUMNS)
    if any(each["refusal"] for each in rows):
        columns.append("refusal")
    if any(each["access_request_id"] for each in rows):
        # Show the rule that offers the access, and the id of the access request.
        place = columns.index("not_after") + 1
        columns[place:place] = ("rule", "access_request_id")
    show_list(rows, output, columns=columns, name=name, keep=("state", "user", "has_access", "not_after"))
    if is_table:
        if used := [each for each in rows if each["used_after_revocation_at"]]:
            write_out(
                "\nCertificates that were used after their revocation, because the API server did not "
                "refuse them:\n\n"
            )
            show_list(used, Output.TABLE, columns=_USED_COLUMNS, name="certificate", keep=_USED_COLUMNS[1:3])
        _print_summary(report)
        (_print_explanations if explain else _print_controls)(report)


def _whole_report(client: "AdministrationClient", path: str, query: Mapping[str, str]) -> "JsonObject":
    """Return the report with the users of all pages."""

    def page(cursor: str | None) -> "JsonObject":
        return client.get(path, **query, **({"cursor": cursor} if cursor is not None else {}))

    pages: Iterator[Any] = client.follow(page)
    with client.check_format():
        report = next(pages)
        for each in pages:
            report["users"] += each["users"]
            report["complete"] = report["complete"] and each["complete"]
        del report["next"]
    return cast("JsonObject", report)


def _certificate_rows(report: "JsonObject", *, is_table: bool) -> Sequence[Row]:
    rows = [
        {
            "user": user["user_name"],
            "user_domain": user["user_domain"],
            "user_id": user["user_id"],
            **credential,
        }
        for user in cast("list[JsonObject]", report["users"])
        for credential in cast("list[JsonObject]", user["credentials"])
    ]
    if not is_table:
        return [with_times(each) for each in rows]
    for each in rows:
        if (refusal := cast("RefusalState | None", each["refusal"])) is not None:
            each["refusal"] = REFUSAL_WORDS[refusal].label
    return with_qualified_names([with_names(each) for each in rows], "user", "user_domain")


def _print_summary(report: "JsonObject") -> None:
    """Print certificates from other issuers, and Kubernetes groups."""
    if not report["complete"]:
        print_note("The list of certificates is not complete. Filter the list with --user.")
    if number := report["verifications"]:
        print_note(
            f"Left out {number} certificates used to verify clusters and client CAs. To list them, add --verifications."
        )
    if unknown := [with_names(each) for each in cast("list[JsonObject]", report["unknown_credentials"])]:
        write_out("\nClient certificates from other issuers that were used at the API server:\n\n")
        show_list(
            unknown,
            Output.TABLE,
            columns=_UNKNOWN_COLUMNS,
            name="username",
            keep=("has_access", "last_seen_at"),
        )
    if groups := [with_times(each) for each in cast("list[JsonObject]", report["groups"])]:
        write_out("\nKubernetes groups in these certificates:\n\n")
        show_list(groups, Output.TABLE, columns=("name", "users", "credentials", "last_seen_at"))


def _print_controls(report: "JsonObject") -> None:
    """Print which controls enforce revocations."""
    controls = cast("list[JsonObject]", report["controls"])
    missing = ", ".join(str(each["name"]) for each in controls if not each["set_up"])
    not_set_up = f" Not set up: {missing}." if missing else ""
    write_out("\n")
    paragraph(f"{_enforcement(report)}{not_set_up} For details, add --explain.")
    for each in controls:
        if each["lacking"]:
            paragraph(f"{each['name']}: {each['lacking']}")


def _enforcement(report: "JsonObject") -> str:
    return enforcement_text(
        cast("EnforcementState", report["enforcement"]), cast("str | None", report["webhook_called_at"])
    )


def _print_explanations(report: "JsonObject") -> None:
    """Print how each control stops a revoked certificate, and which access no revocation can stop."""
    write_out("\n")
    paragraph(_enforcement(report))
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
