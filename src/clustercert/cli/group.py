"""`clustercert group`: groups of users in the built-in identity service, not Kubernetes groups."""

from typing import Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import DomainOption, InDomainOption
from clustercert.cli.output import Output, OutputOption, note, row_in_domain, show_list, show_one
from clustercert.cli.session import Operator
from clustercert.cli.user import UserArgument

app = typer.Typer(
    name="group", help="Manage groups of users, who share the group's roles.", no_args_is_help=True
)

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Name or id of the group.")]


@app.command()
@on_store
async def create(
    operator: Operator,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the group.")],
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a group."""
    group = await operator.directory.create_group(name, await operator.domain(domain), actor=operator.actor)
    show_one(row_in_domain(group), output)


@app.command("list")
@on_store
async def list_groups(
    operator: Operator, domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the groups."""
    groups = await operator.directory.groups(await operator.domain_or_any(domain))
    show_list([row_in_domain(group) for group in groups], output, columns=("id", "name", "domain"))


@app.command()
@on_store
async def show(
    operator: Operator,
    name: GroupArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a group and its members."""
    group = await operator.group(name, domain)
    members = await operator.directory.members(group)
    show_one({**row_in_domain(group), "members": [member.name for member in members]}, output)


@app.command()
@on_store
async def delete(operator: Operator, name: GroupArgument, domain: DomainOption = None) -> None:
    """Delete a group with its memberships and roles."""
    group = await operator.group(name, domain)
    await operator.directory.remove_group(group, actor=operator.actor)
    note(f"Deleted the group {group.name}.")


@app.command("add-user")
@on_store
async def add_user(
    operator: Operator, name: GroupArgument, user: UserArgument, domain: DomainOption = None
) -> None:
    """Add a user to a group."""
    group, member = await operator.group(name, domain), await operator.user(user, domain)
    await operator.directory.add_member(group, member, actor=operator.actor)
    note(f"Added the user {member.name} to the group {group.name}.")


@app.command("remove-user")
@on_store
async def remove_user(
    operator: Operator, name: GroupArgument, user: UserArgument, domain: DomainOption = None
) -> None:
    """Remove a user from a group."""
    group, member = await operator.group(name, domain), await operator.user(user, domain)
    await operator.directory.remove_member(group, member, actor=operator.actor)
    note(f"Removed the user {member.name} from the group {group.name}.")
