"""Names of the service's objects for the completion of shells.

Completion must not make people wait, so the names come from a cache. A child process renews the cache, and completion
waits for the child only a moment. After an error, no names are offered and nothing is printed.
"""

import contextlib
import inspect
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args, get_origin

import typer

from clustercert.cli.credential import cache
from clustercert.cli.login import profile
from clustercert.cli.resources import RESOURCES
from clustercert.model.errors import ClustercertError

if TYPE_CHECKING:
    from clustercert.cli.login.profile import Profile

# Metavars of arguments that are names, and the kind of their names.
KINDS = {each.metavar: each.plural for each in RESOURCES.values() if each.key == "name"} | {
    "PROFILE": "profiles"
}
# The kinds of names of options without a metavar, by the option's parameter.
_PARAMETERS = {
    "cluster": "clusters",
    "project": "projects",
    "profile_name": "profiles",
    "profile": "profiles",
}
_FRESH_SECONDS = 20
_FETCH_SECONDS = 10
# The longest time of a completion, with the processor time for the start of the program: below 0.3 seconds.
_TOTAL_SECONDS = 0.28
_LEAST_SECONDS = 0.05
_MAX_NAMES = 5000


def add_to(commands: typer.Typer) -> None:
    """Add completion to all arguments and options that are names."""
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            add_to(group.typer_instance)
    for command in commands.registered_commands:
        if command.callback is not None:
            for parameter in inspect.signature(command.callback).parameters.values():
                _add_to_parameter(parameter)


def _add_to_parameter(parameter: inspect.Parameter) -> None:
    if get_origin(parameter.annotation) is not Annotated:
        return
    for info in get_args(parameter.annotation)[1:]:
        if isinstance(info, typer.models.ParameterInfo):
            metavar = (info.metavar or "NAME").strip("[]…")
            kind = _PARAMETERS.get(parameter.name) if metavar == "NAME" else KINDS.get(metavar)
            if kind is not None and info.autocompletion is None:
                info.autocompletion = _completion(kind)


def _completion(kind: str) -> Callable[..., list[str]]:
    """Return the function that Typer calls for an argument of this kind."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        name = ctx.params.get("profile_name") or ctx.params.get("profile") or profile.current(os.environ)
        try:
            found = profile.names(os.environ) if kind == "profiles" else names(kind, str(name))
        except Exception:  # noqa: BLE001 - a message would garble the line that is being typed
            return []
        return [each for each in found if each.startswith(incomplete) and is_plain(each)]

    return complete


def is_plain(name: str) -> bool:
    """Whether the name is safe: no shell or command reads it as anything else. Others are not completed."""
    return (
        not name.startswith("-")
        and name.replace("-", "a").replace("_", "a").replace(".", "a").replace("@", "a").isalnum()
    )


def names(kind: str, login: str) -> Sequence[str]:
    """Return names of one kind that the user of a saved login may see: from the cache, or from the service in time."""
    found = profile.remembered(login, os.environ)
    if found is None or not (found.is_renewable or (found.is_logged_in and not found.has_expired)):
        return ()
    state = cache.login_state(str(profile.path_of(login, os.environ)))
    file = _file(login, kind)
    # The next command renews a login at an OIDC issuer.
    if _age(file) > _FRESH_SECONDS and not found.has_expired:
        _renew(file, kind, found, state)
    return _read(file, state)


def _read(file: Path, state: str) -> Sequence[str]:
    """Return the names in the cache, if they are of this login."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["login"] == state:
            return list(map(str, content["names"]))
    return ()


def _file(login: str, kind: str) -> Path:
    folder = cache.folder("names")
    if folder is None:
        raise OSError("there is no cache folder")
    return Path(folder) / f"{login},{kind}"


def _age(file: Path) -> float:
    try:
        return abs(time.time() - file.stat().st_mtime)
    except OSError:
        return float("inf")


def _renew(file: Path, kind: str, found: "Profile", state: str) -> None:
    """Renew the cache in a child process. Waits for a moment, then returns while it continues."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _run_child(file, kind, found, state)
    os.close(writer)
    select.select([reader], [], [], max(_LEAST_SECONDS, _TOTAL_SECONDS - time.process_time()))
    os.close(reader)


def _run_child(file: Path, kind: str, found: "Profile", state: str) -> None:
    """Fetch the names, write them and end the process. The pipe to the parent is closed with it."""
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        # The shell waits until all copies of these streams are closed.
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        signal.alarm(_FETCH_SECONDS)
        # Mark the cache as renewed first, so that the next key press does not ask a service that does not answer.
        _write(file, state, _read(file, state))
        with contextlib.suppress(ClustercertError):
            _write(file, state, _fetched(kind, found))
    finally:
        os._exit(0)


def _write(file: Path, state: str, found: Iterable[str]) -> None:
    from clustercert.secure_file import make_private_folder, write_private

    make_private_folder(file.parent)
    write_private(file, json.dumps({"login": state, "names": sorted(set(found))[:_MAX_NAMES]}))


def _fetched(kind: str, found: "Profile") -> Iterator[str]:
    """Ask the service for names. Lists for operators are read only if the user is one. Raises ClientError."""
    from clustercert.cli.lookup import reachable_clusters
    from clustercert.policy.rules import OPERATOR, PROJECT_ROLES

    with found.client() as client:
        caller = client.caller()
        is_operator = caller is not None and caller.is_operator
        if kind == "clusters" and not is_operator:
            yield from (each.name for each in reachable_clusters(client))
            return
        if kind == "projects":
            yield from (each.name for each in client.projects())
        if kind == "roles":
            yield from (*PROJECT_ROLES, OPERATOR)
    if is_operator:
        from clustercert.client.administration import path_of

        with found.administration_client() as administration:
            yield from (str(each["name"]) for each in administration.all(path_of(kind), kind))
