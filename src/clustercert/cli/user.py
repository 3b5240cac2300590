"""`clustercert user`: people and machines of the built-in identity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.asking import read_secret
from clustercert.cli.options import DomainOption, InDomainOption, PasswordFileOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import User

app = typer.Typer(name="user", help="Users of the built-in identity.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="Their name or id.")]

_CERTIFICATES_REVOKED = "Certificates that they hold are revoked."


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Their name.")],
    domain: DomainOption = None,
    password_file: PasswordFileOption = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Give them no password: they work with access keys alone.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a user. The password is asked for, unless an option says where it comes from."""
    if no_password and password_file is not None:
        raise typer.BadParameter("--no-password and --password-file exclude each other.")
    password = (
        None if no_password else _new_password(password_file, "add --password-file FILE or --no-password")
    )

    async def work(operator: Operator) -> "User":
        return await operator.parts.identity.directory.create_user(
            name, await operator.domain(domain), password=password, **operator.who
        )

    show_one(_row(operate(context, work)), output)


@app.command("list")
def list_users(
    context: typer.Context, domain: InDomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the users."""

    async def work(operator: Operator) -> "tuple[User, ...]":
        return await operator.parts.identity.directory.users(await operator.domain_or_any(domain))

    rows = [_row(user) for user in operate(context, work)]
    show_list(rows, output, columns=("id", "name", "domain", "enabled"))


@app.command()
def show(
    context: typer.Context,
    name: UserArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a user. Their id is the common name of their certificates."""

    async def work(operator: Operator) -> Row:
        user = await find(operator, name, domain)
        projects = await operator.parts.identity.roles.projects_of(user)
        return {**_row(user), "projects": [project.name for project in projects]}

    show_one(operate(context, work), output)


@app.command()
def enable(context: typer.Context, name: UserArgument, domain: DomainOption = None) -> None:
    """Let a user in again."""
    _enable(context, name, domain, enabled=True)


@app.command()
def disable(context: typer.Context, name: UserArgument, domain: DomainOption = None) -> None:
    """Keep a user out: their tokens end and their certificates are revoked for good, their access keys rest."""
    _enable(context, name, domain, enabled=False)
    note(_CERTIFICATES_REVOKED)


@app.command()
def delete(context: typer.Context, name: UserArgument, domain: DomainOption = None) -> None:
    """Delete a user with their tokens, access keys, roles and memberships; their certificates are revoked."""

    async def work(operator: Operator) -> "User":
        user = await find(operator, name, domain)
        await operator.parts.identity.directory.remove_user(user, **operator.who)
        return user

    note(f"Deleted the user {operate(context, work).name}. {_CERTIFICATES_REVOKED}")


@app.command("set-password")
def set_password(
    context: typer.Context,
    name: UserArgument,
    domain: DomainOption = None,
    password_file: PasswordFileOption = None,
) -> None:
    """Change a user's password. Their tokens and temporary access keys end."""
    password = _new_password(password_file, "add --password-file FILE")

    async def work(operator: Operator) -> "User":
        user = await find(operator, name, domain)
        await operator.parts.identity.directory.set_password(user, password, **operator.who)
        return user

    note(f"Changed the password of the user {operate(context, work).name}.")


async def find(operator: Operator, wanted: str, domain: str | None = None) -> "User":
    """The user of that id or name. Raises NotFound, or Conflict where several domains have it."""
    return await operator.parts.identity.directory.find_user(wanted, await operator.domain_or_any(domain))


def _new_password(file: Path | None, instead: str) -> str:
    return read_secret("Password", file, instead, confirm=True)


def _enable(context: typer.Context, name: str, domain: str | None, *, enabled: bool) -> None:
    async def work(operator: Operator) -> "User":
        user = await find(operator, name, domain)
        await operator.parts.identity.directory.enable_user(user, enabled=enabled, **operator.who)
        return user

    note(f"{'Enabled' if enabled else 'Disabled'} the user {operate(context, work).name}.")


def _row(user: "User") -> Row:
    return {
        "id": user.id,
        "name": user.name,
        "domain": user.domain.name,
        "domain_id": user.domain.id,
        "enabled": user.enabled,
    }
