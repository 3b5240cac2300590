"""`clustercert password`: changes the password of the user who is logged in."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.login import flow, profile
from clustercert.cli.login.command import password_from
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.options import CommandError, NotLoggedIn, PasswordFileOption
from clustercert.cli.output import print_note
from clustercert.cli.prompts import read_secret
from clustercert.model.identity import BUILT_IN

if TYPE_CHECKING:
    from clustercert.cli.login.profile import Profile
    from clustercert.client import CurrentUser


@expand_options
def password(
    login: LoginOptions,
    password_file: PasswordFileOption = None,
    new_password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the new password from the first line of FILE, or of standard input (-).",
        ),
    ] = None,
) -> None:
    """Change your password. Asks for the old one.

    All other logins and temporary access keys of yours end. Permanent access keys and certificates stay valid:
    `clustercert logout --everywhere` revokes certificates.

    The old password comes from a prompt, from --password-file or from the variable CLUSTERCERT_PASSWORD.
    """
    from clustercert.client import Login
    from clustercert.client.connection import ApiError

    chosen = login.profile()
    with chosen.explain_rejection(), chosen.client() as client:
        caller = client.caller()
        user = _user_here(chosen, caller)
        old = password_from(password_file, "Old password")
        new = read_secret("New password", new_password_file, "add --new-password-file FILE", confirm=True)
        try:
            client.change_password(user.id, old, new)
        except ApiError as error:
            if error.http_status != 401:  # noqa: PLR2004 - not authenticated
                raise
            raise NotLoggedIn("The old password is wrong. The password was not changed.") from error
    print_note(
        f"Changed the password of {user.name} at {chosen.url}. All other logins of {user.name} have ended."
    )
    name = login.saved_name
    if name is None or chosen.access_key is not None:
        return
    # The token of this login has ended, too.
    named = Login(user=user.id, domain=None, password=new, project_id=chosen.project_id)
    session = flow.log_in_by_password(chosen.url, named, chosen.ca_pem)
    renewed = replace(chosen, token=session.token, expires_at=session.expires_at)
    profile.save(name, renewed, os.environ)


def _user_here(chosen: "Profile", caller: "CurrentUser | None") -> "CurrentUser":
    """Return the user, if their password is at the service. Raises CommandError."""
    if caller is None:
        raise CommandError(f"{chosen.url} is not a service of clustercert. Change your password there.")
    if caller.issuer != BUILT_IN:
        raise CommandError(
            f"The password of {caller.name} is not at {chosen.url}, but at {caller.issuer}. Change it there."
        )
    return caller
