"""`clustercert access-key`: access keys (AK and SK), which sign requests."""

from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import enable_and_disable, on_service
from clustercert.cli.options import DescriptionOption, DomainOption, YesOption
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient

app = typer.Typer(
    name="access-key", help="Manage access keys (AK/SK), which sign requests.", no_args_is_help=True
)

UserOption = Annotated[str, typer.Option(metavar="USER", help="Owner of the key, by name or id.")]
KeyArgument = Annotated[str, typer.Argument(metavar="ACCESS_KEY", help="The access key (AK).")]


@app.command()
@on_service
def create(
    client: "AdministrationClient",
    user: UserOption,
    domain: DomainOption = None,
    description: DescriptionOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Create an access key. Shows its secret once, and never again."""
    from clustercert.cli.output import with_times

    if output is Output.NAME:
        raise typer.BadParameter("The format `name` would not show the secret. Choose another format.")
    made = client.post(_keys_of(client, user, domain), {"description": description})
    row = {"access_key": made.pop("access_key"), "secret_key": made.pop("secret_key"), **made}
    show_one(with_times(row), output, name="access_key")


@app.command("list")
@on_service
def list_access_keys(
    client: "AdministrationClient",
    user: UserOption,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a user's access keys, including temporary ones."""
    from clustercert.cli.output import with_times

    found = [with_times(each) for each in client.all(_keys_of(client, user, domain), "access_keys")]
    columns = ("access_key", "enabled", "created_at", "expires_at", "description")
    show_list(found, output, columns=columns, name="access_key")


@enable_and_disable(
    app,
    "Enable an access key.",
    "Disable an access key, and delete all temporary keys of its user.",
)
def switch(client: "AdministrationClient", access_key: KeyArgument, *, enabled: bool) -> None:
    client.update(_path(access_key), enabled=enabled)
    note(f"{'Enabled' if enabled else 'Disabled'} the access key {access_key}.")


@app.command()
@on_service
def delete(client: "AdministrationClient", access_key: KeyArgument, yes: YesOption = False) -> None:
    """Delete an access key, and all temporary keys of its user."""
    found = client.get(_path(access_key))
    text = f" ({found['description']})" if found["description"] else ""
    confirm(f"Delete the access key {access_key}{text} of the user {found['user_id']}?", yes=yes)
    client.delete(_path(access_key))
    note(f"Deleted the access key {access_key}.")


def _keys_of(client: "AdministrationClient", user: str, domain: str | None) -> str:
    from clustercert.cli.directory import find
    from clustercert.client.administration import path_of

    return path_of("users", str(find(client, "users", user, domain)["id"]), "access-keys")


def _path(access_key: str) -> str:
    from clustercert.client.administration import path_of

    return path_of("access-keys", access_key)
