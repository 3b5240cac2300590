"""`clustercert clusters`: lists the clusters that the logged-in user can reach."""

from typing import Annotated

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.login_options import LoginOptions
from clustercert.cli.output import Output, OutputOption, show_list


@expand_options
def clusters(
    login: LoginOptions,
    project: Annotated[str | None, typer.Option(help="List only this project, by name or id.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the clusters in all your projects."""
    from clustercert.cli.lookup import reachable_clusters

    chosen = login.profile()
    with chosen.explain_rejection(), chosen.client() as client:
        found = reachable_clusters(client, project)
    rows = [
        {"name": each.name, "project": each.project, "id": each.id, "project_id": each.project_id}
        for each in found
    ]
    show_list(rows, output, columns=("name", "project", "id"))
