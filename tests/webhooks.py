"""A registered cluster in a bare store, for tests of its webhooks."""

from clustercert.model import Cluster
from clustercert.store.clusters import ClusterRows
from clustercert.store.database import Database
from nouns import PROJECT_ID, cluster
from stores import Store, event


async def registered(database: Database, store: Store) -> Cluster:
    """The cluster, in a project of its own."""
    store.execute("INSERT INTO domain (id, name, enabled) VALUES ('d', 'd', true)")
    store.execute(
        "INSERT INTO project (id, domain_id, name, description, enabled)"
        f" VALUES ('{PROJECT_ID}', 'd', 'p', '', true)"
    )
    await ClusterRows(database).add(cluster(), event("cluster.added"))
    return cluster()
