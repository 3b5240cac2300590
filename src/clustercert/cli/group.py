"""`clustercert group`: groups of users in the built-in identity service, not Kubernetes groups."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.options import DomainOption, InDomainOption, YesOption
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm
from clustercert.cli.user import UserArgument

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient

app = typer.Typer(
    name="group", help="Manage groups of users, who share the group's roles.", no_args_is_help=True
)

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Name or id of the group.")]


@app.command()
@on_service
def create(
    client: "AdministrationClient",
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the group.")],
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a group."""
    from clustercert.client.administration import path_of

    show_one(client.create(path_of("groups", name, domain=domain), {}), output)


@app.command("list")
@on_service
def list_groups(
    client: "AdministrationClient", domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the groups."""
    from clustercert.cli.directory import listed

    show_list(listed(client, "groups", domain), output, columns=("id", "name", "domain"))


@app.command()
@on_service
def show(
    client: "AdministrationClient",
    name: GroupArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a group and its members."""
    from clustercert.cli.directory import find

    group = find(client, "groups", name, domain)
    show_one({**group, "members": _members(client, group["id"])}, output)


@app.command()
@on_service
def delete(
    client: "AdministrationClient",
    name: GroupArgument,
    domain: DomainOption = None,
    yes: YesOption = False,
) -> None:
    """Delete a group with its memberships and roles."""
    from clustercert.cli.directory import find, path_by_id

    group = find(client, "groups", name, domain)
    if not yes:
        members = len(_members(client, group["id"]))
        confirm(
            f"Delete the group {group['name']} ({group['id']}) with its roles? It has {members or 'no'} "
            f"member{'' if members == 1 else 's'}.",
            yes=yes,
        )
    client.delete(path_by_id("groups", group))
    note(f"Deleted the group {group['name']}.")


@app.command("add-user")
@on_service
def add_user(
    client: "AdministrationClient", name: GroupArgument, user: UserArgument, domain: DomainOption = None
) -> None:
    """Add a user to a group."""
    path, group, member = _membership(client, name, user, domain)
    client.put(path, {})
    note(f"Added the user {member} to the group {group}.")


@app.command("remove-user")
@on_service
def remove_user(
    client: "AdministrationClient", name: GroupArgument, user: UserArgument, domain: DomainOption = None
) -> None:
    """Remove a user from a group."""
    path, group, member = _membership(client, name, user, domain)
    client.delete(path)
    note(f"Removed the user {member} from the group {group}.")


def _membership(
    client: "AdministrationClient", name: str, user: str, domain: str | None
) -> tuple[str, str, str]:
    """Return the path of a membership, and the names of the group and the user."""
    from clustercert.cli.directory import find
    from clustercert.client.administration import path_of

    group, member = find(client, "groups", name, domain), find(client, "users", user, domain)
    path = path_of("groups", str(group["id"]), "members", str(member["id"]))
    return path, str(group["name"]), str(member["name"])


def _members(client: "AdministrationClient", group_id: object) -> list[str]:
    """List the names of a group's members."""
    from clustercert.client.administration import path_of

    return sorted(
        str(each["name"]) for each in client.all(path_of("groups", str(group_id), "members"), "members")
    )
