"""`clustercert kubernetes token`: manages the tokens that API servers send to the webhooks."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.options import (
    ClusterArgument,
    InProjectOption,
    ProjectDomainOption,
    UnknownName,
    YesOption,
)
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient

token = typer.Typer(
    name="token", help="Manage webhook tokens: at most two for each cluster.", no_args_is_help=True
)


@token.command()
@on_service
def create(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a token. Shows the token once, and never again."""
    from clustercert.cli.lookup import cluster_path, find_cluster
    from clustercert.cli.output import with_times

    if output is Output.NAME:
        raise typer.BadParameter("The format `name` would not show the token. Choose another format.")
    made = client.post(cluster_path(find_cluster(client, name, project, domain), "webhook-tokens"))
    row = {"id": made.pop("id"), "token": made.pop("token"), **made}
    show_one(with_times(row), output, name="id")
    note(
        "Next: give the token to every API server of the cluster, as docs/kubernetes.md describes under Exchange the "
        "token. Then remove the old token."
    )


@token.command("list")
@on_service
def list_tokens(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a cluster's tokens.

    Shows the id of each token and its last authorization request. The tokens themselves are not stored.
    """
    from clustercert.cli.lookup import cluster_path, find_cluster
    from clustercert.cli.output import with_times

    path = cluster_path(find_cluster(client, name, project, domain), "webhook-tokens")
    found = sorted(client.all(path, "webhook_tokens"), key=lambda each: str(each["created_at"]))
    columns = ("id", "created_at", "last_asked_at", "last_events_at")
    show_list([with_times(each) for each in found], output, columns=columns, name="id")


@token.command()
@on_service
def remove(
    client: "AdministrationClient",
    name: ClusterArgument,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, from `list`.")],
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    yes: YesOption = False,
) -> None:
    """Remove a token. An API server that still uses it receives errors, and applies its failurePolicy."""
    from clustercert.cli.lookup import cluster_path, find_cluster

    cluster = find_cluster(client, name, project, domain)
    path = cluster_path(cluster, "webhook-tokens")
    if token_id not in {each["id"] for each in client.all(path, "webhook_tokens")}:
        raise UnknownName(
            f"The cluster {cluster['name']} has no such webhook token. List them to see their ids."
        )
    confirm(f"Remove the token {token_id} of the cluster {cluster['name']} ({cluster['id']})?", yes=yes)
    client.delete(cluster_path(cluster, "webhook-tokens", token_id))
    note(f"Removed the token {token_id}. It is rejected within a second.")
