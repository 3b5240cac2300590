"""Addresses of the pages about one cluster, and the cluster that a page is about."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from clustercert.http.console.api import path
from clustercert.http.console.visits import PREFIX, Visit
from clustercert.model.errors import NotFound

CLUSTER = "/projects/{project_id}/clusters/{cluster_id}"
"""The path of the pages about a cluster, below `/console`."""


def cluster_page(project_id: str, cluster_id: str) -> str:
    """Return the address of the page about a cluster."""
    return PREFIX + CLUSTER.format(
        project_id=quote(project_id, safe=""), cluster_id=quote(cluster_id, safe="")
    )


def command_name(cluster: Mapping[str, Any]) -> str:
    """Return how commands name a cluster: DOMAIN/PROJECT/CLUSTER; the id if this form is ambiguous."""
    parts = [str(cluster[part]) for part in ("domain", "project", "name")]
    is_plain = not any("/" in part for part in parts) and not parts[0].startswith("-")
    return "/".join(parts) if is_plain else str(cluster["id"])


def place_of(certificate: Mapping[str, Any]) -> list[str]:
    """Return domain, project and name of a certificate's cluster, with ids for what was removed."""
    parts = (
        certificate["project_domain"],
        certificate["project_name"] or certificate["project_id"],
        certificate["cluster_name"] or certificate["cluster_id"],
    )
    return [each for each in parts if each]


def own_page(visit: Visit) -> str:
    """Return the address of the page about the cluster in the path."""
    return cluster_page(visit.part("project_id"), visit.part("cluster_id"))


def api_path(visit: Visit, *more: str) -> str:
    """Return a path of the API about the cluster in the path."""
    return path("projects", visit.part("project_id"), "clusters", visit.part("cluster_id"), *more)


async def cluster_in_path(visit: Visit) -> Any:
    """Return the cluster in the path. Raises NotFound if the visitor can't reach the cluster."""
    place = (visit.part("cluster_id"), visit.part("project_id"))
    if all(each.isprintable() for each in place):
        for each in (await visit.api.get(path("clusters"), name=place[0]))["clusters"]:
            if (each["id"], each["project_id"]) == place:
                return each
    raise NotFound("There is no such cluster, or you have no role in its project. Check the address.")
