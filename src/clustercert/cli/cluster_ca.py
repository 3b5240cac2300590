"""`clustercert cluster ca`: the client CA of a cluster."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.lookup import cluster_path, find_cluster
from clustercert.cli.options import ClusterArgument, InProjectOption, ProjectDomainOption, UsageError
from clustercert.cli.output import Output, OutputOption, show_one, with_times, write_out

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

app = typer.Typer(name="ca", help="Show the client CA of a cluster.", no_args_is_help=True)


@app.command()
@on_service
def show(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    access_policy: Annotated[
        bool,
        typer.Option(
            "--policy", help="Print only the policy that the service's account needs at the key's place."
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a cluster's client CA: where its key is, and the proof. Only for operators and admins of the project."""
    found = find_cluster(client, name, project, domain)
    ca = client.get(cluster_path(found, "client-ca"))
    if access_policy:
        if not ca["access_policy"]:
            raise UsageError(f"The signer {ca['signer']} needs no policy.")
        write_out(str(ca["access_policy"]))
        return
    show_one(with_times(ca) if output is not Output.TABLE else _row(ca), output, name="id")


def _row(ca: "JsonObject") -> "JsonObject":
    hidden = {"certificate", "key_properties", "access_policy"}
    row = {name: value for name, value in ca.items() if name not in hidden}
    return with_times(row | cast("JsonObject", ca["key_properties"]))
