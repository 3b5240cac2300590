"""Lists and shows certificates on behalf of callers, after authorizing them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.certificates.access import AccessReport, AccessReports
from clustercert.certificates.credential_end import CredentialEnd, Enforcement
from clustercert.model import Caller, Cluster
from clustercert.model.choices import CaState
from clustercert.model.errors import Conflict, Forbidden, InvalidRequest, NotFound
from clustercert.model.rights import (
    administered_projects,
    reads_everything,
    reads_project,
    require_reader,
    require_view,
)
from clustercert.store.certificates.lists import CertificateFilter, InventoryQueries, Page, PlaceNames, Scope
from clustercert.store.certificates.views import CertificateView, VisibleCertificates
from clustercert.store.clusters.registry import ClusterLookup, require_cluster

ONLY_READERS = (
    "Only operators, auditors and project admins can see the certificates of others. Request only your own (own=true),"
    " or name a project."
)


# The maximum number of clusters that `clusters_of_user` returns.
MAX_CLUSTERS = 100


@dataclass(frozen=True, slots=True)
class UserCluster:
    """A cluster for which a user has certificates.

    Attributes:
        until: when the last of the user's certificates for this cluster expires.
    """

    cluster: Cluster
    until: datetime
    enforcement: Enforcement


@dataclass(frozen=True, slots=True)
class Inventory:
    """Finds certificates.

    Operators and auditors see all certificates, project admins see the certificates in their projects, and other
    callers see only their own certificates.

    Methods that take a project raise NotFound if the caller has no role in the project, or if the project lacks the
    cluster.
    """

    queries: InventoryQueries
    clusters: ClusterLookup
    access: AccessReports
    now: Callable[[], datetime]

    async def certificates_of_project(
        self,
        caller: Caller,
        project_id: str,
        filters: CertificateFilter,
        *,
        cluster_id: str | None = None,
        limit: int,
        before: int | None,
        own: bool = False,
    ) -> Page:
        """List certificates in a project: for one cluster, or for all clusters, including removed clusters.

        With `own`, lists only the caller's certificates, and raises InvalidRequest if the filter names another user.
        Raises Forbidden if the filter names another user and the caller is not an administrator.
        """
        if own:
            filters = _own(caller, filters)
        user_id = _visible_user(caller, project_id, filters.user)
        filters = replace(filters, project=project_id, user=user_id)
        if cluster_id is not None:
            filters = replace(
                filters, cluster=(await require_cluster(self.clusters, project_id, cluster_id)).id
            )
        scope: Scope = "project"
        if filters.user == caller.user.id:
            scope = "user"
        elif filters.cluster and await self.clusters.cluster(project_id, filters.cluster):
            scope = "cluster"
        return await self.queries.page(filters, self.now(), limit=limit, before=before, scope=scope)

    async def certificates_of_all_projects(
        self, caller: Caller, filters: CertificateFilter, *, limit: int, before: int | None, own: bool = False
    ) -> Page:
        """List the certificates of all users or, with `own`, only the caller's certificates.

        Operators and auditors list all projects, and admins the projects that they administer. With `own`, includes the
        caller's certificates in projects where the caller has no role any more. Without `own`, raises Forbidden for
        other callers.
        """
        if own:
            filters = _own(caller, filters)
            return await self.queries.page(filters, self.now(), limit=limit, before=before, scope="user")
        projects = administered_projects(caller)
        if not projects or reads_everything(caller):
            require_reader(caller, ONLY_READERS)
            return await self.queries.page(filters, self.now(), limit=limit, before=before)
        return await self.queries.page(filters, self.now(), limit=limit, before=before, projects=projects)

    async def show(self, caller: Caller, project_id: str, cluster_id: str, name: str) -> CertificateView:
        """Find a cluster's certificate by fingerprint, credential number or serial (lower-case hex).

        Raises NotFound if the caller may see no such certificate, or Conflict if several certificates have the serial.
        """
        require_view(caller, project_id)
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        return await self._find(caller, name, project_id, cluster.id)

    async def show_in_project(self, caller: Caller, project_id: str, name: str) -> CertificateView:
        """Like `show`, but searches all clusters of a project, including removed clusters."""
        require_view(caller, project_id)
        return await self._find(caller, name, project_id)

    async def show_in_any_project(self, caller: Caller, name: str) -> CertificateView:
        """Like `show`, but searches the caller's certificates, and the projects that the caller administers."""
        return await self._find(caller, name)

    async def _find(
        self, caller: Caller, name: str, project_id: str | None = None, cluster_id: str | None = None
    ) -> CertificateView:
        return only(
            await self.queries.find(
                name,
                cluster_id=cluster_id,
                project_id=project_id,
                visible=visible_to(caller),
                abbreviated=True,
            )
        )

    async def names(self, certificates: Iterable[CertificateView]) -> PlaceNames:
        """Return the names of the clusters and projects of some certificates."""
        places = [(each.cluster_id, each.project_id) for each in certificates]
        return await self.queries.place_names(places)

    async def ca_states(self, certificates: Iterable[CertificateView]) -> dict[str, CaState]:
        """Return the states of the client CAs of some certificates, by id. Omits the CAs of removed clusters."""
        return await self.queries.ca_states({each.ca_id for each in certificates})

    async def end_of(self, certificate: CertificateView) -> CredentialEnd | None:
        """Return how a certificate ends; None if it has expired, or if its cluster was removed.

        Does not authorize.
        """
        cluster = await self.clusters.cluster(certificate.project_id, certificate.cluster_id)
        if cluster is None or certificate.not_after <= self.now():
            return None
        return await self.access.end_of(cluster, certificate)

    async def clusters_of_user(self, user_id: str) -> tuple[UserCluster, ...]:
        """List the clusters for which a user has unexpired certificates, revoked or not, latest expiry first.

        Does not authorize. Lists at most `MAX_CLUSTERS` clusters. Omits removed clusters.
        """
        found = []
        for each in await self.access.queries.clusters_of_user(user_id, self.now(), limit=MAX_CLUSTERS):
            cluster = await self.clusters.cluster(each.project_id, each.cluster_id)
            if cluster is not None:
                found.append(UserCluster(cluster, each.until, await self.access.enforcement(cluster)))
        return tuple(found)

    async def access_report(
        self,
        caller: Caller,
        project_id: str,
        cluster_id: str,
        *,
        user_id: str | None,
        group: str | None,
        search: str | None,
        with_verifications: bool,
        after: int | None,
        limit: int,
    ) -> AccessReport:
        """Report who has access to a cluster. See `AccessReports.report`.

        Raises Forbidden unless the caller may see all certificates for the cluster.
        """
        require_view(caller, project_id)
        if not reads_project(caller, project_id):
            raise Forbidden(
                "Only admins of the project, operators and auditors can see who has access to a cluster."
            )
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        return await self.access.report(
            cluster,
            user_id=user_id,
            group=group,
            search=search,
            with_verifications=with_verifications,
            after=after,
            limit=limit,
        )


def visible_to(caller: Caller) -> VisibleCertificates | None:
    """Return the certificates that a caller may see in any project; `None` means all certificates."""
    return (
        None
        if reads_everything(caller)
        else VisibleCertificates(caller.user.id, administered_projects(caller))
    )


def only(found: tuple[CertificateView, ...]) -> CertificateView:
    """Return the only certificate in `found`. Raises NotFound if `found` is empty, or Conflict if there are several."""
    if not found:
        raise NotFound("There is no such certificate. Check its fingerprint, credential number or serial.")
    if len(found) > 1:
        raise Conflict("Several certificates match. Use the full fingerprint.")
    return found[0]


def _own(caller: Caller, filters: CertificateFilter) -> CertificateFilter:
    """Restrict a filter to the caller's certificates. Raises InvalidRequest if the filter names another user."""
    if filters.user not in (None, caller.user.id):
        raise InvalidRequest("own, user: these parameters name different users. Send only one of them.")
    return replace(filters, user=caller.user.id)


def _visible_user(caller: Caller, project_id: str, requested: str | None) -> str | None:
    """Return the user whose certificates the caller may list, or `None` for all users. Raises NotFound or Forbidden."""
    require_view(caller, project_id)
    if reads_project(caller, project_id):
        return requested
    if requested not in (None, caller.user.id):
        raise Forbidden(
            "Only admins of the project, operators and auditors can see certificates of other users."
        )
    return caller.user.id
