"""Clusters and their client CAs in the store."""

import asyncio
import uuid
from dataclasses import replace
from datetime import timedelta

import pytest

from clustercert.cli.session import Finder
from clustercert.clusters.registry import Clusters
from clustercert.identity.directory_reader import DirectoryReader
from clustercert.model import Actor, ClientCA, Cluster, utc_now
from clustercert.model.clusters import Registration
from clustercert.model.errors import Conflict, Forbidden, InvalidRequest
from clustercert.pki.certificates import certificate_der
from clustercert.store.certificates.revocations import CrlQueries
from clustercert.store.clusters.client_cas import ClientCaQueries
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.engine.database import Database
from support.samples import PROJECT_ID, client_ca, cluster, server_ca_pem
from support.stores import ORIGIN, Store, event


@pytest.mark.parametrize(
    "cluster_id", ["", "\x00", "a\x00b", "\ud800", "x" * 10_000, "%00", "' OR true --", "\x7f"]
)
async def test_what_is_no_id_finds_nothing(database: Database, cluster_id: str) -> None:
    assert await ClusterQueries(database).cluster("0" * 32, cluster_id) is None


async def test_only_the_active_ca_signs_and_the_next_one_is_trusted(database: Database, store: Store) -> None:
    queries, crls = ClusterQueries(database), CrlQueries(database)
    registered = add_project(store, cluster())
    await queries.add(registered, event(), 1)
    following = replace(client_ca(), id="b" * 32, state="next")
    retired = replace(client_ca(), id="c" * 32, state="retired")
    for ca in (following, retired):
        add_ca(store, ca)
    found = await queries.cluster(PROJECT_ID, registered.id)
    assert found is not None
    assert (found.client_ca.id, found.client_ca.state) == (registered.client_ca.id, "active")
    assert [each async for each in queries.in_project(PROJECT_ID)] == [replace(found, server_ca_pem=b"")]
    assert set(await queries.bundle(registered.id)) == {
        registered.client_ca.certificate,
        following.certificate,
    }
    for ca in (registered.client_ca, following, retired):
        assert await crls.authority(registered.id, ca.id) == ca


async def test_a_ca_is_added_with_a_note_or_its_secret(database: Database, store: Store) -> None:
    """The note about an old CA may be deleted before the CA is added. With a sealed secret, no key is lost."""
    queries, registered = ClusterQueries(database), add_project(store, cluster())
    ca = replace(registered.client_ca, signer="csr_api")
    with pytest.raises(Conflict, match="The key of the new client CA was deleted meanwhile"):
        await queries.add(replace(registered, client_ca=ca), event(), 1)
    await queries.add(replace(registered, client_ca=replace(ca, sealed_key=b"token")), event(), 1)


async def test_reachable_clusters_are_searched_and_sorted_by_name(database: Database, store: Store) -> None:
    queries, first = ClusterQueries(database), add_project(store, cluster())
    names = ("Zebra", "a_b", "a-b", "m100", "m%1")
    made = {name: replace(named(first, number), name=name) for number, name in enumerate(names)}
    for each in made.values():
        await queries.add(each, event(), len(names))

    async def found(search: str) -> list[str]:
        page = await queries.reachable_page([PROJECT_ID], None, "", 10, search=search)
        return [each.name for each in page]

    assert await found("ZEB") == ["Zebra"]
    assert await found("a_") == ["a_b"]
    assert await found("%") == ["m%1"]
    assert len(await found("")) == len(names)

    whole = await queries.reachable_page([PROJECT_ID], None, "", 10, by_name=True)
    paged: list[Cluster] = []
    while rest := await queries.reachable_page(
        [PROJECT_ID], None, paged[-1].id if paged else "", 2, by_name=True
    ):
        paged += rest
    assert paged == list(whole)
    assert {each.name for each in whole} == set(names)
    with pytest.raises(InvalidRequest, match="Begin with the first page"):
        await queries.reachable_page([], None, whole[0].id, 2, by_name=True)


async def test_a_project_has_a_limited_number_of_clusters(database: Database, store: Store) -> None:
    queries, first = ClusterQueries(database), add_project(store, cluster())
    others = [named(first, number) for number in range(2)]
    await queries.add(first, event(), 2)
    await queries.add(others[0], event(), 2)
    with pytest.raises(Forbidden, match=r"limits\.clusters_per_project"):
        await queries.add(others[1], event(), 2)
    await queries.remove(first.id, event())
    await queries.add(others[1], event(), 2)


async def test_the_list_of_a_project_is_read_in_steps_and_without_cas(
    database: Database, store: Store
) -> None:
    queries, first = ClusterQueries(database), add_project(store, cluster())
    made = [named(first, number) for number in range(101)]
    await asyncio.gather(*(queries.add(each, event(), 1000) for each in made))
    found = [each async for each in queries.in_project(PROJECT_ID)]
    assert [each.name for each in found] == sorted(each.name for each in made)
    assert {each.server_ca_pem for each in found} == {b""}
    assert [each async for each in queries.in_project("0" * 32)] == []


def named(other: Cluster, number: int) -> Cluster:
    """Another cluster of the same project."""
    made, ca = str(uuid.uuid4()), f"{number:032x}"
    client_ca = replace(other.client_ca, id=ca, cluster_id=made)
    return replace(other, id=made, name=f"cluster-{number}", client_ca=client_ca)


async def test_the_time_of_a_verification_survives_a_change_of_the_cluster(
    database: Database, store: Store
) -> None:
    queries, before = ClusterQueries(database), add_project(store, cluster())
    await queries.add(before, event(), 3)
    others = [named(before, number) for number in range(2)]
    for other in others:
        await queries.add(other, event(), 3)
    now = utc_now().replace(microsecond=0)
    await queries.record_verification(before, now)
    await queries.record_verification(others[0], now - timedelta(days=8))

    await queries.replace(replace(before, version="v1.33"), event(), before)

    [found] = await queries.clusters_with_ids({before.id})
    assert (found.version, found.verified_at) == ("v1.33", now)
    times = [now - timedelta(days=days) for days in (7, 30)]
    assert await queries.count_unverified(times) == (1, [1, 0])


async def test_a_change_of_what_was_verified_removes_the_time(database: Database, store: Store) -> None:
    queries, before = ClusterQueries(database), add_project(store, cluster())
    await queries.add(before, event(), 1)
    now = utc_now().replace(microsecond=0)
    for changes in (
        {"internal_url": "https://10.0.0.9:6443"},
        {"options": replace(before.options, mode="known-only")},
    ):
        await queries.record_verification(before, now)
        [seen] = await queries.clusters_with_ids({before.id})
        assert seen.verified_at == now
        await queries.replace(replace(before, **changes), event())
        [found] = await queries.clusters_with_ids({before.id})
        assert found.verified_at is None


async def test_a_cluster_that_changed_during_its_verification_is_not_verified(
    database: Database, store: Store
) -> None:
    queries, before = ClusterQueries(database), add_project(store, cluster())
    await queries.add(before, event(), 1)
    after = replace(before, version="v1.33", updated_at=before.updated_at + timedelta(seconds=1))
    await queries.replace(after, event())
    await queries.record_verification(before, utc_now())
    [found] = await queries.clusters_with_ids({before.id})
    assert found.verified_at is None


async def test_a_name_is_found_in_one_of_many_domains(database: Database, store: Store) -> None:
    queries, first = ClusterQueries(database), add_project(store, cluster())
    await queries.add(first, event(), 1)
    for number in range(17):
        domain_id, project_id = f"{number:032x}", f"{number + 100:032x}"
        store.execute(
            "INSERT INTO domain (id, name, enabled) VALUES (?, ?, ?)", domain_id, f"d{number}", True
        )
        store.execute(
            "INSERT INTO project (id, name, domain_id, description, enabled, labels)"
            " VALUES (?, 'eu-de', ?, '', ?, '{}')",
            project_id,
            domain_id,
            True,
        )
        other = replace(named(first, number), name=first.name, project_id=project_id)
        await queries.add(other, event(), 1)
    finder = Finder(DirectoryReader(database), queries)
    for number in range(17):
        found = await finder.cluster(first.name, domain=f"d{number}")
        assert found.project_id == f"{number + 100:032x}"


async def test_exemptions_other_than_the_default_are_found(database: Database, store: Store) -> None:
    queries, registered = ClusterQueries(database), add_project(store, cluster())
    await queries.add(registered, event(), 1)
    assert await queries.custom_exemptions() == ()
    for exemptions in (("system:*", "ci-*"), ()):
        options = replace(registered.options, exemptions=exemptions)
        await queries.replace(replace(registered, options=options), event())
        assert await queries.custom_exemptions() == (
            (registered.id, f"Default/eu-de/{registered.name}", exemptions),
        )


async def test_a_cluster_is_not_registered_for_a_signer_that_is_not_installed(database: Database) -> None:
    wanted = Registration(
        name="a", internal_url="https://10.0.0.1:6443", server_ca_pem=server_ca_pem(), signer="hsm"
    )
    clusters = Clusters(ClusterQueries(database), {}, ClientCaQueries(database), utc_now)
    with pytest.raises(InvalidRequest, match="The signer hsm is not installed"):
        await clusters.add(PROJECT_ID, wanted, actor=Actor("cli:test", ORIGIN))


def add_project(store: Store, of: Cluster) -> Cluster:
    store.execute("INSERT INTO domain (id, name, enabled) VALUES (?, 'Default', ?)", "d" * 32, True)
    store.execute(
        "INSERT INTO project (id, name, domain_id, description, enabled, labels) VALUES (?, 'eu-de', ?, '', ?, '{}')",
        of.project_id,
        "d" * 32,
        True,
    )
    return of


def add_ca(store: Store, ca: ClientCA) -> None:
    store.execute(
        "INSERT INTO client_ca (id, cluster_id, certificate_der, sealed_key, state, signer, not_before, not_after)"
        " VALUES (?, ?, ?, NULL, ?, 'local', '2026-01-01 00:00:00.000000', '2036-01-01 00:00:00.000000')",
        ca.id,
        ca.cluster_id,
        certificate_der(ca.ca_certificate),
        ca.state,
    )
