"""`clustercert status`, `password` and `profile`: the current login, its password, and the saved logins."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.credential import cache
from clustercert.cli.login import password_login
from clustercert.cli.login import profile as profiles
from clustercert.cli.login.command import password_from
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.login.profile import Profile
from clustercert.cli.options import UNAVAILABLE, CommandError, NotLoggedIn, PasswordFileOption, exit_code
from clustercert.cli.session import warn_in_client
from clustercert.cli.terminal.output import Output, OutputOption, print_note, row_of, show_list, show_one
from clustercert.cli.terminal.prompts import read_secret
from clustercert.model.identity import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clustercert.client import CurrentUser, ProjectRef

_PROJECT = ("id", "name", "domain", "domain_id", "roles")


@expand_options
def status(login: LoginOptions, output: OutputOption = Output.TABLE) -> None:
    """Show who is logged in, where and until when.

    Asks the service for the user's roles and projects. If the service does not answer, shows the saved login, and exits
    with status 6. Exits with status 3 if there is no login, or if the service does not accept the login.

    Examples:
        clustercert status
        clustercert status --output json
    """
    from clustercert.client.connection import ClientError, Unreachable

    name = login.saved_name
    others = _other_logins(name) if name is not None else {}
    caller, failure = None, None
    try:
        chosen = login.profile(may_ask=False)
        with chosen.explain_rejection(), chosen.client() as client:
            caller = client.caller()
    except NotLoggedIn:
        if others:
            print_note(
                f"Other saved logins: {', '.join(_texts(others))}. Choose one with `clustercert profile use NAME`."
            )
        raise
    except ClientError as error:
        if name is None or exit_code(error) != UNAVAILABLE:
            raise
        chosen, failure = profiles.load(name, os.environ), error
    row = chosen.summary(name) | {
        "checked": failure is None,
        "user_id": caller.id if caller is not None else None,
        "service_roles": caller.service_roles if caller is not None else None,
        "projects": [row_of(each, *_PROJECT) for each in caller.projects] if caller is not None else None,
        "cached_credentials": 0 if name is None else _cached(name),
        "access_requests": [] if name is None else _marked_requests(name, chosen.shown_user),
        "other_logins": [{"profile": each, **_other_login(other)} for each, other in others.items()],
    }
    if output is Output.TABLE:
        row["other_logins"] = _texts(others)
        row["projects"] = None if caller is None else _roles(caller.projects)
    if failure is not None and output is Output.TABLE:
        row = {field: value for field, value in row.items() if value is not None}
    show_one(row, output, name="user")
    if failure is not None:
        raise Unreachable(f"{failure.message} Only the saved login is shown.")


def _other_logins(name: str) -> dict[str, Profile]:
    """Return the other saved logins by the names of their profiles."""
    saved = profiles.saved_profiles(os.environ)
    return {each: other for each, other in saved.items() if each != name and other.user}


def _other_login(other: Profile) -> dict[str, object]:
    return {
        "service": other.url,
        "user": other.user,
        "user_domain": other.domain,
        "logged_in": other.is_logged_in,
    }


def _texts(others: dict[str, Profile]) -> list[str]:
    """Return a description of each saved login, such as `work: alice at https://…`."""
    return [
        f"{name}: {other.shown_user} at {other.url}{'' if other.is_logged_in else ', logged out'}"
        for name, other in others.items()
    ]


def _names(projects: "Sequence[ProjectRef]") -> "dict[str, ProjectRef]":
    """Return projects by name, sorted. If several projects have the same name, the name begins with the domain."""
    names = [each.name for each in projects]
    found = {
        f"{each.domain}/{each.name}" if names.count(each.name) > 1 else each.name: each for each in projects
    }
    return dict(sorted(found.items()))


def _roles(projects: "Sequence[ProjectRef]") -> list[str]:
    """Return the user's projects with the roles, as texts such as `eu-de (admin, member)`."""
    return [f"{name} ({', '.join(each.roles)})" for name, each in _names(projects).items()]


def _cached(name: str) -> int:
    """Count the cached credentials for kubectl that belong to a profile and are still valid."""
    folder = cache.folder()
    if folder is None:
        return 0
    entries = map(cache.read, map(str, Path(folder).glob(f"{name},*")))
    state = cache.login_state(str(profiles.path_of(name, os.environ)))
    return sum(
        entry is not None and entry.login == state and entry.is_usable(time.time()) for entry in entries
    )


def _marked_requests(name: str, user: str) -> list[str]:
    """Return the ids of the access requests that kubectl uses with a profile. Some of these requests may be closed."""
    folder = cache.folder()
    if folder is None:
        return []
    paths = sorted(Path(folder).glob(f"{name},*{cache.MARK_SUFFIX}"))
    marks = [cache.read_mark(str(path).removesuffix(cache.MARK_SUFFIX)) for path in paths]
    return [mark.request for mark in marks if mark is not None and mark.user == user]


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
    """Change your password. Asks for the old password.

    All your other logins and temporary access keys end. Permanent access keys and certificates stay valid:
    `clustercert logout --everywhere` revokes certificates.

    The old password comes from a prompt, from --password-file or from the variable CLUSTERCERT_PASSWORD.

    Examples:
        clustercert password
    """
    from clustercert.client import PasswordLogin
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
        f"Changed the password of {user.shown_name} at {chosen.url}. All other logins of this user have ended."
    )
    name = login.saved_name
    if name is None or chosen.access_key is not None:
        return
    # The password change also revoked this login's token, so log in again.
    named = PasswordLogin(user=user.id, domain=None, password=new, project_id=chosen.project_id)
    session = password_login.log_in_by_password(chosen.url, named, chosen.ca_pem)
    renewed = replace(chosen, token=session.token, expires_at=session.expires_at)
    profiles.save(name, renewed, os.environ)


def _user_here(chosen: Profile, caller: "CurrentUser") -> "CurrentUser":
    """Return the user. Raises CommandError if the service does not store the user's password."""
    if caller.issuer != BUILT_IN:
        raise CommandError(
            f"The password of {caller.shown_name} is not at {chosen.url}, but at {caller.issuer}. Change the password "
            "there."
        )
    return caller


profile = typer.Typer(name="profile", help="Manage saved logins at several services.", no_args_is_help=True)


@profile.command("list")
def list_profiles(output: OutputOption = Output.TABLE) -> None:
    """List the saved logins. Shows no secrets.

    Examples:
        clustercert profile list
    """
    warn_in_client(os.environ)
    current = profiles.current(os.environ)
    found = ((name, profiles.remembered(name, os.environ)) for name in profiles.names(os.environ))
    rows = [
        {
            "name": name,
            "current": name == current,
            "service": each.url,
            "user": (each.shown_user if output is Output.TABLE else each.user) or None,
            "user_domain": each.domain,
            "logged_in": each.is_renewable or (each.is_logged_in and not each.has_expired),
            "expires_at": each.ends_at,
        }
        for name, each in found
        if each is not None
    ]
    columns = ("name", "current", "service", "user", "logged_in", "expires_at")
    show_list(rows, output, columns=columns, keep=("user", "logged_in", "expires_at"))


@profile.command()
def use(name: Annotated[str, typer.Argument(metavar="PROFILE", help="Name of the saved login.")]) -> None:
    """Use this login in all later commands that do not name a login.

    Examples:
        clustercert profile use work
    """
    warn_in_client(os.environ)
    profiles.use(name, os.environ)
    print_note(f"The current profile is {name}.")
