"""Logs in to a running service, and creates a profile."""

from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.lookup import only_project
from clustercert.cli.options import NotLoggedIn, read_file
from clustercert.cli.profile import Profile

if TYPE_CHECKING:
    from clustercert.client import Login, NamedRef, ProjectRef, Session


def read_ca(path: Path | None) -> str | None:
    """Read a CA file. Escapes what is not ASCII, such as names in comments. Raises CommandError if it can't be read."""
    return read_file(path).decode("ascii", "backslashreplace") if path is not None else None


def log_in_by_password(url: str, login: "Login", ca_pem: str | None) -> "Session":
    """Create a token for the login's project, or without one. Raises ClientError or CommandError."""
    from clustercert.client import Client
    from clustercert.client.connection import ApiError

    with Client(url, ca_pem=ca_pem) as client:
        try:
            return client.log_in(login)
        except ApiError as error:
            if error.http_status == 401:  # noqa: PLR2004 - not authenticated
                hint = "Check the user, their domain, the password and the project."
                raise NotLoggedIn(f"{error.message} {hint}") from error
            raise


def profile_of(url: str, session: "Session", project: str | None, ca_pem: str | None) -> Profile:
    """Create the profile for a token. A token without a project is replaced by one for a project of the user, if any.

    Raises ClientError or CommandError.
    """
    from clustercert.client import Client
    from clustercert.client.auth import TokenAuth

    chosen, scope = session.project is not None or project is not None, session.project
    if scope is None:
        with Client(url, TokenAuth(session.token), ca_pem=ca_pem) as client:
            scope, only = choose_project(client.projects(), project)
            chosen = chosen or only
            if scope is not None:
                session = client.rescope(session.token, scope.id)
    return Profile(
        url=url,
        user=session.user.name,
        project_id=scope.id if scope is not None else None,
        project_name=scope.name if scope is not None else None,
        ca_pem=ca_pem,
        token=session.token,
        expires_at=session.expires_at,
        chosen_project=chosen,
    )


def log_in_by_access_key(
    url: str, access_key: str, secret_key: str, project: str | None, ca_pem: str | None
) -> Profile:
    """Create a profile with an access key, if the service accepts the key. Raises ClientError or CommandError."""
    from clustercert.client import Client
    from clustercert.client.access_key_auth import AccessKeyAuth
    from clustercert.client.connection import ApiError

    with Client(url, AccessKeyAuth(access_key, secret_key), ca_pem=ca_pem) as client:
        try:
            scope, only = choose_project(client.projects(), project)
        except ApiError as error:
            if error.http_status == 401:  # noqa: PLR2004 - not authenticated
                hint = "Check the access key, its secret, and the clock of this machine."
                raise NotLoggedIn(f"{error.message} {hint}") from error
            raise
        caller = client.caller()
    return Profile(
        url=url,
        user=caller.name if caller is not None else access_key,
        domain=caller.domain if caller is not None else None,
        project_id=scope.id if scope is not None else None,
        project_name=scope.name if scope is not None else None,
        ca_pem=ca_pem,
        access_key=access_key,
        secret_key=secret_key,
        chosen_project=project is not None or only,
    )


def choose_project(
    projects: "tuple[ProjectRef, ...]", name_or_id: str | None
) -> "tuple[NamedRef | None, bool]":
    """Return the project, by default the first by name, and whether the user has no other one.

    Returns None if the user, such as an operator, has no role in any project. Raises CommandError if the given project
    is not theirs.
    """
    if name_or_id is not None:
        return only_project(projects, name_or_id), len(projects) == 1
    return min(projects, key=lambda each: each.name, default=None), len(projects) == 1
