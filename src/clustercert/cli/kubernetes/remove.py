"""`clustercert kubernetes remove`: writes the steps that remove clustercert from a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.kubernetes.selection import ClusterSelection, folder_of, for_each
from clustercert.cli.options import CommandError
from clustercert.cli.session import Operator
from clustercert.cli.terminal.output import print_note, write_out

if TYPE_CHECKING:
    from clustercert.model import Cluster


@on_store
async def remove(
    operator: Operator,
    selection: ClusterSelection,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Existing folder, which `setup` wrote. REMOVE.md is written into it.",
        ),
    ],
) -> None:
    """Write the steps with which clustercert leaves a cluster.

    REMOVE.md has the commands in the right order for the distribution. This command itself changes nothing in the
    cluster, and nothing in clustercert. For several clusters, it writes to the folders DIR/DOMAIN/PROJECT/CLUSTER.

    Examples:
        clustercert kubernetes remove prod --out control-plane
    """
    from clustercert.kubernetes.setup.removal import write_removal
    from clustercert.kubernetes.setup.values import SETUP

    chosen = await selection.clusters(operator)
    if not selection.is_one and not any((out / folder_of(each) / SETUP).exists() for each in chosen):
        raise CommandError(
            f"{out} has no folder DOMAIN/PROJECT/CLUSTER with the {SETUP} of one of these clusters, whose options, such"
            " as the distribution, decide the steps. Name the folder that `clustercert kubernetes setup` wrote for"
            " several clusters. If each cluster was set up into its own folder, run `clustercert kubernetes remove"
            " CLUSTER --out DIR` for each one."
        )

    async def write(cluster: "Cluster") -> None:
        path = write_removal(out if selection.is_one else out / folder_of(cluster), cluster)
        write_out(f"{path}\n")

    if selection.is_one:
        await write(chosen[0])
    else:
        await for_each(operator, chosen, write)
    print_note(f"Next: follow the steps in {'this file' if selection.is_one else 'these files'}.")
