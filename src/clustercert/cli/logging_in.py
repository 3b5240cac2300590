"""From a proof of who one is to a profile in one project; how the proof came in is not known here."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.profile import Profile, ProfileError

if TYPE_CHECKING:
    # Only whoever logs in loads the HTTP client.
    from clustercert.client import Login, Named, Session

_MAX_CA_BYTES = 1024 * 1024
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


def is_id(text: str) -> bool:
    """Whether a project or user is meant by id."""
    return _ID.fullmatch(text) is not None


def read_ca(path: Path | None) -> str | None:
    """The text of a CA file. Raises ProfileError."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(_MAX_CA_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise ProfileError(f"The CA file {path} can't be read: {error.strerror}.") from error


def by_password(url: str, login: "Login", ca_pem: str | None) -> "tuple[Session, Named]":
    """A token in the login's project, or else in the user's only one. Raises ClientError or ProfileError."""
    from clustercert.client import Client
    from clustercert.client.wire import Refused

    with Client(url, ca_pem=ca_pem) as client:
        try:
            session = client.log_in(login)
        except Refused as error:
            if error.http_status == 401:  # noqa: PLR2004 - the one refusal that never says why
                hint = "Check the user, their domain, the password and the project."
                raise ProfileError(f"{error.message} {hint}") from error
            raise
    return in_project(url, session, None, ca_pem)


def in_project(
    url: str, session: "Session", wanted: str | None, ca_pem: str | None
) -> "tuple[Session, Named]":
    """The session, if it is one in a project; else a new one in the wanted or the only project."""
    from clustercert.client import Client
    from clustercert.client.auth import TokenAuth

    if session.project is not None:
        return session, session.project
    with Client(url, TokenAuth(session.token), ca_pem=ca_pem) as client:
        project = chosen(client.projects(), wanted)
        return client.rescoped(session.token, project.id), project


def by_access_key(
    url: str, access_key: str, secret_key: str, wanted: str | None, ca_pem: str | None
) -> Profile:
    """A profile with the key, once the service has accepted it. Raises ClientError or ProfileError."""
    from clustercert.client import Client
    from clustercert.client.auth import AccessKeyAuth

    with Client(url, AccessKeyAuth(access_key, secret_key), ca_pem=ca_pem) as client:
        project = chosen(client.projects(), wanted)
    return Profile(
        url, access_key, project.id, project.name, ca_pem, access_key=access_key, secret_key=secret_key
    )


def chosen(projects: "tuple[Named, ...]", wanted: str | None) -> "Named":
    """The wanted project, or the only one. Raises ProfileError."""
    found = [project for project in projects if wanted in (None, project.id, project.name)]
    if len(found) == 1:
        return found[0]
    if not projects:
        raise ProfileError("You have a role in no project. Ask the operator for one.")
    names = ", ".join(f"{project.name} ({project.id})" for project in projects[:20])
    if wanted is not None and not found:
        raise ProfileError(f"You have no role in a project {wanted}. Yours: {names}.")
    raise ProfileError(f"Say which project with --project, by id if need be: {names}.")
