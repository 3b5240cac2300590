"""Finds the clusters and projects of the caller by name or id, over this service's API."""

from typing import TYPE_CHECKING, Any

from clustercert.cli.options import CommandError, UnknownName, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

_MAX_NAMES = 20


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
    places = ", ".join(f"{each['project']} ({each['project_id']})" for each in found[:_MAX_NAMES])
    raise CommandError(
        f"Several projects have a cluster named {name_or_id}: {places}. Name one of them with --project, or give the"
        " cluster's id."
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
    found = [each for each in projects if name_or_id in (each["id"], each["name"])]
    if domain is not None:
        found = [each for each in found if each["domain_id"] == domain] or found
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{each['name']} ({each['id']})" for each in projects[:_MAX_NAMES]) or "none"
    if not found:
        similar = did_you_mean(name_or_id, [str(each["name"]) for each in projects])
        raise UnknownName(f"You have no role in a project {name_or_id}.{similar} Your projects: {names}.")
    raise CommandError(f"Several of your projects are named {name_or_id}. Give the id: {names}.")


def own_projects(client: "AdministrationClient") -> "Sequence[JsonObject]":
    """List the enabled projects in which the caller has a role."""
    body = client.exchange("GET", "/v3/auth/projects").body
    with client.check_format():
        projects: Any = body["projects"]
        return [{**each, "id": str(each["id"]), "name": str(each["name"])} for each in projects]


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
