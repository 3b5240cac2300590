"""`clustercert kubernetes token`: manages the tokens that API servers send to the webhooks."""

from typing import Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import ClusterArgument, InProjectOption, YesOption
from clustercert.cli.output import Output, OutputOption, note, row_of, show_list, show_one
from clustercert.cli.prompts import confirm
from clustercert.cli.session import Operator

_DETAILS = ("cluster_id", "created_at", "last_asked_at")

app = typer.Typer(
    name="token", help="Manage webhook tokens: at most two for each cluster.", no_args_is_help=True
)


@app.command()
@on_store
async def create(
    operator: Operator,
    name: ClusterArgument,
    project: InProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a token. Shows the token once, and never again."""
    if output is Output.NAME:
        raise typer.BadParameter("The format `name` would not show the token. Choose another format.")
    cluster = await operator.cluster(name, project)
    issued = await operator.parts.webhook.tokens.create(cluster, actor=operator.actor)
    show_one(
        {"id": issued.token.id, "token": issued.text, **row_of(issued.token, *_DETAILS)}, output, name="id"
    )
    note(
        "Next: give the token to every API server of the cluster, as docs/kubernetes.md describes under The token. "
        "Then remove the old token."
    )


@app.command("list")
@on_store
async def list_tokens(
    operator: Operator,
    name: ClusterArgument,
    project: InProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a cluster's tokens.

    Shows the id of each token and its last authorization request. The tokens themselves are not stored.
    """
    cluster = await operator.cluster(name, project)
    tokens = await operator.parts.webhook.tokens.of_cluster(cluster.id)
    rows = [row_of(token, "id", *_DETAILS) for token in tokens]
    show_list(rows, output, columns=("id", "created_at", "last_asked_at"), name="id")


@app.command()
@on_store
async def remove(
    operator: Operator,
    name: ClusterArgument,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, from `list`.")],
    project: InProjectOption = None,
    yes: YesOption = False,
) -> None:
    """Remove a token. An API server that still uses it receives errors, and applies its failurePolicy."""
    cluster = await operator.cluster(name, project)
    confirm(f"Remove the token {token_id} of the cluster {cluster.name} ({cluster.id})?", yes=yes)
    await operator.parts.webhook.tokens.remove(cluster, token_id, actor=operator.actor)
    note(f"Removed the token {token_id}. It is rejected within a second.")
