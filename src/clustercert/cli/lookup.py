"""Finds clusters of a running service by name or id, in all projects of the caller."""

import shlex
from typing import TYPE_CHECKING, NamedTuple

from clustercert.cli.options import CommandError, UnknownName, did_you_mean

if TYPE_CHECKING:
    from clustercert.cli.profile import Profile
    from clustercert.client import Client, CurrentUser, NamedRef

NO_PROJECTS = "You have no role in any project. Ask an operator for one, to use its clusters."
_MAX_NAMES = 20


class ReachableCluster(NamedTuple):
    """A cluster with its project."""

    project_id: str
    project: str
    id: str
    name: str


def reachable_clusters(client: "Client", project: str | None = None) -> list[ReachableCluster]:
    """List the clusters in all projects of the caller, or in one. Raises ClientError or UnknownName."""
    found = client.projects()
    if not found:
        raise UnknownName(_no_projects(client.caller()))
    if project is not None:
        found = (only_project(found, project),)
    return [
        ReachableCluster(each.id, each.name, cluster.id, cluster.name)
        for each in sorted(found, key=lambda each: each.name)
        for cluster in sorted(client.clusters(each.id), key=lambda cluster: cluster.name)
    ]


def _no_projects(caller: "CurrentUser | None") -> str:
    if caller is None or not caller.is_operator:
        return NO_PROJECTS
    return (
        "You have no role in any project. `clustercert cluster list` lists the clusters of all projects. To use them, "
        f"give yourself a role: `clustercert role assign ROLE --user {shlex.quote(caller.name)} --project PROJECT`."
    )


def find_cluster(
    client: "Client", login: "Profile", name_or_id: str, project: str | None = None
) -> ReachableCluster:
    """Find a cluster by name or id. The project that was chosen at the login goes first.

    Raises ClientError, UnknownName, or CommandError if several projects have a cluster of this name.
    """
    if project is None and login.chosen_project and login.project_id is not None:
        for each in client.clusters(login.project_id):
            if name_or_id in (each.id, each.name):
                return ReachableCluster(login.project_id, login.project_name or "", each.id, each.name)
    clusters = reachable_clusters(client, project)
    found = [each for each in clusters if name_or_id in (each.id, each.name)]
    if len(found) == 1:
        return found[0]
    if found:
        projects = ", ".join(each.project for each in found[:_MAX_NAMES])
        raise CommandError(
            f"Several of your projects have a cluster named {name_or_id}: {projects}. Add --project PROJECT."
        )
    where = f"in the project {project}" if project is not None else "in your projects"
    raise UnknownName(
        f"There is no cluster {name_or_id} {where}.{did_you_mean(name_or_id, {each.name for each in clusters})} "
        "`clustercert clusters` lists the clusters."
    )


def only_project(projects: "tuple[NamedRef, ...]", name_or_id: str) -> "NamedRef":
    """Return the project with this name or id. Raises UnknownName, or CommandError if several have the name."""
    found = [each for each in projects if name_or_id in (each.id, each.name)]
    if len(found) == 1:
        return found[0]
    if not projects:
        raise UnknownName(NO_PROJECTS)
    names = ", ".join(f"{each.name} ({each.id})" for each in projects[:_MAX_NAMES])
    if not found:
        similar = did_you_mean(name_or_id, [each.name for each in projects])
        raise UnknownName(f"You have no role in a project {name_or_id}.{similar} Your projects: {names}.")
    raise CommandError(f"Several of your projects are named {name_or_id}. Give the id: {names}.")
