"""`clustercert project`: projects of the built-in identity service."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import enable_and_disable, on_service
from clustercert.cli.options import DescriptionOption, DomainOption, InDomainOption, YesOption
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

app = typer.Typer(name="project", help="Manage projects, which own clusters.", no_args_is_help=True)

ProjectArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.")]


@app.command()
@on_service
def create(
    client: "AdministrationClient",
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the project. The vendors' SDKs expect the region's name."
        ),
    ],
    domain: DomainOption = None,
    own_id: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="ID", help="Id of the project in Keystone, 32 hex digits. [default: a new id]"
        ),
    ] = None,
    description: DescriptionOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a project. A project of Keystone needs the id that it has there."""
    from clustercert.client.administration import path_of

    path = path_of("projects", name, domain=domain)
    fields: JsonObject = {"description": description}
    if own_id is not None:
        fields["id"] = own_id
    show_one(client.create(path, fields), output)


@app.command("list")
@on_service
def list_projects(
    client: "AdministrationClient", domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the projects."""
    from clustercert.cli.directory import listed

    columns = ("id", "name", "domain", "enabled", "description")
    show_list(listed(client, "projects", domain), output, columns=columns)


@app.command()
@on_service
def show(
    client: "AdministrationClient",
    name: ProjectArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a project."""
    from clustercert.cli.directory import find

    show_one(find(client, "projects", name, domain), output)


@enable_and_disable(
    app,
    "Enable a project, so that its members can use it again.",
    "Disable a project: its members can't use it. Its certificates stay valid until they expire.",
)
def switch(
    client: "AdministrationClient", name: ProjectArgument, domain: DomainOption = None, *, enabled: bool
) -> None:
    from clustercert.cli.directory import find, path_by_id

    project = find(client, "projects", name, domain)
    client.update(path_by_id("projects", project), enabled=enabled)
    note(f"{'Enabled' if enabled else 'Disabled'} the project {project['name']}.")


@app.command()
@on_service
def delete(
    client: "AdministrationClient",
    name: ProjectArgument,
    domain: DomainOption = None,
    yes: YesOption = False,
) -> None:
    """Delete a project that has no clusters.

    Also deletes its role assignments and tokens.
    """
    from clustercert.cli.directory import find, path_by_id

    project = find(client, "projects", name, domain)
    confirm(
        f"Delete the project {project['name']} ({project['id']}) with its role assignments and tokens?",
        yes=yes,
    )
    client.delete(path_by_id("projects", project))
    note(f"Deleted the project {project['name']}.")
