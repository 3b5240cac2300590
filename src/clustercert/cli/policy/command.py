"""`clustercert policy`: checks the policy, and explains what it decides."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clustercert.cli.commands import on_policy
from clustercert.cli.lookup import clusters_of_caller, find_cluster, find_project
from clustercert.cli.options import (
    InProjectOption,
    PolicyFileOption,
    past_time,
)
from clustercert.cli.policy import explanation, replay
from clustercert.cli.session import settings
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Progress,
    Row,
    print_note,
    row_of,
    show_list,
    show_one,
)
from clustercert.client.connection import ApiError
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject


_MAX_NAMED = 20
_ACCESS_COLUMNS = ("groups", "rule", "longest", "needs", "unless")


@on_policy
def can(
    client: "AdministrationClient",
    group: Annotated[
        str, typer.Option(metavar="GROUP", help="Kubernetes group; * stands for any characters.")
    ],
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="CLUSTER",
            help="Cluster, by name, DOMAIN/PROJECT/CLUSTER or id. [default: all clusters of --project, or all]",
        ),
    ] = None,
    project: InProjectOption = None,
    since: Annotated[
        datetime,
        typer.Option(
            parser=past_time,
            metavar="TIME",
            help="Include users of OIDC issuers and Keystone who got a certificate since TIME: RFC 3339, or a duration"
            " before now such as 30d.",
        ),
    ] = "30d",  # type: ignore[assignment] # typer parses it
    output: OutputOption = Output.TABLE,
) -> None:
    """List who could get a certificate with a Kubernetes group, by which rule, and for how long at most.

    Without --cluster, searches one cluster after the other, because the policy can give each cluster different groups.
    Considers every request that a user could send. The column NEEDS shows what the request must have. The column
    UNLESS shows rules that refuse some of these requests. Only for operators and auditors.

    Examples:
        clustercert policy can --group system:masters
        clustercert policy can --group 'team:*' --cluster prod
    """
    clusters = [find_cluster(client, cluster, project)] if cluster else _all_clusters(client, project)
    rows: list[Row] = []
    skipped: list[str] = []
    left_out: dict[str, None] = {}
    with Progress("clusters searched", len(clusters)) as progress:
        for each in clusters:
            query = {"cluster": str(each["id"]), "group": group, "since": rfc3339(since)}
            try:
                with client.check_format():
                    for page in cast(
                        "Iterator[dict[str, Any]]", client.pages("/policy/entitlements", **query)
                    ):
                        rows += [row for user in page["users"] for row in _rows(each, user)]
                        left_out |= dict.fromkeys(page["left_out"])
            except ApiError as error:
                # In a search of all clusters, skip clusters whose certificates have no groups of the policy.
                if cluster is not None or error.http_status != HTTPStatus.CONFLICT:
                    raise
                skipped.append(error.message)
            progress.advance()
    rows.sort(key=lambda row: [str(row[field]) for field in ("user", "user_id", "cluster")])
    identity = ("user", "cluster") if cluster is None else ("user",)
    show_list(rows, output, columns=(*identity, *_ACCESS_COLUMNS), name="user")
    for message in skipped:
        print_note(f"Skipped: {message}")
    if left_out:
        named = ", ".join([*left_out][:_MAX_NAMED]) + (" and others" if len(left_out) > _MAX_NAMED else "")
        print_note(
            f"Left out {len(left_out)} users of OIDC issuers or Keystone who may be entitled too: the audit events that"
            f" the search reads have no request of these users. Their ids: {named}"
        )


def _all_clusters(client: "AdministrationClient", project: str | None) -> "list[JsonObject]":
    """List the clusters of a project, or of all projects."""
    owner = find_project(client, project)["id"] if project is not None else None
    return [each for each in clusters_of_caller(client) if owner in (None, each["project_id"])]


def _rows(cluster: "JsonObject", user: "dict[str, Any]") -> "Iterator[Row]":
    from clustercert.policy.lifetime import lifetime_text

    for each in user["entitlements"]:
        yield {
            "user": user["name"],
            "cluster": f"{cluster['domain']}/{cluster['project']}/{cluster['name']}",
            "cluster_id": cluster["id"],
            "user_id": user["id"],
            "issuer": user["issuer"],
            "seen_at": user["seen_at"],
            "groups": each["groups"],
            "rule": each["rule"],
            "longest": lifetime_text(timedelta(seconds=each["longest_seconds"])),
            "longest_seconds": each["longest_seconds"],
            "needs": each["needs"],
            "unless": each["unless"],
        }


_EXAMPLE_COLUMNS = ("name", "passed", "expected", "decided")

app = typer.Typer(name="policy", help="Check the policy, and explain what it decides.", no_args_is_help=True)


@app.command("test")
def check_policy(
    context: typer.Context, policy: PolicyFileOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Check a policy, and run its examples. Exits with status 1 if it is not valid or an example fails.

    Does not need the database.

    Examples:
        clustercert policy test --policy new-policy.toml
    """
    from clustercert.policy.decision import policy_digest
    from clustercert.policy.examples import run_examples

    loaded = settings(context, policy)
    tested = loaded.loaded_policy()
    results = list(run_examples(tested, loaded.policy.examples))
    rows = [row_of(result, "name", "passed", "expected", "decided") for result in results]
    failed = sum(not result.passed for result in results)
    if output in (Output.JSON, Output.YAML):
        rules = [rule.name for rule in tested.rules]
        show_one({"sha256": policy_digest(tested), "rules": rules, "examples": rows}, output)
    elif rows:
        # If examples failed, a table lists only the failed examples.
        shown = [row for row in rows if not row["passed"]] if failed and output is Output.TABLE else rows
        show_list(shown, output, columns=_EXAMPLE_COLUMNS, keep=_EXAMPLE_COLUMNS[2:] if failed else ())
    if output is Output.TABLE:
        print_note(f"The policy is valid: {len(tested.rules)} rules, SHA-256 {policy_digest(tested)}.")
        if policy is None:
            print_note("`clustercert db check` checks the other settings.")
        print_note(f"{len(rows)} examples, {failed} failed." if rows else "The policy has no examples.")
    if failed:
        raise typer.Exit(1)


app.command("explain")(explanation.explain_user)
app.command("can")(can)
app.command("replay")(replay.replay)
