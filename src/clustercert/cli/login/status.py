"""`clustercert status`: shows the current login."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from clustercert.cli.commands import expand_options
from clustercert.cli.credential import cache
from clustercert.cli.login import profile
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.login.profile import Profile
from clustercert.cli.output import Output, OutputOption, show_one
from clustercert.client import ProjectRef


@expand_options
def status(login: LoginOptions, output: OutputOption = Output.TABLE) -> None:
    """Show who is logged in, where, until when, and in which projects. Asks the service.

    Exits with 3 if there is no login, or if the service does not accept it.
    """
    name = login.saved_name
    chosen = login.profile(may_ask=False)
    with chosen.explain_rejection(), chosen.client() as client:
        projects, caller = client.projects(), client.caller()
    row = {
        "service": chosen.url,
        "user": chosen.user,
        "user_id": caller.id if caller is not None else None,
        "profile": name,
        "projects": _names(projects),
        "project": chosen.project_name if chosen.chosen_project else None,
        "method": _method(chosen),
        "expires_at": chosen.expires_at,
        "cached_credentials": 0 if name is None else _cached(name),
    }
    show_one(row, output, name="user")


def _names(projects: Sequence[ProjectRef]) -> list[str]:
    """The names of projects, after their domains where several have one name."""
    names = [each.name for each in projects]
    return sorted(
        f"{each.domain}/{each.name}" if names.count(each.name) > 1 else each.name for each in projects
    )


def _method(chosen: Profile) -> str:
    if chosen.oidc is not None:
        return f"OIDC issuer {chosen.oidc.name}" if chosen.oidc.name else "OIDC token"
    return "access key" if chosen.access_key else "token"


def _cached(name: str) -> int:
    """Count the valid credentials for kubectl that belong to a profile."""
    folder = cache.folder()
    if folder is None:
        return 0
    entries = map(cache.read, map(str, Path(folder).glob(f"{name},*")))
    state = cache.login_state(str(profile.path_of(name, os.environ)))
    return sum(
        entry is not None and entry.login == state and entry.is_usable(time.time()) for entry in entries
    )
