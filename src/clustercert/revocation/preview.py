"""Previews of revocations: whose certificates they would revoke, and how many. For callers, after authorizing them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.model import Caller, Cluster
from clustercert.model.errors import Conflict, Forbidden, NotFound
from clustercert.model.ids import is_user_id
from clustercert.model.kubernetes import SERVICE
from clustercert.policy.names import is_plain_text
from clustercert.policy.roles import administers, operates, require_admin, require_operator, require_reach
from clustercert.store.certificate_maintenance import CertificateMaintenance
from clustercert.store.cluster_cache import ClusterLookup, require_cluster
from clustercert.store.usernames import UsernameQueries

# At most this many ids in a message.
MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class RevocationPreview:
    """The certificates that a revocation would revoke.

    Attributes:
        user_id, user_name: `None` for all users. The name is also `None` for deleted users and users of other identity
            systems.
        cluster: `None` for all clusters.
        live: how many certificates are valid and unrevoked now.
    """

    user_id: str | None
    user_name: str | None
    cluster: Cluster | None
    live: int


@dataclass(frozen=True, slots=True)
class RevocationPreviews:
    """Previews revocations. Raises the same errors as the revocation itself.

    A user can be given by id or name. Raises NotFound if no user has the name, or Conflict if several have it: as the
    name of a user of the built-in identity, or as a name in certificates.
    """

    clusters: ClusterLookup
    usernames: UsernameQueries
    certificates: CertificateMaintenance
    now: Callable[[], datetime]

    async def of_cluster(self, caller: Caller, project_id: str, cluster_id: str) -> RevocationPreview:
        """Preview the revocation of all certificates of a cluster."""
        require_admin(caller, project_id)
        return await self._preview(None, await require_cluster(self.clusters, project_id, cluster_id))

    async def of_user_on_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, user: str
    ) -> RevocationPreview:
        """Preview the revocation of a user's certificates for a cluster. Finds names in unexpired certificates."""
        require_reach(caller, project_id)
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        if user in {caller.user.id, caller.user.name} and not administers(caller, project_id):
            return await self._preview(caller.user.id, cluster)
        if not administers(caller, project_id):
            raise Forbidden("Only administrators of the project can revoke certificates of other users.")
        is_name = not _is_id(user)
        if is_name:
            found = (
                await self.usernames.in_cluster(cluster.id, user, self.now()) if is_plain_text(user) else ()
            )
            missing = f"No unexpired certificate of the cluster {cluster.name} belongs to a user {user}."
            user = _only(found, user, missing)
        preview = await self._preview(user, cluster)
        # An admin of the project must not learn a user's name from the id, unless the user has a certificate there.
        is_known = is_name or preview.live > 0 or user == caller.user.id or operates(caller)
        return preview if is_known else replace(preview, user_name=None)

    async def of_user(self, caller: Caller, user: str) -> RevocationPreview:
        """Preview the revocation of a user's certificates in every project."""
        require_operator(caller)
        if not _is_id(user):
            found = await self.usernames.named(user) if is_plain_text(user) else ()
            user = _only(found, user, f"There is no user {user}.")
        return await self._preview(user, None)

    async def _preview(self, user_id: str | None, cluster: Cluster | None) -> RevocationPreview:
        cluster_id = cluster.id if cluster is not None else None
        live = await self.certificates.count_live(self.now(), user_id=user_id, cluster_id=cluster_id)
        name = await self.usernames.name_of(user_id) if user_id is not None else None
        return RevocationPreview(user_id, name, cluster, live)


def _is_id(text: str) -> bool:
    return is_user_id(text) or text == SERVICE


def _only(found: Sequence[str], name: str, missing: str) -> str:
    """Return the only id of a name. Raises NotFound with the message, or Conflict."""
    if not found:
        raise NotFound(missing)
    if len(found) > 1:
        ids = ", ".join(found[:MAX_NAMED])
        raise Conflict(
            f"{name} is the name of several users, or is in their certificates: {ids}. Give the id."
        )
    return found[0]
