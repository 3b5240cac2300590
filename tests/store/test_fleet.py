"""The list of clusters equals a filter over all of them, on each database."""

from typing import Any

import pytest

from clustercert.model.choices import FleetOrder
from clustercert.model.kubernetes import SERVICE
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.clusters.fleet import FleetFilter, FleetQueries
from clustercert.store.clusters.overview import Projects
from clustercert.store.engine.database import Database
from support.fleet_scene import DAY, HOUR, FleetScene, ca_ending
from support.samples import OTHER_PROJECT_ID, PROJECT_ID
from support.stores import NOW, event, revocation

ONE = [PROJECT_ID]


@pytest.fixture
async def scene(database: Database) -> FleetScene:
    scene = FleetScene(database)
    await scene.add_projects()
    return scene


async def names(
    scene: FleetScene, projects: Projects = None, order: FleetOrder = "name", **selected: Any
) -> list[str]:
    """Return the names of the selected clusters, read in pages of two."""
    queries, found, after = FleetQueries(scene.database), list[str](), None
    while True:
        page = await queries.page(projects, FleetFilter(**selected), NOW, order=order, after=after, limit=2)
        assert page is not None
        found += [each.name for each in page.clusters]
        after = page.following
        if after is None:
            assert page.total == len(found)
            return found


async def test_clusters_are_found_by_their_properties(scene: FleetScene) -> None:
    await scene.add("Alpha", labels={"example.com/tier": "gold"}, version="v1.32")
    await scene.add("beta", labels={"example.com/tier": "tin"}, version="")
    await scene.add("100%_c", OTHER_PROJECT_ID, options={"admission": True})
    await scene.verified("100%_c")
    assert await names(scene) == ["100%_c", "Alpha", "beta"]
    assert await names(scene, ONE) == ["Alpha", "beta"]
    assert await names(scene, []) == []
    cases: list[tuple[list[str], dict[str, Any]]] = [
        (["Alpha", "beta"], {"project": PROJECT_ID}),
        (["Alpha"], {"text": "LPH"}),
        (["100%_c"], {"text": "%_"}),
        (["100%_c"], {"text": "two"}),
        (["beta"], {"text": scene.clusters["beta"].id}),
        (["Alpha", "beta"], {"label": "example.com/tier"}),
        (["beta"], {"label": "example.com/tier=tin"}),
        ([], {"label": "tier"}),
        (["beta"], {"version": ""}),
        (["100%_c"], {"enforcement": "only_writes"}),
        (["Alpha", "beta"], {"enforcement": "none"}),
        (["Alpha"], {"enforcement": "none", "text": "a", "version": "v1.32"}),
    ]
    for expected, selected in cases:
        assert await names(scene, **selected) == expected, selected


async def test_clusters_are_found_by_letters_that_are_not_ascii(scene: FleetScene) -> None:
    await scene.add("Süd-Österreich")
    for text in ("Ö", "Österr", "SüD"):
        assert await names(scene, text=text) == ["Süd-Österreich"], text


async def test_clusters_are_found_by_what_was_seen_in_them(scene: FleetScene) -> None:
    for name in ("a", "b", "c"):
        await scene.add(name)
    await scene.saw_unknown("a", "mallory", NOW - HOUR)
    await scene.saw_unknown("b", "kubelet", NOW - 2 * DAY)
    used = await scene.issue("b", "alice")
    await RevocationQueries(scene.database).revoke(
        revocation(fingerprint=used.fingerprint, user_id="alice", cluster_id=used.cluster_id), event()
    )
    await scene.used(used, NOW)
    await scene.issue("c", "bob")
    await scene.issue("a", SERVICE)
    assert await names(scene, unknown_after=NOW - DAY) == ["a"]
    assert await names(scene, revoked_use_after=NOW - DAY) == ["b"]
    assert await names(scene, certificates=True) == ["c"]
    assert await names(scene, certificates_end_before=NOW + 9 * HOUR) == ["c"]
    assert await names(scene, certificates_end_before=NOW + 8 * HOUR) == []
    page = await FleetQueries(scene.database).page(
        None, FleetFilter(), NOW, order="name", after=None, limit=3
    )
    assert page is not None
    assert [(each.certificates, each.unknown) for each in page.clusters] == [(0, 1), (0, 1), (1, 0)]


async def test_clusters_are_found_whose_api_servers_never_asked_or_are_silent(scene: FleetScene) -> None:
    for name, options in (
        ("no webhook", {}),
        ("never asked", {}),
        ("never asked, bound", {"admission": True}),
        ("quiet", {}),
        ("silent", {}),
    ):
        await scene.add(name, options=options)
    await scene.called("never asked", None)
    await scene.called("never asked, bound", None, used=NOW)
    await scene.called("quiet", NOW - 9 * DAY, used=NOW - 9 * DAY)
    await scene.called("silent", NOW - 9 * DAY, used=NOW - 8 * DAY)
    assert await names(scene, without_reviews=True) == ["never asked", "silent"]


async def test_clusters_are_found_by_their_rotation(scene: FleetScene) -> None:
    for name, state, problem in (
        ("a", "planned", "no route"),
        ("b", "draining", None),
        ("c", "complete", None),
        ("d", "draining", None),
    ):
        await scene.add(name)
        await scene.rotate(name, state, problem)
    await scene.issue("d", "alice", ca_id="old d")
    assert await names(scene, rotation="running") == ["a", "b", "d"]
    assert await names(scene, rotation="failing") == ["a"]
    assert await names(scene, rotation="ready") == ["b"]
    page = await FleetQueries(scene.database).page(
        None, FleetFilter(), NOW, order="name", after=None, limit=3
    )
    assert page is not None
    assert [(each.rotation, each.problem) for each in page.clusters] == [
        ("planned", "no route"),
        ("draining", None),
        (None, None),
    ]


async def test_each_order_goes_through_all_pages(scene: FleetScene) -> None:
    ends = {name: NOW + days * DAY for name, days in (("c", 1), ("a", 400), ("b", 2))}
    for name, end in ends.items():
        await scene.add(name, client_ca=ca_ending(end))
    await scene.add("d", client_ca=ca_ending(ends["b"]))
    await scene.verified("a", NOW)
    await scene.verified("b", NOW - DAY)
    assert await names(scene, order="name") == ["a", "b", "c", "d"]
    by_end = await names(scene, order="ca_end")
    assert (by_end[0], set(by_end[1:3]), by_end[3]) == ("c", {"b", "d"}, "a")
    by_verification = await names(scene, order="verified")
    assert (set(by_verification[:2]), by_verification[2:]) == ({"c", "d"}, ["b", "a"])
    assert sorted(await names(scene, order="ca_start")) == ["a", "b", "c", "d"]
    assert await names(scene, client_ca_ends_before=ends["b"]) == ["c"]
    assert await names(scene, client_ca_ends_after=NOW + 3 * DAY) == ["a"]
    start = scene.clusters["a"].client_ca.ca_certificate.not_valid_before_utc
    assert await names(scene, client_ca_starts_before=start) == []
    assert len(await names(scene, client_ca_starts_after=start)) == 4


async def test_a_page_does_not_begin_after_a_foreign_cluster(scene: FleetScene) -> None:
    foreign = await scene.add("foreign", OTHER_PROJECT_ID)
    await scene.add("own")
    for after in (foreign.id, "0" * 36):
        found = await FleetQueries(scene.database).page(
            ONE, FleetFilter(), NOW, order="name", after=after, limit=2
        )
        assert found is None


async def test_clusters_are_counted_by_version(scene: FleetScene) -> None:
    await scene.add("a", version="v1.32")
    await scene.add("b", version="v1.32")
    await scene.add("c", OTHER_PROJECT_ID, version="v1.31")
    queries = FleetQueries(scene.database)
    assert list((await queries.versions(None, 10)).items()) == [("v1.32", 2), ("v1.31", 1)]
    assert await queries.versions(ONE, 10) == {"v1.32": 2}
    assert await queries.versions(None, 1) == {"v1.32": 2}
