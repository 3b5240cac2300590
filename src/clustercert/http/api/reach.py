"""Routes about the clusters that a caller can reach, in all projects."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from clustercert.http import query, responses
from clustercert.http.api import OWN
from clustercert.http.dependencies import CallDep
from clustercert.http.openapi import described
from clustercert.http.paging import KeyPageDep, numbered_page
from clustercert.model import Cluster, JsonObject, Project, rfc3339
from clustercert.policy.rules import operates


class ReachableClusterBody(BaseModel):
    """A cluster that the caller can reach. Times are RFC 3339."""

    id: str
    name: str
    project: str
    project_id: str
    domain: str = Field(description="The project's domain.")
    domain_id: str
    version: str
    internal_url: str
    external_url: str | None
    labels: dict[str, str]
    client_ca_id: str
    created_at: str
    updated_at: str


class ReachableClusterListBody(BaseModel):
    """A page of clusters, sorted by id."""

    clusters: list[ReachableClusterBody]
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


router = APIRouter(tags=["Inventory"])


@router.get(OWN + "/clusters", responses=described("The clusters.", ReachableClusterListBody))
async def list_reachable(
    call: CallDep,
    page: KeyPageDep,
    name: Annotated[str | None, Query(description="Only clusters with this name or id.")] = None,
) -> Response:
    """List the clusters in all projects in which the user has a role, whatever the token's scope.

    Operators see the clusters of all projects. Sorted by id.
    """
    wanted = query.plain_text("name", name) if name is not None else None
    identity, queries = call.services.identity, call.services.clusters.queries
    projects = None
    if not operates(call.caller):
        own = await identity.projects_of(call.caller)
        projects = {each.id: each for each in own if each.enabled and each.domain.enabled}
    found = await queries.reachable_page(projects, wanted, page.after, page.limit + 1)
    if projects is None:
        owners = await identity.directory.projects_with_ids({each.project_id for each in found})
        projects = {each.id: each for each in owners}
    shown = found[: page.limit]
    # A project that was deleted meanwhile has no clusters.
    known = [each for each in shown if each.project_id in projects]
    following = shown[-1].id if len(found) > page.limit else None
    return responses.private(
        numbered_page(
            "clusters",
            known,
            lambda each: _reachable_view(each, projects[each.project_id]),
            lambda each: each.id,
            following,
            page.max_bytes,
        )
    )


def _reachable_view(cluster: Cluster, project: Project) -> JsonObject:
    return {
        "id": cluster.id,
        "name": cluster.name,
        "project": project.name,
        "project_id": project.id,
        "domain": project.domain.name,
        "domain_id": project.domain.id,
        "version": cluster.version,
        "internal_url": cluster.internal_url,
        "external_url": cluster.external_url,
        "labels": dict(sorted(cluster.labels.items())),
        "client_ca_id": cluster.client_ca.id,
        "created_at": rfc3339(cluster.created_at),
        "updated_at": rfc3339(cluster.updated_at),
    }
