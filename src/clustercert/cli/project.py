"""`clustercert project`: projects of the built-in identity service."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import enable_and_disable, on_store
from clustercert.cli.options import DescriptionOption, DomainOption, InDomainOption
from clustercert.cli.output import Output, OutputOption, Row, note, row_in_domain, row_of, show_list, show_one
from clustercert.cli.session import Operator

if TYPE_CHECKING:
    from clustercert.model import Project

app = typer.Typer(name="project", help="Manage projects, which own clusters.", no_args_is_help=True)

ProjectArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.")]


@app.command()
@on_store
async def create(
    operator: Operator,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the project. The vendors' SDKs expect the region's name."
        ),
    ],
    domain: DomainOption = None,
    description: DescriptionOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a project."""
    project = await operator.directory.create_project(
        name, await operator.domain(domain), description=description, actor=operator.actor
    )
    show_one(_row(project), output)


@app.command("list")
@on_store
async def list_projects(
    operator: Operator, domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the projects."""
    projects = await operator.directory.projects(await operator.domain_or_any(domain))
    rows = [_row(project) for project in projects]
    show_list(rows, output, columns=("id", "name", "domain", "enabled", "description"))


@app.command()
@on_store
async def show(
    operator: Operator,
    name: ProjectArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a project."""
    show_one(_row(await operator.project(name, domain)), output)


@enable_and_disable(
    app,
    "Enable a project, so that its members can use it again.",
    "Disable a project: its members can't use it. Its certificates stay valid until they expire.",
)
async def switch(
    operator: Operator, name: ProjectArgument, domain: DomainOption = None, *, enabled: bool
) -> None:
    project = await operator.project(name, domain)
    await operator.directory.enable_project(project, enabled=enabled, actor=operator.actor)
    note(f"{'Enabled' if enabled else 'Disabled'} the project {project.name}.")


@app.command()
@on_store
async def delete(operator: Operator, name: ProjectArgument, domain: DomainOption = None) -> None:
    """Delete a project that has no clusters.

    Also deletes its role assignments and tokens.
    """
    project = await operator.project(name, domain)
    await operator.directory.remove_project(project, actor=operator.actor)
    note(f"Deleted the project {project.name}.")


def _row(project: "Project") -> Row:
    return {**row_in_domain(project), **row_of(project, "enabled", "description")}
