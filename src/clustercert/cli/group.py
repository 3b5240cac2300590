"""`clustercert group`: groups of users, which hold roles together. They are no Kubernetes groups."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import user as user_commands
from clustercert.cli.options import DomainOption, InDomainOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import Group

app = typer.Typer(name="group", help="Groups of users, who share the group's roles.", no_args_is_help=True)

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Its name or id.")]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="Their name or id.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a group."""

    async def work(operator: Operator) -> "Group":
        return await operator.parts.identity.directory.create_group(
            name, await operator.domain(domain), **operator.who
        )

    show_one(_row(operate(context, work)), output)


@app.command("list")
def list_groups(
    context: typer.Context, domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the groups."""

    async def work(operator: Operator) -> "tuple[Group, ...]":
        return await operator.parts.identity.directory.groups(await operator.domain_or_any(domain))

    show_list([_row(group) for group in operate(context, work)], output, columns=("id", "name", "domain"))


@app.command()
def show(
    context: typer.Context,
    name: GroupArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a group and its members."""

    async def work(operator: Operator) -> Row:
        group = await find(operator, name, domain)
        members = await operator.parts.identity.directory.members(group)
        return {**_row(group), "members": [member.name for member in members]}

    show_one(operate(context, work), output)


@app.command()
def delete(context: typer.Context, name: GroupArgument, domain: DomainOption = None) -> None:
    """Delete a group with its memberships and roles."""

    async def work(operator: Operator) -> "Group":
        group = await find(operator, name, domain)
        await operator.parts.identity.directory.remove_group(group, **operator.who)
        return group

    note(f"Deleted the group {operate(context, work).name}.")


@app.command("add-user")
def add_user(
    context: typer.Context, name: GroupArgument, user: UserArgument, domain: DomainOption = None
) -> None:
    """Make a user a member of a group."""

    async def work(operator: Operator) -> str:
        group = await find(operator, name, domain)
        member = await user_commands.find(operator, user, domain)
        await operator.parts.identity.directory.add_member(group, member, **operator.who)
        return f"The user {member.name} is a member of the group {group.name}."

    note(operate(context, work))


@app.command("remove-user")
def remove_user(
    context: typer.Context, name: GroupArgument, user: UserArgument, domain: DomainOption = None
) -> None:
    """End a user's membership of a group."""

    async def work(operator: Operator) -> str:
        group = await find(operator, name, domain)
        member = await user_commands.find(operator, user, domain)
        await operator.parts.identity.directory.remove_member(group, member, **operator.who)
        return f"The user {member.name} is no member of the group {group.name} any more."

    note(operate(context, work))


async def find(operator: Operator, wanted: str, domain: str | None = None) -> "Group":
    """The group of that id or name. Raises NotFound, or Conflict where several domains have it."""
    return await operator.parts.identity.directory.find_group(wanted, await operator.domain_or_any(domain))


def _row(group: "Group") -> Row:
    return {
        "id": group.id,
        "name": group.name,
        "domain": group.domain.name,
        "domain_id": group.domain.id,
    }
