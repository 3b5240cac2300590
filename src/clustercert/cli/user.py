"""`clustercert user`: users of the built-in identity service, people and machines; blocked ones of other systems."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import enable_and_disable, on_store
from clustercert.cli.options import DomainOption, InDomainOption, PasswordFileOption
from clustercert.cli.output import Output, OutputOption, Row, note, row_in_domain, show_list, show_one
from clustercert.cli.prompts import read_secret
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    from clustercert.model import User

app = typer.Typer(name="user", help="Manage users of the built-in identity service.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="Name or id of the user.")]
UserIdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the user, 32 or 64 hex digits, as in the audit log.")
]

_CERTIFICATES_REVOKED = "Their certificates are revoked."


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the user.")],
    domain: DomainOption = None,
    password_file: PasswordFileOption = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Set no password: the user has only access keys.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a user. Asks for the password unless --password-file or --no-password is given."""
    if no_password and password_file is not None:
        raise typer.BadParameter("Give only one of --no-password and --password-file.")
    instead = "add --password-file FILE or --no-password"
    password = None if no_password else read_secret("Password", password_file, instead, confirm=True)

    async def work(operator: Operator) -> "User":
        return await operator.directory.create_user(
            name, await operator.domain(domain), password=password, actor=operator.actor
        )

    show_one(_row(operate(context, work)), output)


@app.command("list")
@on_store
async def list_users(
    operator: Operator, domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the users."""
    users = await operator.directory.users(await operator.domain_or_any(domain))
    rows = [_row(user) for user in users]
    show_list(rows, output, columns=("id", "name", "domain", "enabled"))


@app.command()
@on_store
async def show(
    operator: Operator,
    name: UserArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a user. The id is the common name of their certificates."""
    user = await operator.user(name, domain)
    projects = await operator.parts.identity.roles.projects_of(user)
    show_one({**_row(user), "projects": [project.name for project in projects]}, output)


@enable_and_disable(
    app,
    "Enable a user.",
    "Disable a user, and permanently revoke their certificates.\n\nAlso revokes their tokens. Their access keys do not "
    "work until the user is enabled again.",
    decorator=on_store,
)
async def switch(
    operator: Operator,
    name: UserArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
    *,
    enabled: bool,
) -> None:
    user = await operator.user(name, domain)
    await operator.directory.enable_user(user, enabled=enabled, actor=operator.actor)
    show_one(_row(replace(user, enabled=enabled)), output)
    note(f"{'Enabled' if enabled else 'Disabled'} the user {user.name}.")
    if not enabled:
        note(_CERTIFICATES_REVOKED)


@app.command()
@on_store
async def block(operator: Operator, user_id: UserIdArgument) -> None:
    """Block a user of an OIDC issuer or of Keystone, and permanently revoke their certificates.

    Their log-ins fail from now on. Their id is the common name of their certificates by default.
    """
    await operator.parts.identity.federation.block(user_id, actor=operator.actor)
    note(f"Blocked the user {user_id}. {_CERTIFICATES_REVOKED}")


@app.command()
@on_store
async def unblock(operator: Operator, user_id: UserIdArgument) -> None:
    """Accept log-ins of a blocked user again. Their old certificates stay revoked."""
    await operator.parts.identity.federation.unblock(user_id, actor=operator.actor)
    note(f"Unblocked the user {user_id}.")


@app.command()
@on_store
async def delete(operator: Operator, name: UserArgument, domain: DomainOption = None) -> None:
    """Delete a user, and revoke their certificates.

    Also deletes their tokens, access keys, roles and memberships.
    """
    user = await operator.user(name, domain)
    await operator.directory.remove_user(user, actor=operator.actor)
    note(f"Deleted the user {user.name}. {_CERTIFICATES_REVOKED}")


@app.command("set-password")
def set_password(
    context: typer.Context,
    name: UserArgument,
    domain: DomainOption = None,
    password_file: PasswordFileOption = None,
) -> None:
    """Change a user's password. Revokes their tokens and temporary access keys."""
    password = read_secret("Password", password_file, "add --password-file FILE", confirm=True)

    async def work(operator: Operator) -> "User":
        user = await operator.user(name, domain)
        await operator.directory.set_password(user, password, actor=operator.actor)
        return user

    note(f"Changed the password of the user {operate(context, work).name}.")


def _row(user: "User") -> Row:
    return {**row_in_domain(user), "enabled": user.enabled}
