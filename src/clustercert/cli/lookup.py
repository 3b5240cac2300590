"""Finds clusters of a running service by name or id, in all projects of the caller."""

import shlex
from typing import TYPE_CHECKING, NamedTuple

from clustercert.cli.options import CommandError, UnknownName, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clustercert.cli.login.profile import Profile
    from clustercert.client import Client, CurrentUser, ProjectRef

NO_PROJECTS = "You have no role in any project. Ask an operator for one, to use its clusters."
_MAX_NAMES = 20


class ReachableCluster(NamedTuple):
    """A cluster with its project."""

    project_id: str
    project: str
    domain: str
    id: str
    name: str


def reachable_clusters(
    client: "Client", project: str | None = None, domain: str | None = None
) -> list[ReachableCluster]:
    """List the clusters in all projects of the caller, or in some of them. Raises ClientError or UnknownName."""
    found = client.projects()
    if not found:
        raise UnknownName(_no_projects(client.caller()))
    if domain is not None:
        found = in_domain(found, domain)
    if project is not None:
        found = (only_project(found, project),)
    return [
        cluster
        for each in sorted(found, key=lambda each: (each.name, each.domain))
        for cluster in _clusters_of(client, each)
    ]


def _clusters_of(client: "Client", project: "ProjectRef") -> list[ReachableCluster]:
    return [
        ReachableCluster(project.id, project.name, project.domain, each.id, each.name)
        for each in sorted(client.clusters(project.id), key=lambda each: each.name)
    ]


def in_domain(projects: "tuple[ProjectRef, ...]", name_or_id: str) -> "tuple[ProjectRef, ...]":
    """Return the projects of a domain. Raises UnknownName if there are none."""
    found = tuple(each for each in projects if name_or_id in (each.domain, each.domain_id))
    if not found:
        domains = sorted({each.domain for each in projects})
        raise UnknownName(
            f"You have no role in a project of the domain {name_or_id}.{did_you_mean(name_or_id, domains)} Your "
            f"projects are in {', '.join(domains[:_MAX_NAMES])}."
        )
    return found


def _no_projects(caller: "CurrentUser | None") -> str:
    if caller is None or not caller.is_operator:
        return NO_PROJECTS
    return (
        "You have no role in any project. `clustercert cluster list` lists the clusters of all projects. To use them, "
        f"give yourself a role: `clustercert role assign ROLE --user {shlex.quote(caller.name)} --project PROJECT`."
    )


def find_cluster(
    client: "Client", login: "Profile", name_or_id: str, project: str | None = None, domain: str | None = None
) -> ReachableCluster:
    """Find a cluster by name or id. The project that was chosen at the login goes first.

    Raises ClientError, UnknownName, or CommandError if several projects have a cluster of this name.
    """
    if project is None and domain is None and login.chosen_project:
        chosen = [each for each in client.projects() if each.id == login.project_id]
        for cluster in (cluster for each in chosen for cluster in _clusters_of(client, each)):
            if name_or_id in (cluster.id, cluster.name):
                return cluster
    clusters = reachable_clusters(client, project, domain)
    found = [each for each in clusters if name_or_id in (each.id, each.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(
            several_clusters(
                name_or_id, [(each.id, each.project, each.project_id, each.domain) for each in found]
            )
        )
    where = f"in the project {project}" if project is not None else "in your projects"
    where += f" of the domain {domain}" if domain is not None else ""
    raise UnknownName(
        f"There is no cluster {name_or_id} {where}.{did_you_mean(name_or_id, {each.name for each in clusters})} "
        "`clustercert clusters` lists the clusters."
    )


def several_clusters(name: str, found: "Sequence[tuple[str, str, str, str]]") -> str:
    """Return the message for several clusters of one name.

    Args:
        found: for each of them its id, its project's name and id, and the project's domain.
    """
    places = ", ".join(
        f"{cluster_id} in the project {project} ({project_id}) of the domain {domain}"
        for cluster_id, project, project_id, domain in found[:_MAX_NAMES]
    )
    return f"Several projects have a cluster named {name}. Give its id, or its project's id with --project: {places}."


def only_project(projects: "tuple[ProjectRef, ...]", name_or_id: str) -> "ProjectRef":
    """Return the project with this name or id. Raises UnknownName, or CommandError if several have the name."""
    found = [each for each in projects if name_or_id in (each.id, each.name)]
    if len(found) == 1:
        return found[0]
    if not projects:
        raise UnknownName(NO_PROJECTS)
    if not found:
        names = ", ".join(
            f"{each.name} ({each.id} in the domain {each.domain})" for each in projects[:_MAX_NAMES]
        )
        similar = did_you_mean(name_or_id, [each.name for each in projects])
        raise UnknownName(f"You have no role in a project {name_or_id}.{similar} Your projects: {names}.")
    names = ", ".join(f"{each.id} in the domain {each.domain}" for each in found[:_MAX_NAMES])
    raise CommandError(f"Several of your projects are named {name_or_id}. Give the id instead: {names}.")
