"""`clustercert domain`: domains of the built-in identity service."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import enable_and_disable, on_service
from clustercert.cli.options import YesOption
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient

app = typer.Typer(name="domain", help="Manage domains, which own users and projects.", no_args_is_help=True)

DomainArgument = Annotated[str, typer.Argument(metavar="DOMAIN", help="Name or id of the domain.")]


@app.command()
@on_service
def create(
    client: "AdministrationClient",
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the domain.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a domain."""
    show_one(client.create(_path(name), {}), output)


@app.command("list")
@on_service
def list_domains(client: "AdministrationClient", output: OutputOption = Output.TABLE) -> None:
    """List the domains."""
    found = sorted(client.all("/domains", "domains"), key=lambda each: str(each["name"]))
    show_list(found, output, columns=("id", "name", "enabled"))


@enable_and_disable(
    app,
    "Enable a domain, so that its users can log in again.",
    "Disable a domain with its users and projects.",
)
def switch(client: "AdministrationClient", name: DomainArgument, *, enabled: bool) -> None:
    domain = client.update(_path(name), enabled=enabled)
    note(f"{'Enabled' if enabled else 'Disabled'} the domain {domain['name']}.")


@app.command()
@on_service
def delete(client: "AdministrationClient", name: DomainArgument, yes: YesOption = False) -> None:
    """Delete a domain that has no projects, users or groups."""
    domain = client.get(_path(name))
    confirm(f"Delete the domain {domain['name']} ({domain['id']})?", yes=yes)
    client.delete(_path(str(domain["id"])))
    note(f"Deleted the domain {domain['name']}.")


def _path(name_or_id: str) -> str:
    from clustercert.client.administration import path_of

    return path_of("domains", name_or_id)
