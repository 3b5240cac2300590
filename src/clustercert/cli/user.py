"""`clustercert user`: users of the built-in identity service, and blocked users of other systems."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.options import DomainOption, InDomainOption, PasswordFileOption, YesOption
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm, read_secret
from clustercert.model.identity import BUILT_IN

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

app = typer.Typer(name="user", help="Manage users of the built-in identity service.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="Name or id of the user.")]
AnyUserArgument = Annotated[
    str,
    typer.Argument(metavar="USER", help="Name or id of the user, such as sso/anna for a user of an issuer."),
]
AnyDomainOption = Annotated[
    str | None,
    typer.Option(
        "--domain", metavar="NAME", help="Name of the user's domain, issuer or Keystone. [default: any]"
    ),
]

_CERTIFICATES_REVOKED = "Their certificates are revoked."


@app.command()
@on_service
def create(
    client: "AdministrationClient",
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the user.")],
    domain: DomainOption = None,
    password_file: PasswordFileOption = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Set no password: the user has only access keys.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a user. Asks for the password unless --password-file or --no-password is given."""
    from clustercert.client.administration import path_of

    if no_password and password_file is not None:
        raise typer.BadParameter("Give only one of --no-password and --password-file.")
    path = path_of("users", name, domain=domain)
    instead = "add --password-file FILE or --no-password"
    password = None if no_password else read_secret("Password", password_file, instead, confirm=True)
    show_one(client.create(path, {"password": password}), output)


@app.command("list")
@on_service
def list_users(
    client: "AdministrationClient", domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the users."""
    from clustercert.cli.directory import listed

    show_list(listed(client, "users", domain), output, columns=("id", "name", "domain", "enabled"))


@app.command()
@on_service
def show(
    client: "AdministrationClient",
    name: UserArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a user. The id is the common name of their certificates."""
    from clustercert.cli.directory import find, path_by_id

    user = find(client, "users", name, domain)
    projects = client.all(f"{path_by_id('users', user)}/projects", "projects")
    show_one({**user, "projects": sorted(str(each["name"]) for each in projects)}, output)


@app.command()
@on_service
def enable(
    client: "AdministrationClient",
    name: UserArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Enable a user."""
    from clustercert.cli.directory import find, path_by_id

    user = find(client, "users", name, domain)
    show_one(client.update(path_by_id("users", user), enabled=True), output)
    note(f"Enabled the user {user['name']}.")


@app.command()
@on_service
def disable(
    client: "AdministrationClient",
    name: UserArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Disable a user, and permanently revoke their certificates.

    Also revokes their tokens. Their access keys do not work until the user is enabled again.
    """
    from clustercert.cli.directory import find, path_by_id

    user = find(client, "users", name, domain)
    _confirm_loss(client, user, "Disable the user?", yes=yes)
    show_one(client.update(path_by_id("users", user), enabled=False), output)
    note(f"Disabled the user {user['name']}.")
    note(_CERTIFICATES_REVOKED)


@app.command()
@on_service
def block(
    client: "AdministrationClient",
    name: AnyUserArgument,
    domain: AnyDomainOption = None,
    yes: YesOption = False,
) -> None:
    """Block a user of any identity system: end their logins, and permanently revoke their certificates.

    Works for users of the built-in identity, of OIDC issuers and of Keystone. Their tokens and temporary access keys
    end. Until they are unblocked, their logins fail and their access keys don't work. Says what remains.
    """
    from clustercert.cli.access import note_remaining_access
    from clustercert.cli.user_lookup import find_user
    from clustercert.client.administration import path_of

    user = find_user(client, name, domain=domain)
    _confirm_loss(client, user, "Block the user?", yes=yes)
    blocked = client.post(path_of("users", str(user["id"]), "block"))
    note(f"Blocked the user {blocked['name'] or blocked['id']}. Their logins have ended.")
    if (issuer := blocked["issuer"]) not in (None, BUILT_IN):
        note(f"Their session at {issuer} goes on: end it there, if other services accept it.")
    note_remaining_access(client, blocked)


@app.command()
@on_service
def unblock(client: "AdministrationClient", name: AnyUserArgument, domain: AnyDomainOption = None) -> None:
    """Accept logins of a blocked or disabled user again. Their old certificates stay revoked."""
    from clustercert.cli.user_lookup import find_user
    from clustercert.client.administration import path_of

    user = find_user(client, name, domain=domain)
    client.post(path_of("users", str(user["id"]), "unblock"))
    note(f"Unblocked the user {user.get('name', user['id'])}.")


@app.command()
@on_service
def delete(
    client: "AdministrationClient",
    name: UserArgument,
    domain: DomainOption = None,
    yes: YesOption = False,
) -> None:
    """Delete a user, and revoke their certificates.

    Also deletes their tokens, access keys, roles and memberships.
    """
    from clustercert.cli.directory import find, path_by_id

    user = find(client, "users", name, domain)
    _confirm_loss(client, user, "Delete the user with their access keys and roles?", yes=yes)
    client.delete(path_by_id("users", user))
    note(f"Deleted the user {user['name']}. {_CERTIFICATES_REVOKED}")


@app.command("set-password")
@on_service
def set_password(
    client: "AdministrationClient",
    name: UserArgument,
    domain: DomainOption = None,
    password_file: PasswordFileOption = None,
) -> None:
    """Change a user's password. Revokes their tokens and temporary access keys."""
    from clustercert.cli.directory import find, path_by_id

    user = find(client, "users", name, domain)
    password = read_secret("Password", password_file, "add --password-file FILE", confirm=True)
    client.put(f"{path_by_id('users', user)}/password", {"password": password})
    note(f"Changed the password of the user {user['name']}.")


def _confirm_loss(client: "AdministrationClient", user: "JsonObject", question: str, *, yes: bool) -> None:
    """Ask for confirmation, unless `yes` is set. Names the user, and counts the certificates that are revoked."""
    from clustercert.cli.directory import certificates_at_stake

    if yes:
        return
    user_id = str(user["id"])
    who = f"{user['name']} ({user_id})" if "name" in user else user_id
    confirm(f"The user {who} {certificates_at_stake(client, user_id)}. {question}", yes=yes)
