"""Previews of revocations: whose certificates they would revoke, and how many. For callers, after authorizing them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.model import Caller, Cluster, KnownUser
from clustercert.model.errors import Forbidden, NotFound
from clustercert.model.ids import is_user_id
from clustercert.model.kubernetes import SERVICE
from clustercert.policy.roles import administers, operates, require_admin, require_operator, require_reach
from clustercert.store.certificate_maintenance import CertificateMaintenance
from clustercert.store.cluster_cache import ClusterLookup, require_cluster
from clustercert.store.known_users import KnownUserQueries
from clustercert.store.usernames import UsernameQueries

ONLY_ADMINS = "Only administrators of the project can revoke certificates of other users."


@dataclass(frozen=True, slots=True)
class RevocationPreview:
    """The certificates that a revocation would revoke.

    Attributes:
        user_id, user_name: `None` for all users. The name is also `None` for deleted users, and for users of other
            identity systems who have not logged in.
        cluster: `None` for all clusters.
        live: how many certificates are valid and unrevoked now.
    """

    user_id: str | None
    user_name: str | None
    cluster: Cluster | None
    live: int


@dataclass(frozen=True, slots=True)
class RevocationPreviews:
    """Finds users by name, and previews revocations. Previews raise the same errors as the revocation itself."""

    clusters: ClusterLookup
    users: KnownUserQueries
    usernames: UsernameQueries
    certificates: CertificateMaintenance
    now: Callable[[], datetime]

    async def users_named(self, caller: Caller, name: str) -> tuple[KnownUser, ...]:
        """Find users by name: see `KnownUserQueries.named`. Raises Forbidden unless the caller is an operator."""
        require_operator(caller)
        return await self.users.named(name)

    async def users_of_cluster_named(
        self, caller: Caller, project_id: str, cluster_id: str, name: str
    ) -> tuple[str, ...]:
        """Find the ids of users with this name in unexpired certificates of a cluster.

        Callers who are not administrators find only themselves. Raises Forbidden for another name.
        """
        require_reach(caller, project_id)
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        if administers(caller, project_id):
            return await self.usernames.in_cluster(cluster.id, name, self.now())
        if name != caller.user.name:
            raise Forbidden(ONLY_ADMINS)
        return (caller.user.id,)

    async def of_cluster(self, caller: Caller, project_id: str, cluster_id: str) -> RevocationPreview:
        """Preview the revocation of all certificates of a cluster."""
        require_admin(caller, project_id)
        return await self._preview(None, await require_cluster(self.clusters, project_id, cluster_id))

    async def of_user_on_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, user_id: str
    ) -> RevocationPreview:
        """Preview the revocation of a user's certificates for a cluster. Raises NotFound for a malformed id."""
        require_reach(caller, project_id)
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        is_own = _checked_id(user_id) == caller.user.id
        if not is_own and not administers(caller, project_id):
            raise Forbidden(ONLY_ADMINS)
        preview = await self._preview(user_id, cluster)
        # An admin of the project must not learn a user's name from the id, unless the user has a certificate there.
        is_known = is_own or preview.live > 0 or operates(caller)
        return preview if is_known else replace(preview, user_name=None)

    async def of_user(self, caller: Caller, user_id: str) -> RevocationPreview:
        """Preview the revocation of a user's certificates in every project. Raises NotFound for a malformed id."""
        require_operator(caller)
        return await self._preview(_checked_id(user_id), None)

    async def _preview(self, user_id: str | None, cluster: Cluster | None) -> RevocationPreview:
        cluster_id = cluster.id if cluster is not None else None
        live = await self.certificates.count_live(self.now(), user_id=user_id, cluster_id=cluster_id)
        user = await self.users.with_id(user_id) if user_id is not None else None
        return RevocationPreview(user_id, user.name if user is not None else None, cluster, live)


def _checked_id(user_id: str) -> str:
    if not (is_user_id(user_id) or user_id == SERVICE):
        raise NotFound("There is no user with this id. GET …/users-by-name?name= finds the ids of a name.")
    return user_id
