"""`clustercert policy`: checks the policy, and explains what it decides."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clustercert.cli.commands import on_policy
from clustercert.cli.lookup import find_cluster
from clustercert.cli.options import (
    ClusterOption,
    InProjectOption,
    PolicyFileOption,
    past_time,
)
from clustercert.cli.output import (
    Output,
    OutputOption,
    Row,
    print_note,
    row_of,
    show_list,
    show_one,
)
from clustercert.cli.policy import explanation, replay
from clustercert.cli.session import settings
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clustercert.client.administration import AdministrationClient


_MAX_NAMED = 20
_ACCESS_COLUMNS = ("user", "groups", "rule", "longest", "needs", "unless")


@on_policy
def can(
    client: "AdministrationClient",
    group: Annotated[
        str, typer.Option(metavar="GROUP", help="Kubernetes group; * stands for any characters.")
    ],
    cluster: ClusterOption,
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

    Considers every request that a user could send. The column NEEDS shows what the request must have. The column
    UNLESS shows rules that refuse some of these requests. Only for operators and auditors.
    """
    found = find_cluster(client, cluster, project)
    query = {"cluster": str(found["id"]), "group": group, "since": rfc3339(since)}
    rows: list[Row] = []
    left_out: list[str] = []
    with client.check_format():
        for page in cast("Iterator[dict[str, Any]]", client.pages("/policy/entitlements", **query)):
            rows += [row for user in page["users"] for row in _rows(user)]
            left_out += page["left_out"]
    rows.sort(key=lambda row: (str(row["user"]), str(row["user_id"])))
    show_list(rows, output, columns=_ACCESS_COLUMNS, name="user")
    if left_out:
        named = ", ".join(left_out[:_MAX_NAMED]) + (" and others" if len(left_out) > _MAX_NAMED else "")
        print_note(
            f"Left out {len(left_out)} users of OIDC issuers or Keystone who may be entitled too: the audit events that"
            f" the search reads have no request of these users. Their ids: {named}"
        )


def _rows(user: "dict[str, Any]") -> "Iterator[Row]":
    from clustercert.policy.lifetime import lifetime_text

    for each in user["entitlements"]:
        yield {
            "user": user["name"],
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
    """Check a policy, and run its examples. Exit with 1 if it is not valid or an example fails.

    Does not need the database.
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
        print_note(f"{len(rows)} examples, {failed} failed." if rows else "The policy has no examples.")
    if failed:
        raise typer.Exit(1)


app.command("explain")(explanation.explain_user)
app.command("can")(can)
app.command("replay")(replay.replay)
