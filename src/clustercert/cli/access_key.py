"""`clustercert access-key`: key pairs that sign requests, AK and SK."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import user as user_commands
from clustercert.cli.options import DomainOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import AccessKey

app = typer.Typer(name="access-key", help="Access keys (AK/SK), which sign requests.", no_args_is_help=True)

UserOption = Annotated[str, typer.Option(metavar="USER", help="Whose, by name or id.")]
KeyArgument = Annotated[str, typer.Argument(metavar="ACCESS_KEY", help="The AK.")]


@app.command()
def create(
    context: typer.Context,
    user: UserOption,
    domain: DomainOption = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make an access key. Its secret is shown this once."""
    if output is Output.NAME:
        raise typer.BadParameter("a name alone would leave the secret unseen; choose another --output.")

    async def work(operator: Operator) -> Row:
        issued = await operator.parts.identity.access_keys.create(
            await user_commands.find(operator, user, domain), description=description, **operator.who
        )
        return {"access_key": issued.key.id, "secret_key": issued.secret, **_more(issued.key)}

    show_one(operate(context, work), output, name="access_key")


@app.command("list")
def list_access_keys(
    context: typer.Context, user: UserOption, domain: DomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List a user's access keys, the temporary ones too."""

    async def work(operator: Operator) -> "tuple[AccessKey, ...]":
        return await operator.parts.identity.access_keys.of_user(
            await user_commands.find(operator, user, domain)
        )

    rows = [{"access_key": key.id, **_more(key)} for key in operate(context, work)]
    columns = ("access_key", "enabled", "created_at", "expires_at", "description")
    show_list(rows, output, columns=columns, name="access_key")


@app.command()
def enable(context: typer.Context, access_key: KeyArgument) -> None:
    """Let an access key sign again."""
    _enable(context, access_key, enabled=True)


@app.command()
def disable(context: typer.Context, access_key: KeyArgument) -> None:
    """Let an access key rest. All temporary keys of its user end."""
    _enable(context, access_key, enabled=False)


@app.command()
def delete(context: typer.Context, access_key: KeyArgument) -> None:
    """Delete an access key. All temporary keys of its user end too."""

    async def work(operator: Operator) -> None:
        access_keys = operator.parts.identity.access_keys
        key = await access_keys.find(access_key)
        await access_keys.remove(key, **operator.who)

    operate(context, work)
    note(f"Deleted the access key {access_key}.")


def _enable(context: typer.Context, access_key: str, *, enabled: bool) -> None:
    async def work(operator: Operator) -> None:
        access_keys = operator.parts.identity.access_keys
        key = await access_keys.find(access_key)
        await access_keys.enable(key, enabled=enabled, **operator.who)

    operate(context, work)
    note(f"{'Enabled' if enabled else 'Disabled'} the access key {access_key}.")


def _more(key: "AccessKey") -> Row:
    return {
        "user_id": key.user_id,
        "description": key.description,
        "enabled": key.enabled,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }
