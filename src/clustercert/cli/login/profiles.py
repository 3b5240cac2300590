"""`clustercert profile`: the saved logins."""

import os
from typing import Annotated

import typer

from clustercert.cli.login import profile
from clustercert.cli.output import Output, OutputOption, print_note, show_list
from clustercert.cli.session import warn_in_client

app = typer.Typer(name="profile", help="Manage saved logins at several services.", no_args_is_help=True)


@app.command("list")
def list_profiles(output: OutputOption = Output.TABLE) -> None:
    """List the saved logins. Shows no secrets."""
    warn_in_client(os.environ)
    current = profile.current(os.environ)
    found = ((name, profile.remembered(name, os.environ)) for name in profile.names(os.environ))
    rows = [
        {
            "name": name,
            "current": name == current,
            "service": each.url,
            "user": each.user,
            "logged_in": each.is_renewable or (each.is_logged_in and not each.has_expired),
            "expires_at": None if each.is_renewable else each.expires_at,
        }
        for name, each in found
        if each is not None
    ]
    show_list(rows, output, columns=("name", "current", "service", "user", "logged_in", "expires_at"))


@app.command()
def use(name: Annotated[str, typer.Argument(metavar="PROFILE", help="Name of the saved login.")]) -> None:
    """Use this login in all later commands that do not name one."""
    warn_in_client(os.environ)
    profile.use(name, os.environ)
    print_note(f"The current profile is {name}.")
