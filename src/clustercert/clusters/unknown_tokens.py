"""Use case: confirm that credentials that are not in the ledger may be deleted in a cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from clustercert.model import Actor, Cluster
from clustercert.model.errors import Conflict
from clustercert.model.events.operation import ClusterTokensDeletionConfirmed
from clustercert.store.clusters.signing_clusters import SigningClusterQueries, UnknownTokens


@dataclass(frozen=True, slots=True)
class UnknownTokenDeletion:
    """Lets operators confirm a deletion that the service does not start by itself.

    If most of the credentials in a cluster are not in the ledger, the database may be an old copy, and the credentials
    may belong to users. The service then deletes none of them.

    Attributes:
        now: returns the current time in UTC.
    """

    queries: SigningClusterQueries
    now: Callable[[], datetime]

    async def status(self, cluster: Cluster) -> UnknownTokens:
        """Return how many credentials of a cluster wait. None wait in a cluster whose credentials are certificates."""
        return await self.queries.unknown_tokens(cluster.client_ca.id)

    async def confirm(self, cluster: Cluster, count: int, *, actor: Actor) -> UnknownTokens:
        """Confirm the deletion. The service deletes the credentials within about a minute.

        Raises Conflict if not exactly `count` credentials wait. If none wait and `count` is 0, does nothing.
        """
        status = await self.status(cluster)
        if status.waiting != count:
            raise Conflict(_others(status.waiting))
        if count == status.confirmed:
            return status
        event = ClusterTokensDeletionConfirmed(
            at=self.now(), project_id=cluster.project_id, actor=actor, subject=cluster.id, unknown=count
        )
        if not await self.queries.confirm_unknown_tokens(cluster.client_ca.id, count, event):
            raise Conflict(_others((await self.status(cluster)).waiting))
        return UnknownTokens(count, count)


def _others(waiting: int) -> str:
    if not waiting:
        return "count: no credential of this cluster waits for a confirmation. Send nothing, or 0."
    return f"count: {waiting} credentials of this cluster wait for a confirmation. Check them, and send this number."
