"""Reads the inventory on behalf of callers, after authorizing them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.inventory.access import AccessReport, AccessReports
from clustercert.model import Caller
from clustercert.model.errors import Conflict, Forbidden, NotFound
from clustercert.policy.roles import administers, require_operator, require_reach
from clustercert.store.certificate_view import CertificateView
from clustercert.store.cluster_cache import ClusterLookup, require_cluster
from clustercert.store.inventory import CertificateFilter, InventoryQueries, Page, Scope

ONLY_OPERATORS = "Only operators can see the certificates of all projects. Name a project."


@dataclass(frozen=True, slots=True)
class Inventory:
    """Finds certificates. Operators see all, project admins those in their project, other callers only their own.

    Methods that take a project raise NotFound if the caller has no role in the project, or if it lacks the cluster.
    """

    queries: InventoryQueries
    clusters: ClusterLookup
    access: AccessReports
    now: Callable[[], datetime]

    async def of_project(
        self,
        caller: Caller,
        project_id: str,
        wanted: CertificateFilter,
        *,
        cluster_id: str | None = None,
        limit: int,
        before: int | None,
    ) -> Page:
        """List certificates in a project: for one cluster, or for all, including removed ones.

        Raises Forbidden if the filter names another user and the caller is not an administrator.
        """
        user_id = _visible_user(caller, project_id, wanted.user_id)
        wanted = replace(wanted, project_id=project_id, user_id=user_id)
        if cluster_id is not None:
            wanted = replace(
                wanted, cluster_id=(await require_cluster(self.clusters, project_id, cluster_id)).id
            )
        scope: Scope = "project_id"
        if wanted.user_id == caller.user.id:
            scope = "user_id"
        elif wanted.cluster_id and await self.clusters.cluster(project_id, wanted.cluster_id):
            scope = "cluster_id"
        return await self.queries.page(wanted, self.now(), limit=limit, before=before, scope=scope)

    async def of_all_projects(
        self, caller: Caller, wanted: CertificateFilter, *, limit: int, before: int | None
    ) -> Page:
        """List certificates in all projects. Raises Forbidden unless the caller is an operator."""
        require_operator(caller, ONLY_OPERATORS)
        return await self.queries.page(wanted, self.now(), limit=limit, before=before)

    async def show(self, caller: Caller, project_id: str, cluster_id: str, name: str) -> CertificateView:
        """Find a cluster's certificate by fingerprint, credential number or serial (lower-case hex).

        Raises NotFound if there is none that the caller may see, or Conflict if several have the serial.
        """
        require_reach(caller, project_id)
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        found = await self.queries.find(name, cluster_id=cluster.id)
        if not administers(caller, project_id):
            found = tuple(each for each in found if each.user_id == caller.user.id)
        return only(found)

    async def show_in_any_project(self, caller: Caller, name: str) -> CertificateView:
        """Like `show`, but in any project. Raises Forbidden unless the caller is an operator."""
        require_operator(caller, ONLY_OPERATORS)
        return only(await self.queries.find(name))

    async def access_report(
        self, caller: Caller, project_id: str, cluster_id: str, *, user_id: str | None, group: str | None
    ) -> AccessReport:
        """Report who has access to a cluster. Raises Forbidden unless the caller is an administrator."""
        require_reach(caller, project_id)
        if not administers(caller, project_id):
            raise Forbidden("Only admins of the project and operators can see who has access to a cluster.")
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        return await self.access.report(cluster, user_id=user_id, group=group)


def only(found: tuple[CertificateView, ...]) -> CertificateView:
    """Return the only certificate found. Raises NotFound if there is none, or Conflict if there are several."""
    if not found:
        raise NotFound("There is no such certificate. Check its fingerprint, credential number or serial.")
    if len(found) > 1:
        raise Conflict("Several certificates match. Use the full fingerprint.")
    return found[0]


def _visible_user(caller: Caller, project_id: str, wanted: str | None) -> str | None:
    """Return the user whose certificates the caller may list, or `None` for all users. Raises NotFound or Forbidden."""
    require_reach(caller, project_id)
    if administers(caller, project_id):
        return wanted
    if wanted not in (None, caller.user.id):
        raise Forbidden("Only admins of the project and operators can see certificates of other users.")
    return caller.user.id
