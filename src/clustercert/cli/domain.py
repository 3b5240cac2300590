"""`clustercert domain`: domains of the built-in identity service."""

from typing import Annotated

import typer

from clustercert.cli.commands import enable_and_disable, on_store
from clustercert.cli.output import Output, OutputOption, note, row_of, show_list, show_one
from clustercert.cli.session import Operator

app = typer.Typer(name="domain", help="Manage domains, which own users and projects.", no_args_is_help=True)

_COLUMNS = ("id", "name", "enabled")

DomainArgument = Annotated[str, typer.Argument(metavar="DOMAIN", help="Name or id of the domain.")]


@app.command()
@on_store
async def create(
    operator: Operator,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the domain.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a domain."""
    domain = await operator.directory.create_domain(name, actor=operator.actor)
    show_one(row_of(domain, *_COLUMNS), output)


@app.command("list")
@on_store
async def list_domains(operator: Operator, output: OutputOption = Output.TABLE) -> None:
    """List the domains."""
    domains = await operator.directory.domains()
    show_list([row_of(domain, *_COLUMNS) for domain in domains], output, columns=_COLUMNS)


@enable_and_disable(
    app,
    "Enable a domain, so that its users can log in again.",
    "Disable a domain with its users and projects.",
)
async def switch(operator: Operator, name: DomainArgument, *, enabled: bool) -> None:
    domain = await operator.directory.find_domain(name)
    await operator.directory.enable_domain(domain, enabled=enabled, actor=operator.actor)
    note(f"{'Enabled' if enabled else 'Disabled'} the domain {domain.name}.")
