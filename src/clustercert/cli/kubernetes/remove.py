"""`clustercert kubernetes remove`: writes the steps that remove clustercert from a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.kubernetes.administrator import AdministratorOptions
from clustercert.cli.kubernetes.selection import ClusterSelection, folder_of, for_each
from clustercert.cli.options import CommandError, UsageError, YesOption
from clustercert.cli.session import Operator
from clustercert.cli.terminal.output import print_note, write_out
from clustercert.cli.terminal.prompts import confirm

if TYPE_CHECKING:
    from clustercert.kubernetes.cluster_objects import ObjectReference
    from clustercert.model import Cluster


@on_store
async def remove(
    operator: Operator,
    selection: ClusterSelection,
    kubeconfig: AdministratorOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Existing folder that `setup` wrote. The command writes REMOVE.md into this folder.",
        ),
    ] = None,
    yes: YesOption = False,
) -> None:
    """Write the steps that remove clustercert from a cluster.

    REMOVE.md has the commands in the right order for the distribution. This command itself changes nothing in the
    cluster, and nothing in clustercert. For several clusters, it writes to the folders DIR/DOMAIN/PROJECT/CLUSTER.

    If the cluster's credentials are tokens, the command itself deletes all objects of clustercert from the cluster,
    with the kubeconfig of an administrator. All credentials of the cluster then end.

    Examples:
        clustercert kubernetes remove prod --out control-plane
        clustercert kubernetes remove dev --from-kubeconfig admin.conf
    """
    from clustercert.kubernetes.setup.removal import write_removal
    from clustercert.kubernetes.setup.values import SETUP

    chosen = await selection.clusters(operator)
    if kubeconfig.is_given or any(each.credential_kind == "token" for each in chosen):
        if len(chosen) > 1:
            raise UsageError("Name one cluster, because a kubeconfig is for one cluster.")
        await _remove_objects(operator, chosen[0], kubeconfig, yes=yes)
        return
    if out is None:
        raise UsageError("Give --out with the folder that `clustercert kubernetes setup` wrote.")
    if not selection.is_one and not any((out / folder_of(each) / SETUP).exists() for each in chosen):
        raise CommandError(
            f"{out} has no folder DOMAIN/PROJECT/CLUSTER with the {SETUP} of one of these clusters. This file has"
            " options that decide the steps, such as the distribution. Give the folder that `clustercert kubernetes"
            " setup` wrote for several clusters. If each cluster was set up into its own folder, run"
            " `clustercert kubernetes remove CLUSTER --out DIR` for each one."
        )

    folder = out

    async def write(cluster: "Cluster") -> None:
        path = write_removal(folder if selection.is_one else folder / folder_of(cluster), cluster)
        write_out(f"{path}\n")

    if selection.is_one:
        await write(chosen[0])
    else:
        await for_each(operator, chosen, write)
    print_note(f"Next: follow the steps in {'this file' if selection.is_one else 'these files'}.")


async def _remove_objects(
    operator: Operator, cluster: "Cluster", kubeconfig: AdministratorOptions, *, yes: bool
) -> None:
    """Show and delete all objects of this installation in a cluster whose credentials are tokens."""
    from clustercert.cli.cluster.token_access import print_references
    from clustercert.model.kubernetes import installation_id

    if cluster.credential_kind != "token":
        raise UsageError(
            "--from-kubeconfig is for clusters whose credentials are tokens. Give --out instead."
        )
    administrator = kubeconfig.administrator(cluster)
    if administrator is None:
        raise UsageError(
            f"The credentials of the cluster {cluster.name} are tokens. Give --from-kubeconfig with the kubeconfig of "
            "an administrator, with which the objects in the cluster are deleted."
        )
    installation = installation_id((await operator.components.log_sealer.verifier_key()).public_key)
    found = await administrator.call(installation, lambda installed: installed.everything())
    if not found:
        print_note(f"The cluster at {administrator.server} has nothing of this installation.")
    else:
        print_note(f"Objects in the cluster at {administrator.server}:")
        print_references(found)
        confirm(
            f"Delete these {len(found)} objects? All credentials of the cluster {cluster.name} end.", yes=yes
        )
        deleted: list[str] = []

        def report(reference: "ObjectReference", _result: str) -> None:
            deleted.append(str(reference))

        try:
            await administrator.call(installation, lambda installed: installed.delete(found, report))
        except BaseException:
            print_note(
                f"Deleted {len(deleted)} of {len(found)} objects. To go on, run the same command again."
            )
            raise
        print_note(f"Deleted {len(deleted)} objects.")
    print_note(f"Next: run `clustercert cluster remove {cluster.id}`.")
