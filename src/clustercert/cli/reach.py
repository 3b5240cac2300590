"""Finds the clusters and projects of the caller by name or id, over this service's API."""

from typing import TYPE_CHECKING, Any

from clustercert.cli.lookup import in_domain, only_project, several_clusters
from clustercert.cli.options import CommandError, UnknownName, did_you_mean

if TYPE_CHECKING:
    from clustercert.client import ProjectRef
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject


def find_cluster(
    client: "AdministrationClient", name_or_id: str, project: str | None = None, domain: str | None = None
) -> "JsonObject":
    """Return a cluster in any project of the caller, or in one. Operators reach all projects.

    Raises ClientError, UnknownName, or CommandError if several projects have a cluster of this name.
    """
    found = [each for each in _named(client, name_or_id) if _is_in(each, project, domain)]
    # An id takes precedence over another cluster's name.
    found = [each for each in found if each["id"] == name_or_id] or found
    if len(found) == 1:
        return found[0]
    if not found:
        names = {str(each["name"]) for each in clusters(client) if _is_in(each, project, domain)}
        where = f" in the project {project}" if project is not None else ""
        raise UnknownName(f"There is no cluster {name_or_id}{where}.{did_you_mean(name_or_id, names)}")
    raise CommandError(
        several_clusters(
            name_or_id,
            [
                (str(each["id"]), str(each["project"]), str(each["project_id"]), str(each["domain"]))
                for each in found
            ],
        )
    )


def clusters(client: "AdministrationClient") -> "list[JsonObject]":
    """List the clusters of all projects of the caller, by project and name."""
    found = client.all("/clusters", "clusters")
    return sorted(found, key=lambda each: (str(each["domain"]), str(each["project"]), str(each["name"])))


def find_project(client: "AdministrationClient", name_or_id: str, domain: str | None = None) -> "JsonObject":
    """Return a project in which the caller has a role. Operators reach all projects.

    Raises ClientError, UnknownName, or CommandError if several domains have a project of this name.
    """
    if client.is_operator:
        from clustercert.cli.directory import find

        return find(client, "projects", name_or_id, domain)
    projects = own_projects(client)
    if domain is not None:
        projects = in_domain(projects, domain)
    found = only_project(projects, name_or_id)
    return {"id": found.id, "name": found.name}


def own_projects(client: "AdministrationClient") -> "tuple[ProjectRef, ...]":
    """List the enabled projects in which the caller has a role."""
    from clustercert.client import ProjectRef

    with client.check_format():
        own: Any = client.caller["projects"]
        return tuple(ProjectRef.of(each) for each in own)


def cluster_path(cluster: "JsonObject", *more: str) -> str:
    """Return the path of a cluster, or of something that belongs to it."""
    from clustercert.client.administration import path_of

    return path_of("projects", str(cluster["project_id"]), "clusters", str(cluster["id"]), *more)


def _named(client: "AdministrationClient", name_or_id: str) -> "list[JsonObject]":
    if not name_or_id or not name_or_id.isprintable():
        return []
    return list(client.all("/clusters", "clusters", name=name_or_id))


def _is_in(cluster: "JsonObject", project: str | None, domain: str | None) -> bool:
    return project in (None, cluster["project"], cluster["project_id"]) and domain in (
        None,
        cluster["domain"],
        cluster["domain_id"],
    )
