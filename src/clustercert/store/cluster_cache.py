"""Cached lookup of clusters."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from clustercert.model import Cluster
from clustercert.model.errors import NotFound
from clustercert.store.engine.generation import Cache, Generation

# Each cluster takes a few kilobytes, including the parsed CA.
CACHED_CLUSTERS = 4096


class ClusterLookup(Protocol):
    """Finds clusters; implemented by `ClusterQueries` and `ClusterCache`."""

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None: ...


async def require_cluster(clusters: ClusterLookup, project_id: str, cluster_id: str) -> Cluster:
    """Return a project's cluster. Raises NotFound if the project has no such cluster."""
    cluster = await clusters.cluster(project_id, cluster_id)
    if cluster is None:
        raise NotFound
    return cluster


class ClusterCache:
    """Caches clusters with their active client CA, by project and id."""

    def __init__(
        self, generation: Generation, load: Callable[[tuple[str, str]], Awaitable[Cluster | None]]
    ) -> None:
        self._load = load
        self._cache: Cache[tuple[str, str], Cluster] = Cache(generation, CACHED_CLUSTERS)

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None:
        """Return the cluster if it belongs to the project, else None."""
        # PostgreSQL rejects strings with a zero byte or half a surrogate pair.
        if not cluster_id.isprintable():
            return None
        # Same query for another project's cluster as for a missing one, to avoid a timing oracle.
        return await self._cache.get((project_id, cluster_id), self._load)
