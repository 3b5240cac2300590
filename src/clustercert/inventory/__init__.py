"""Use case: what was issued, for those whose business it is. Revoking it is `revocation`'s."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.errors import Conflict, Forbidden, NotFound
from clustercert.inventory.access import AccessReports, Report
from clustercert.inventory.crls import Crls
from clustercert.model import Caller
from clustercert.policy import administers, operates, require_reach
from clustercert.store.clusters import ClusterLookup, existing
from clustercert.store.inventory import Along, InventoryRows, Listed, Page, State, Wanted

__all__ = ["AccessReports", "Crls", "Inventory", "Listed", "Page", "Report", "State", "Wanted", "only"]


@dataclass(frozen=True, slots=True)
class Inventory:
    """Shows callers what they may see: operators everything, a project's admins the project's, others their own.

    Attributes:
        access: who can still get in, for admins and operators.
    """

    rows: InventoryRows
    clusters: ClusterLookup
    access: AccessReports
    now: Callable[[], datetime]

    async def of_project(
        self, caller: Caller, project_id: str, wanted: Wanted, *, limit: int, before: int | None
    ) -> Page:
        """Of a project, clusters that are gone included.

        Raises NotFound where the caller has no role there, Forbidden where they ask for somebody else's.
        """
        wanted = replace(wanted, project_id=project_id, user_id=_whose(caller, project_id, wanted.user_id))
        along: Along = "project_id"
        if wanted.user_id == caller.user.id:
            along = "user_id"
        elif wanted.cluster_id and await self.clusters.cluster(project_id, wanted.cluster_id):
            along = "cluster_id"
        return await self.rows.page(wanted, self.now(), limit=limit, before=before, along=along)

    async def of_cluster(
        self,
        caller: Caller,
        project_id: str,
        cluster_id: str,
        wanted: Wanted,
        *,
        limit: int,
        before: int | None,
    ) -> Page:
        """Of one cluster. Raises as `of_project` does, and NotFound where the project has no such cluster."""
        user_id = _whose(caller, project_id, wanted.user_id)
        cluster = await existing(self.clusters, project_id, cluster_id)
        wanted = replace(wanted, project_id=project_id, cluster_id=cluster.id, user_id=user_id)
        along: Along = "user_id" if user_id == caller.user.id else "cluster_id"
        return await self.rows.page(wanted, self.now(), limit=limit, before=before, along=along)

    async def everywhere(self, caller: Caller, wanted: Wanted, *, limit: int, before: int | None) -> Page:
        """Of all projects. Raises Forbidden unless the caller is an operator."""
        _require_operator(caller)
        return await self.rows.page(wanted, self.now(), limit=limit, before=before)

    async def show(self, caller: Caller, project_id: str, cluster_id: str, name: str) -> Listed:
        """One certificate of a cluster, by fingerprint, credential number or serial (lower-case hex).

        Raises NotFound where there is none that the caller may see, Conflict where a serial names several.
        """
        require_reach(caller, project_id)
        cluster = await existing(self.clusters, project_id, cluster_id)
        found = await self.rows.find(name, cluster_id=cluster.id)
        if not administers(caller, project_id):
            found = tuple(each for each in found if each.user_id == caller.user.id)
        return only(found)

    async def show_anywhere(self, caller: Caller, name: str) -> Listed:
        """One certificate of any project. Raises as `show` does, and Forbidden unless the caller is an operator."""
        _require_operator(caller)
        return only(await self.rows.find(name))

    async def who_can_get_in(
        self, caller: Caller, project_id: str, cluster_id: str, *, user_id: str | None, group: str | None
    ) -> Report:
        """Raises NotFound as `show` does, and Forbidden where the caller's role is too small."""
        require_reach(caller, project_id)
        if not administers(caller, project_id):
            raise Forbidden("Only the project's admins and operators see who can get into a cluster.")
        cluster = await existing(self.clusters, project_id, cluster_id)
        return await self.access.report(cluster, user_id=user_id, group=group)


def only(found: tuple[Listed, ...]) -> Listed:
    """The one that was found. Raises NotFound or Conflict."""
    if not found:
        raise NotFound("There is no such certificate. Check its fingerprint, credential number or serial.")
    if len(found) > 1:
        raise Conflict("Several certificates are meant by this. Name the one by its whole fingerprint.")
    return found[0]


def _whose(caller: Caller, project_id: str, wanted: str | None) -> str | None:
    """Whose certificates the caller gets, None for everybody's."""
    require_reach(caller, project_id)
    if administers(caller, project_id):
        return wanted
    if wanted not in (None, caller.user.id):
        raise Forbidden("Only the project's admins and operators see other users' certificates.")
    return caller.user.id


def _require_operator(caller: Caller) -> None:
    if not operates(caller):
        raise Forbidden("This is for operators of the service. Ask for the certificates of one project.")
