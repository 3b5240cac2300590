"""`clustercert certificate revoke|undo|revocations`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import InProjectOption, LimitOption, OnlyClusterOption, OnlyUserOption, YesOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.prompts import confirm
from clustercert.cli.session import MIN_DIGITS, Operator
from clustercert.model.choices import RevocationReason
from clustercert.model.errors import NotFound

if TYPE_CHECKING:
    from clustercert.model import Cluster, Revocation
    from clustercert.revocation.reasons import Reason

_COLUMNS = ("id", "at", "by", "user_id", "cluster_id", "fingerprint", "reason", "undone_at")


@dataclass(frozen=True, slots=True)
class ScopeOptions:
    """The options that select one certificate, or all certificates of a user or a cluster."""

    certificate: Annotated[
        str | None,
        typer.Argument(
            metavar="[CERTIFICATE]",
            help=f"Fingerprint or its first {MIN_DIGITS} digits, credential number or serial.",
        ),
    ] = None
    user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Revoke all certificates of a user, by name or id."),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER", help="Revoke only in this cluster; without --user, all its certificates."
        ),
    ] = None
    project: InProjectOption = None
    everywhere: Annotated[bool, typer.Option("--everywhere", help="With --user: revoke in all clusters.")] = (
        False
    )

    def __post_init__(self) -> None:
        if self.certificate is not None and (
            self.user is not None or self.cluster is not None or self.everywhere
        ):
            raise typer.BadParameter("Give either a certificate, or --user and --cluster.")
        if self.everywhere and (self.user is None or self.cluster is not None):
            raise typer.BadParameter("--everywhere requires --user and excludes --cluster.")
        if self.certificate is None and self.cluster is None and not self.everywhere:
            raise typer.BadParameter(
                "Name a certificate, or give --cluster CLUSTER, or --user USER with --cluster or --everywhere."
            )

    async def revoke(
        self, operator: Operator, reason: "Reason", *, yes: bool
    ) -> "tuple[Revocation, Cluster | None]":
        """Revoke the selected certificates. Returns the revocation and its cluster, or `None` for all clusters.

        Asks for confirmation unless `yes` is set or only one certificate is selected.
        """
        recorder, actor = operator.parts.revocation.recorder, operator.actor
        if self.certificate is not None:
            view = await operator.certificate(self.certificate)
            revocation = await recorder.revoke_certificate(view, reason, actor=actor)
            return revocation, await operator.parts.clusters.queries.cluster(view.project_id, view.cluster_id)
        cluster = await operator.cluster(self.cluster, self.project) if self.cluster is not None else None
        user_id = await operator.user_id(self.user) if self.user is not None else None
        confirm(await _question(operator, user_id, cluster), yes=yes)
        return await recorder.revoke_scope(reason, user_id=user_id, cluster=cluster, actor=actor), cluster


@on_store
async def revoke(
    operator: Operator,
    scope: ScopeOptions,
    reason: Annotated[
        RevocationReason,
        typer.Option(
            metavar="REASON",
            help="unspecified, keyCompromise (can't be undone), affiliationChanged, superseded or "
            "cessationOfOperation (RFC 5280).",
        ),
    ] = "unspecified",
    note_text: Annotated[
        str | None, typer.Option("--note", metavar="TEXT", help="Explanation, for the audit log.")
    ] = None,
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Revoke one certificate, or all certificates of a user or a cluster. Certificates issued later stay valid.

    How the API server enforces it depends on the cluster: see `clustercert certificate access`.
    """
    from clustercert.revocation.reasons import Reason

    revocation, cluster = await scope.revoke(operator, Reason(reason, note_text), yes=yes)
    show_one(_row(operator, revocation), output, name="id")
    note(await _effect(operator, revocation, cluster))


@on_store
async def undo(
    operator: Operator,
    revocation: Annotated[
        int, typer.Argument(metavar="REVOCATION", help="Id of the revocation.", min=1, max=2**63 - 1)
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Undo a recent revocation.

    A revocation for keyCompromise, or by the holder of the key, can't be undone.
    """
    undone = await operator.parts.revocation.recorder.undo(revocation, actor=operator.actor)
    show_one(_row(operator, undone), output, name="id")


@on_store
async def revocations(
    operator: Operator,
    cluster: OnlyClusterOption = None,
    project: InProjectOption = None,
    user: OnlyUserOption = None,
    limit: LimitOption = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List revocations, newest first, including undone ones."""
    queries = operator.parts.revocation.recorder.queries
    if cluster is not None and user is None:
        registered = await operator.cluster(cluster, project)
        found = await queries.of_cluster(registered.project_id, registered.id, limit=limit)
    elif user is not None and cluster is None:
        found = await queries.of_user(await operator.user_id(user), limit=limit)
    else:
        raise typer.BadParameter("Give either --cluster or --user.")
    show_list([_row(operator, each) for each in found], output, columns=_COLUMNS, name="id")


async def _question(operator: Operator, user_id: str | None, cluster: "Cluster | None") -> str:
    """Ask about what was found, because a name may find another user or cluster than the operator means."""
    from clustercert.model import utc_now

    cluster_id = cluster.id if cluster is not None else None
    live = await operator.parts.certificates.count_live(utc_now(), user_id=user_id, cluster_id=cluster_id)
    owner = f"the user {await _name_and_id(operator, user_id)}" if user_id is not None else "all users"
    where = f"the cluster {cluster.name} ({cluster.id})" if cluster is not None else "every cluster"
    return f"Revoke all certificates of {owner} in {where} ({live} live)?"


async def _name_and_id(operator: Operator, user_id: str) -> str:
    """Return the user's name and id, or only the id of a deleted user."""
    try:
        return f"{(await operator.user(user_id)).name} ({user_id})"
    except NotFound:
        return user_id


async def _effect(operator: Operator, revocation: "Revocation", cluster: "Cluster | None") -> str:
    """Describe the effect of the revocation and how to undo it."""
    undo_hint = ""
    if operator.parts.revocation.recorder.can_undo(revocation):
        undo_hint = f" To undo it soon, run `clustercert certificate undo {revocation.id}`."
    if cluster is None:
        return f"Revoked. Clusters that enforce revocations refuse them within seconds.{undo_hint}"
    controls = await operator.parts.inventory.access.controls(cluster)
    fast = [control for control in controls if control.set_up and control.name not in ("ca", "expiry")]
    if not fast:
        lacking = next(
            (each.lacking for each in controls if each.lacking), "See `clustercert kubernetes setup`."
        )
        return (
            f"Revoked, but the cluster {cluster.name} does not enforce revocations: it accepts the certificate until "
            f"expiry. {lacking}{undo_hint}"
        )
    names = " and ".join(control.name for control in fast)
    effect = f"refuses it within seconds ({names})"
    if names == "admission":
        effect = "refuses its writes within seconds (admission), but still allows it to read until expiry"
    return (
        f"Revoked. The cluster {cluster.name} {effect}, if its API server is configured. "
        f"Check that with `clustercert kubernetes verify`.{undo_hint}"
    )


def _row(operator: Operator, revocation: "Revocation") -> Row:
    from clustercert.http.api.revocation_bodies import revocation_body

    return revocation_body(revocation, operator.parts.revocation.recorder)
