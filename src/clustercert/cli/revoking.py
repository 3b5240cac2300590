"""`clustercert certificate revoke|undo|revocations`: take back what was issued."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli.asking import agreed
from clustercert.cli.cluster import InProjectOption
from clustercert.cli.named import certificate_of, user_id_of
from clustercert.cli.options import YesOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import Cluster, Revocation
    from clustercert.revocation import Grounds

_COLUMNS = ("id", "at", "by", "user_id", "cluster_id", "fingerprint", "reason", "undone_at")


Reason = Literal["unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"]
"""As in RFC 5280."""

UserOption = Annotated[
    str | None,
    typer.Option(
        "--user", metavar="USER", help="All that this user was given; by name, or id if they are gone."
    ),
]


def revoke(
    context: typer.Context,
    certificate: Annotated[
        str | None,
        typer.Argument(
            metavar="[CERTIFICATE]",
            help="One, by fingerprint, 8 digits of it or more, credential number or serial.",
        ),
    ] = None,
    user: UserOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="CLUSTER", help="In this cluster; without --user, all that was issued for it."),
    ] = None,
    project: InProjectOption = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="With --user: in all clusters.")] = False,
    reason: Annotated[
        Reason, typer.Option(help="What is revoked for keyCompromise can't be undone.")
    ] = "unspecified",
    note_text: Annotated[
        str | None, typer.Option("--note", metavar="TEXT", help="Why, for the audit.")
    ] = None,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Revoke one certificate, or all of a user or a cluster. What is asked for afterwards is good.

    What the cluster's API server does about it depends on how the cluster is set up: see `clustercert certificate
    access`.
    """
    _check(certificate, user, cluster, everywhere=everywhere)
    if certificate is None:
        whose = f"the user {user}" if user is not None else "everybody"
        where = f"the cluster {cluster}" if cluster is not None else "every cluster"
        agreed(f"Revoke all certificates of {whose} in {where}?", yes=yes)

    async def work(operator: Operator) -> tuple[Row, str]:
        from clustercert.revocation import Grounds

        grounds = Grounds(reason, note_text)
        if certificate is not None:
            made, registered = await _one(operator, certificate, grounds)
        else:
            registered = await cluster_commands.find(operator, cluster, project) if cluster else None
            made = await operator.parts.revoking.all_of(
                grounds, user_id=await user_id_of(operator, user), cluster=registered, **operator.who
            )
        return _row(operator, made), await _hint(operator, made, registered)

    row, hint = operate(context, work)
    show_one(row, output, name="id")
    note(hint)


def undo(
    context: typer.Context,
    revocation: Annotated[int, typer.Argument(metavar="REVOCATION", help="Its id.", min=1, max=2**63 - 1)],
    output: OutputOption = Output.TABLE,
) -> None:
    """Undo a revocation, for a while after it; never one for keyCompromise, or one that the key's holder made."""

    async def work(operator: Operator) -> Row:
        undone = await operator.parts.revoking.undo(revocation, **operator.who)
        return _row(operator, undone)

    show_one(operate(context, work), output, name="id")


def revocations(
    context: typer.Context,
    cluster: Annotated[
        str | None, typer.Option(metavar="CLUSTER", help="Those in this cluster, by name or id.")
    ] = None,
    project: InProjectOption = None,
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Those of this user in all clusters.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List revocations, undone ones too, the newest first."""
    if (cluster is None) == (user is None):
        raise typer.BadParameter("say which with --cluster or --user.")

    async def work(operator: Operator) -> list[Row]:
        rows = operator.parts.revoking.rows
        if cluster is not None:
            registered = await cluster_commands.find(operator, cluster, project)
            found = await rows.of_cluster(registered.project_id, registered.id, limit=limit)
        else:
            found = await rows.of_user(await user_id_of(operator, user) or "", limit=limit)
        return [_row(operator, each) for each in found]

    show_list(operate(context, work), output, columns=_COLUMNS, name="id")


def _check(certificate: str | None, user: str | None, cluster: str | None, *, everywhere: bool) -> None:
    """Raises typer.BadParameter unless exactly one thing is meant."""
    if certificate is not None and (user is not None or cluster is not None or everywhere):
        raise typer.BadParameter("name a certificate, or say --user and --cluster; not both.")
    if everywhere and (user is None or cluster is not None):
        raise typer.BadParameter("--everywhere goes with --user, and without --cluster.")
    if certificate is None and cluster is None and not everywhere:
        raise typer.BadParameter(
            "name a certificate, or say --cluster CLUSTER, or --user USER with --cluster or --everywhere."
        )


async def _one(operator: Operator, name: str, grounds: "Grounds") -> "tuple[Revocation, Cluster | None]":
    listed = await certificate_of(operator, name)
    revoking, clusters = operator.parts.revoking, operator.parts.clusters.rows
    found = await revoking.find(listed.fingerprint.hex())
    made = await revoking.one(found, grounds, **operator.who)
    return made, await clusters.cluster(listed.project_id, listed.cluster_id)


async def _hint(operator: Operator, made: "Revocation", cluster: "Cluster | None") -> str:
    """What the operator should know now."""
    undoing = (
        f" Undo it with `clustercert certificate undo {made.id}`, for a while."
        if operator.parts.revoking.can_undo(made)
        else ""
    )
    if cluster is None:
        return f"Revoked. Clusters that are set up for it refuse it within seconds.{undoing}"
    ways = await operator.parts.inventory.access.ways(cluster)
    quick = [way for way in ways if way.set_up and way.name not in ("ca", "expiry")]
    if not quick:
        lacking = next((way.lacking for way in ways if way.lacking), "See `clustercert kubernetes setup`.")
        return (
            f"Revoked, but nothing is set up in the cluster {cluster.name} that would refuse it: it gets in until it"
            f" ends. {lacking}{undoing}"
        )
    names = " and ".join(way.name for way in quick)
    return (
        f"Revoked. The cluster {cluster.name} is set up to refuse it ({names}) within seconds, if its API server has"
        f" the files: `clustercert kubernetes verify` proves it.{undoing}"
    )


def _row(operator: Operator, revocation: "Revocation") -> Row:
    from clustercert.web.revocation_bodies import revocation_body

    return revocation_body(revocation, can_be_undone=operator.parts.revoking.can_undo(revocation))
