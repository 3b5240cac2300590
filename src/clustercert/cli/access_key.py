"""`clustercert access-key`: access keys (AK and SK), which sign requests."""

from typing import Annotated

import typer

from clustercert.cli.commands import enable_and_disable, on_store
from clustercert.cli.options import DescriptionOption, DomainOption
from clustercert.cli.output import Output, OutputOption, note, row_of, show_list, show_one
from clustercert.cli.session import Operator

_DETAILS = ("user_id", "description", "enabled", "created_at", "expires_at")

app = typer.Typer(
    name="access-key", help="Manage access keys (AK/SK), which sign requests.", no_args_is_help=True
)

UserOption = Annotated[str, typer.Option(metavar="USER", help="Owner of the key, by name or id.")]
KeyArgument = Annotated[str, typer.Argument(metavar="ACCESS_KEY", help="The access key (AK).")]


@app.command()
@on_store
async def create(
    operator: Operator,
    user: UserOption,
    domain: DomainOption = None,
    description: DescriptionOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Create an access key. Shows its secret once, and never again."""
    if output is Output.NAME:
        raise typer.BadParameter("The format `name` would not show the secret. Choose another format.")
    issued = await operator.parts.identity.access_keys.create(
        await operator.user(user, domain), description=description, actor=operator.actor
    )
    row = {"access_key": issued.key.id, "secret_key": issued.secret, **row_of(issued.key, *_DETAILS)}
    show_one(row, output, name="access_key")


@app.command("list")
@on_store
async def list_access_keys(
    operator: Operator, user: UserOption, domain: DomainOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List a user's access keys, including temporary ones."""
    owner = await operator.user(user, domain)
    keys = await operator.parts.identity.access_keys.of_user(owner)
    rows = [{"access_key": key.id, **row_of(key, *_DETAILS)} for key in keys]
    columns = ("access_key", "enabled", "created_at", "expires_at", "description")
    show_list(rows, output, columns=columns, name="access_key")


@enable_and_disable(
    app,
    "Enable an access key.",
    "Disable an access key, and delete all temporary keys of its user.",
    decorator=on_store,
)
async def switch(operator: Operator, access_key: KeyArgument, *, enabled: bool) -> None:
    access_keys = operator.parts.identity.access_keys
    key = await access_keys.find(access_key)
    await access_keys.enable(key, enabled=enabled, actor=operator.actor)
    note(f"{'Enabled' if enabled else 'Disabled'} the access key {access_key}.")


@app.command()
@on_store
async def delete(operator: Operator, access_key: KeyArgument) -> None:
    """Delete an access key, and all temporary keys of its user."""
    access_keys = operator.parts.identity.access_keys
    key = await access_keys.find(access_key)
    await access_keys.remove(key, actor=operator.actor)
    note(f"Deleted the access key {access_key}.")
