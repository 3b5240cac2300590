"""`clustercert kubernetes token`: by what a cluster's API server says who it is, when it asks or tells."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli.asking import agreed
from clustercert.cli.cluster import ClusterArgument, InProjectOption
from clustercert.cli.options import YesOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.store.webhook_tokens import WebhookToken

app = typer.Typer(
    name="token",
    help="The tokens that a cluster's API server shows to the webhooks; two at once, to exchange one.",
    no_args_is_help=True,
)


@app.command()
def create(
    context: typer.Context,
    name: ClusterArgument,
    project: InProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a token. It is shown this once."""
    if output is Output.NAME:
        raise typer.BadParameter("a name alone would leave the token unseen; choose another --output.")

    async def work(operator: Operator) -> Row:
        cluster = await cluster_commands.find(operator, name, project)
        issued = await operator.parts.webhook.tokens.create(cluster, **operator.who)
        return {"id": issued.token.id, "token": issued.text, **_more(issued.token)}

    show_one(operate(context, work), output, name="id")
    note(
        "Next: give it to every API server of the cluster, as docs/kubernetes.md says under The token, and remove the"
        " old one."
    )


@app.command("list")
def list_tokens(
    context: typer.Context,
    name: ClusterArgument,
    project: InProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a cluster's tokens by their ids, and when the API server last asked with each.

    The tokens themselves are not kept. What the audit webhook tells counts as no question.
    """

    async def work(operator: Operator) -> list[Row]:
        cluster = await cluster_commands.find(operator, name, project)
        tokens = await operator.parts.webhook.tokens.of_cluster(cluster.id)
        return [{"id": token.id, **_more(token)} for token in tokens]

    show_list(operate(context, work), output, columns=("id", "created_at", "last_asked_at"), name="id")


@app.command()
def remove(
    context: typer.Context,
    name: ClusterArgument,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `list` shows it.")],
    project: InProjectOption = None,
    yes: YesOption = False,
) -> None:
    """End a token. An API server that shows it still gets errors, and its failurePolicy decides."""
    agreed(f"End the token {token_id} of the cluster {name}?", yes=yes)

    async def work(operator: Operator) -> None:
        cluster = await cluster_commands.find(operator, name, project)
        await operator.parts.webhook.tokens.remove(cluster, token_id, **operator.who)

    operate(context, work)
    note(f"Removed the token {token_id}. It is refused within a second.")


def _more(token: "WebhookToken") -> Row:
    return {
        "cluster_id": token.cluster_id,
        "created_at": token.created_at,
        "last_asked_at": token.last_asked_at,
    }
