"""`clustercert domain`: the owners of users and projects."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import Domain

app = typer.Typer(name="domain", help="Domains, which own users and projects.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="DOMAIN", help="Its name or id.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a domain."""

    async def work(operator: Operator) -> "Domain":
        return await operator.parts.identity.directory.create_domain(name, **operator.who)

    show_one(_row(operate(context, work)), output)


@app.command("list")
def list_domains(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the domains."""

    async def work(operator: Operator) -> "tuple[Domain, ...]":
        return await operator.parts.identity.directory.domains()

    rows = [_row(domain) for domain in operate(context, work)]
    show_list(rows, output, columns=("id", "name", "enabled"))


@app.command()
def enable(context: typer.Context, name: NameArgument) -> None:
    """Let a domain's users log in again."""
    _enable(context, name, enabled=True)


@app.command()
def disable(context: typer.Context, name: NameArgument) -> None:
    """Take a domain with its users and projects out of use."""
    _enable(context, name, enabled=False)


def _enable(context: typer.Context, name: str, *, enabled: bool) -> None:
    async def work(operator: Operator) -> "Domain":
        directory = operator.parts.identity.directory
        domain = await directory.find_domain(name)
        await directory.enable_domain(domain, enabled=enabled, **operator.who)
        return domain

    note(f"{'Enabled' if enabled else 'Disabled'} the domain {operate(context, work).name}.")


def _row(domain: "Domain") -> Row:
    return {"id": domain.id, "name": domain.name, "enabled": domain.enabled}
