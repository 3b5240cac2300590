"""`clustercert project`: what clusters belong to."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.options import DomainOption, InDomainOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import Project

app = typer.Typer(
    name="project",
    help="Projects, which clusters belong to. The vendors' clients expect one named like the region.",
    no_args_is_help=True,
)

ProjectArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="Its name or id.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    domain: DomainOption = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a project."""

    async def work(operator: Operator) -> "Project":
        return await operator.parts.identity.directory.create_project(
            name, await operator.domain(domain), description=description, **operator.who
        )

    show_one(_row(operate(context, work)), output)


@app.command("list")
def list_projects(
    context: typer.Context, domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the projects."""

    async def work(operator: Operator) -> "tuple[Project, ...]":
        return await operator.parts.identity.directory.projects(await operator.domain_or_any(domain))

    rows = [_row(project) for project in operate(context, work)]
    show_list(rows, output, columns=("id", "name", "domain", "enabled", "description"))


@app.command()
def show(
    context: typer.Context,
    name: ProjectArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a project."""

    async def work(operator: Operator) -> "Project":
        return await find(operator, name, domain)

    show_one(_row(operate(context, work)), output)


@app.command()
def enable(context: typer.Context, name: ProjectArgument, domain: DomainOption = None) -> None:
    """Let a project's members work in it again."""
    _enable(context, name, domain, enabled=True)


@app.command()
def disable(context: typer.Context, name: ProjectArgument, domain: DomainOption = None) -> None:
    """Take a project out of use: nobody has a role in it. What was issued stays valid until it ends."""
    _enable(context, name, domain, enabled=False)


@app.command()
def delete(context: typer.Context, name: ProjectArgument, domain: DomainOption = None) -> None:
    """Delete a project that has no clusters, with its role assignments and tokens."""

    async def work(operator: Operator) -> "Project":
        project = await find(operator, name, domain)
        await operator.parts.identity.directory.remove_project(project, **operator.who)
        return project

    note(f"Deleted the project {operate(context, work).name}.")


async def find(operator: Operator, wanted: str, domain: str | None = None) -> "Project":
    """The project of that id or name. Raises NotFound, or Conflict where several domains have it."""
    return await operator.parts.identity.directory.find_project(wanted, await operator.domain_or_any(domain))


def _enable(context: typer.Context, name: str, domain: str | None, *, enabled: bool) -> None:
    async def work(operator: Operator) -> "Project":
        project = await find(operator, name, domain)
        await operator.parts.identity.directory.enable_project(project, enabled=enabled, **operator.who)
        return project

    note(f"{'Enabled' if enabled else 'Disabled'} the project {operate(context, work).name}.")


def _row(project: "Project") -> Row:
    return {
        "id": project.id,
        "name": project.name,
        "domain": project.domain.name,
        "domain_id": project.domain.id,
        "enabled": project.enabled,
        "description": project.description,
    }
