"""Secrets of signers that connect to clusters, and their maintenance."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from clustercert.clusters import signer_maintenance
from clustercert.clusters.signer_maintenance import SignerMaintenance
from clustercert.model import ClientCA, Cluster
from clustercert.model.errors import RemoteFailed
from clustercert.observability import metrics
from clustercert.pki.signer import SignerAccess
from clustercert.store.clusters.client_cas import ClientCaQueries
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.clusters.signing_clusters import SigningClusterQueries
from clustercert.store.engine.database import Database
from support.log_capture import captured_lines
from support.own_gauge import OwnGauge
from support.samples import client_ca, cluster
from support.stores import NOW, Store, event


def signing(number: int, **changes: object) -> Cluster:
    """A cluster with a CA of the signer csr_api."""
    ca = replace(client_ca(), id=f"{number:032x}", signer="csr_api", sealed_key=b"sealed", **changes)  # type: ignore[arg-type] # as the tests say
    cluster_id = f"{number:08x}-0000-4000-8000-000000000000"
    ca = replace(ca, cluster_id=cluster_id)
    return replace(cluster(ca), id=cluster_id, name=f"c{number}")


async def add(database: Database, store: Store, *clusters: Cluster) -> None:
    store.execute("INSERT INTO domain (id, name, enabled) VALUES ('d', 'd', ?)", True)
    store.execute(
        "INSERT INTO project (id, name, domain_id, description, enabled, labels) VALUES (?, 'p', 'd', '', ?, '{}')",
        clusters[0].project_id,
        True,
    )
    for each in clusters:
        await ClientCaQueries(database).note_created(each.client_ca)
        await ClusterQueries(database).add(each, event(), 100)


async def test_a_cas_cluster_and_secret_are_found(database: Database, store: Store) -> None:
    one = signing(1)
    await add(database, store, one)
    queries = SigningClusterQueries(database)
    found = await queries.of_ca(one.client_ca.id)
    assert found is not None
    assert (found.cluster_id, found.url, found.sealed_key) == (one.id, one.internal_url, b"sealed")
    assert found.server_ca_pem == one.server_ca_pem
    assert await queries.signed_by(one.id, "csr_api") == found
    assert await queries.signed_by(one.id, "local") is None
    assert await queries.of_ca("f" * 32) is None
    assert "sealed" not in repr(found)


async def test_of_two_exchanges_of_a_secret_one_succeeds(database: Database, store: Store) -> None:
    one = signing(1)
    await add(database, store, one)
    queries = SigningClusterQueries(database)
    assert await queries.exchange_secret(one.client_ca.id, b"sealed", b"first")
    assert not await queries.exchange_secret(one.client_ca.id, b"sealed", b"second")
    found = await queries.of_ca(one.client_ca.id)
    assert found is not None
    assert found.sealed_key == b"first"


@dataclass
class Maintained:
    """A signer that fails for one CA, and has a fault that another CA shows."""

    failing: str
    faulty: str
    seen: list[str] = field(default_factory=list)
    access: dict[str, SignerAccess] = field(default_factory=dict)

    async def maintain(self, ca: ClientCA) -> SignerAccess | None:
        self.seen.append(ca.id)
        if ca.id == self.failing:
            raise RemoteFailed("The cluster is gone.")
        if ca.id == self.faulty:
            raise RuntimeError("a fault of this signer")
        return self.access.get(ca.id)


async def test_every_cluster_is_maintained_although_two_fail(database: Database, store: Store) -> None:
    clusters = [signing(number) for number in range(1, 4)]
    local = replace(signing(4), client_ca=replace(signing(4).client_ca, signer="local"))
    await add(database, store, *clusters, local, signing(5, state="retired"))
    signer = Maintained(failing=clusters[1].client_ca.id, faulty=clusters[0].client_ca.id)
    with captured_lines(signer_maintenance) as lines:
        await SignerMaintenance(SigningClusterQueries(database), {"csr_api": signer}).run()  # type: ignore[dict-item] # maintains only
    assert signer.seen == [each.client_ca.id for each in clusters]
    assert [(each["event"], each["cluster"], each.get("error")) for each in lines] == [
        ("signer not maintained", clusters[0].id, None),
        ("signer not maintained", clusters[1].id, "The cluster is gone."),
    ]


async def test_tokens_that_are_not_renewed_are_counted(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, overdue = OwnGauge(), OwnGauge()
    monkeypatch.setattr(metrics, "SIGNER_ACCESS_NOT_AFTER", first)
    monkeypatch.setattr(metrics, "SIGNER_ACCESS_OVERDUE", overdue)
    clusters = [signing(number) for number in range(1, 4)]
    ids = [each.client_ca.id for each in clusters]
    await add(database, store, *clusters)
    hour = timedelta(hours=1)
    signer = Maintained(failing="", faulty="")
    signer.access = {ids[0]: SignerAccess(NOW + hour, NOW + 2 * hour), ids[1]: SignerAccess(NOW, NOW + hour)}
    maintenance = SignerMaintenance(SigningClusterQueries(database), {"csr_api": signer}, lambda: NOW)  # type: ignore[dict-item] # maintains only
    await maintenance.run()
    assert (first.value, overdue.value) == ((NOW + hour).timestamp(), 1)
    # After a failure, the last known expiry stays.
    signer.failing = ids[1]
    signer.access[ids[0]] = SignerAccess(NOW + hour, NOW + 9 * hour)
    await maintenance.run()
    assert (first.value, overdue.value) == ((NOW + hour).timestamp(), 1)
    signer.failing, signer.access[ids[1]] = "", SignerAccess(NOW + hour, NOW + 8 * hour)
    await maintenance.run()
    assert (first.value, overdue.value) == ((NOW + 8 * hour).timestamp(), 0)


async def test_the_expiry_of_a_clusters_token_is_stored_until_an_operator_gives_another(
    database: Database, store: Store
) -> None:
    one, ends = signing(1), NOW + timedelta(days=7)
    await add(database, store, one)
    signer = Maintained(failing="", faulty="")
    signer.access = {one.client_ca.id: SignerAccess(NOW + timedelta(days=3), ends)}
    clusters = ClusterQueries(database)
    await SignerMaintenance(SigningClusterQueries(database), {"csr_api": signer}, lambda: NOW).run()  # type: ignore[dict-item] # maintains only
    [stored] = await clusters.find(one.id)
    assert stored.client_ca.access_expires_at == ends
    [listed] = await ClientCaQueries(database).of_cluster(one.id)
    assert listed.access_expires_at == ends
    given = replace(stored, client_ca=replace(stored.client_ca, sealed_key=b"another"))
    await clusters.replace(given, event(), stored)
    [stored] = await clusters.find(one.id)
    assert stored.client_ca.access_expires_at is None
