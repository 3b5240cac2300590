"""`clustercert kubernetes remove`: writes the steps that remove clustercert from a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.kubernetes.selection import ClusterSelection, folder_of, for_each
from clustercert.cli.output import print_note, write_out
from clustercert.cli.session import Operator

if TYPE_CHECKING:
    from clustercert.model import Cluster


@on_store
async def remove(
    operator: Operator,
    selection: ClusterSelection,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder that `setup` wrote. REMOVE.md is written into it.")
    ],
) -> None:
    """Write the steps with which clustercert leaves a cluster.

    REMOVE.md has the commands in the right order for the distribution. This command itself changes nothing in the
    cluster, and nothing in clustercert. For several clusters, it writes to the folders DIR/DOMAIN/PROJECT/CLUSTER.
    """
    from clustercert.kubernetes.setup.removal import write_removal

    chosen = await selection.clusters(operator)

    async def write(cluster: "Cluster") -> None:
        path = write_removal(out if selection.is_one else out / folder_of(cluster), cluster)
        write_out(f"{path}\n")

    if selection.is_one:
        await write(chosen[0])
    else:
        await for_each(operator, chosen, write)
    print_note(f"Next: follow the steps in {'this file' if selection.is_one else 'these files'}.")
