"""The counts of the overview equal what was stored, on each database and for each choice of projects."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from clustercert.clusters.overview import Overviews
from clustercert.model import Caller
from clustercert.model.errors import Forbidden
from clustercert.model.kubernetes import CA_PROVER, SERVICE, VERIFIER
from clustercert.store import tables
from clustercert.store.access_requests import AccessRequestQueries
from clustercert.store.certificates.lists import CertificateFilter, InventoryQueries
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.clusters.fleet import FleetQueries
from clustercert.store.clusters.overview import LiveCounts, OverviewQueries, RunningRotations, UnknownCounts
from clustercert.store.engine.database import Database
from support.access_requests import access_request, store_request
from support.fleet_scene import DAY, HOUR, MINUTE, FleetScene, ca_ending
from support.samples import OTHER_PROJECT_ID, PROJECT_ID, caller
from support.stores import NOW, event, revocation

ISSUER = "https://cluster.example.com"
ONE, BOTH = [PROJECT_ID], [PROJECT_ID, OTHER_PROJECT_ID]


@pytest.fixture
async def scene(database: Database) -> FleetScene:
    scene = FleetScene(database)
    await scene.add_projects()
    return scene


@pytest.fixture
def queries(database: Database) -> OverviewQueries:
    return OverviewQueries(database)


async def add_federated_user(database: Database, user_id: str, issuer: str) -> None:
    row = {"id": user_id, "name": user_id, "domain": "sso", "issuer": issuer}
    async with database.transaction() as connection:
        await connection.execute(insert(tables.federated_user).values(row))


async def test_people_and_machines_are_counted_once_each(scene: FleetScene, queries: OverviewQueries) -> None:
    await scene.add("a")
    await scene.add("b", OTHER_PROJECT_ID)
    await add_federated_user(scene.database, "pod", ISSUER)
    await add_federated_user(scene.database, "carol", "https://sso.example.com")
    for name, user, method in (
        ("a", "alice", "token"),
        ("a", "alice", "token"),
        ("b", "alice", "token"),
        ("a", "carol", "oidc"),
        ("b", "dave", "keystone"),
        ("a", "pod", "oidc"),
        ("a", "robot", "access_key"),
        ("b", "robot", "keystone_key"),
        ("b", "job", "keystone_app"),
        # A person who also has a job.
        ("a", "dave", "access_key"),
    ):
        await scene.issue(name, user, method)
    for user in (SERVICE, VERIFIER, CA_PROVER):
        await scene.issue("a", user, "service")

    assert await queries.live(None, NOW, NOW + DAY, [ISSUER]) == LiveCounts(3, 4, 10, 10)
    assert await queries.live(BOTH, NOW, NOW + DAY, [ISSUER]) == LiveCounts(3, 4, 10, 10)
    assert await queries.live(ONE, NOW, NOW + DAY, [ISSUER]) == LiveCounts(2, 3, 6, 6)
    # Without the issuer in the settings, the pod counts as a person.
    assert await queries.live(ONE, NOW, NOW + DAY, []) == LiveCounts(3, 2, 6, 6)
    assert await queries.live([], NOW, NOW + DAY, [ISSUER]) == LiveCounts(0, 0, 0, 0)


async def test_revoked_and_expired_certificates_are_not_counted(
    scene: FleetScene, queries: OverviewQueries
) -> None:
    place = await scene.add("a")
    gone = await scene.issue("a", "alice")
    await scene.issue("a", "bob")
    await scene.issue("a", "bob", hours=0)
    await scene.issue("a", "carol")
    revocations = RevocationQueries(scene.database)
    single = revocation(fingerprint=gone.fingerprint, user_id="alice", cluster_id=place.id)
    await revocations.revoke(single, event())
    await revocations.revoke(revocation(user_id="carol"), event())
    assert await queries.live(None, NOW, NOW + DAY, ()) == LiveCounts(1, 0, 1, 1)
    await scene.issue("a", "carol")
    assert await queries.live(ONE, NOW, NOW + DAY, ()) == LiveCounts(2, 0, 2, 2)


async def test_certificates_that_end_soon_are_counted(scene: FleetScene, queries: OverviewQueries) -> None:
    await scene.add("a")
    for hours in (0.5, 1, 1.5, 3):
        await scene.issue("a", "alice", hours=hours)
    # A certificate that ends at the full hour is not valid then.
    assert await queries.live(None, NOW, NOW + HOUR, ()) == LiveCounts(1, 0, 4, 2)


async def test_open_requests_are_counted_by_state(scene: FleetScene, queries: OverviewQueries) -> None:
    stored = AccessRequestQueries(scene.database)
    approved: dict[str, Any] = {"state": "approved", "approved_at": NOW, "claim_by": NOW + HOUR}
    active = approved | {"state": "active", "started_at": NOW}
    for request in (
        access_request(),
        access_request(project_id=OTHER_PROJECT_ID),
        # Nobody has closed these two yet, but their time is over.
        access_request(approve_by=NOW),
        access_request(**approved | {"claim_by": NOW - MINUTE}),
        access_request(**approved),
        access_request(**active, ends_at=NOW + 2 * HOUR),
        access_request(**active, ends_at=NOW + 2 * DAY),
        access_request(state="denied", closed_at=NOW),
    ):
        await store_request(stored, request)
    assert await queries.requests(None, NOW) == {"pending": 2, "approved": 1, "active": 2}
    assert await queries.requests(ONE, NOW) == {"pending": 1, "approved": 1, "active": 2}
    assert await queries.requests_ending(None, NOW, NOW + DAY) == 1
    assert await queries.requests_ending([OTHER_PROJECT_ID], NOW, NOW + 3 * DAY) == 0


async def test_new_unknown_identities_are_counted_with_their_clusters(
    scene: FleetScene, queries: OverviewQueries
) -> None:
    await scene.add("a")
    await scene.add("b", OTHER_PROJECT_ID)
    await scene.saw_unknown("a", "mallory", NOW - HOUR)
    await scene.saw_unknown("a", "trent", NOW - HOUR)
    await scene.saw_unknown("b", "mallory", NOW - HOUR)
    await scene.saw_unknown("b", "kubelet", NOW - 2 * DAY)
    assert await queries.unknown(None, NOW - DAY) == UnknownCounts(3, 2)
    assert await queries.unknown(ONE, NOW - DAY) == UnknownCounts(2, 1)


async def test_uses_after_a_revocation_are_counted(scene: FleetScene, queries: OverviewQueries) -> None:
    await scene.add("a")
    await scene.add("b", OTHER_PROJECT_ID)
    for name, used in (("a", NOW + MINUTE), ("b", NOW + MINUTE), ("a", NOW - MINUTE)):
        record = await scene.issue(name, "alice")
        # The certificates are revoked at NOW, so the last use is not after its revocation.
        await RevocationQueries(scene.database).revoke(
            revocation(fingerprint=record.fingerprint, user_id="alice", cluster_id=record.cluster_id), event()
        )
        await scene.used(record, used)
    assert await queries.revoked_uses(None, NOW - DAY) == 2
    assert await queries.revoked_uses(ONE, NOW - DAY) == 1
    assert await queries.revoked_uses(None, NOW + HOUR) == 0


async def test_revoked_certificates_count_where_no_control_stops_them(
    scene: FleetScene, queries: OverviewQueries
) -> None:
    await scene.add("a")
    await scene.add("b", OTHER_PROJECT_ID)
    await scene.add("bound", options={"credential_roles": {"admin": "view"}})
    for name in ("a", "b", "bound", "a"):
        record = await scene.issue(name, "alice")
        await RevocationQueries(scene.database).revoke(
            revocation(fingerprint=record.fingerprint, user_id="alice", cluster_id=record.cluster_id), event()
        )
    await scene.issue("a", "alice")
    assert await queries.revoked_accepted(None, NOW) == 3
    assert await queries.revoked_accepted(ONE, NOW) == 2
    assert await queries.revoked_accepted(None, NOW + 10 * DAY) == 0
    inventory = InventoryQueries(scene.database)
    accepted = await inventory.page(CertificateFilter(accepted=True), NOW, limit=10)
    assert [each.cluster_id for each in accepted.items] == [
        scene.clusters[name].id for name in ("a", "b", "a")
    ]
    own = await inventory.page(CertificateFilter(accepted=True), NOW, limit=10, projects=ONE)
    assert [each.cluster_id for each in own.items] == [scene.clusters["a"].id] * 2


async def test_clusters_are_counted_by_how_well_they_enforce(
    scene: FleetScene, queries: OverviewQueries
) -> None:
    admission = {"admission": True}
    await scene.add("nothing")
    await scene.add("never called", OTHER_PROJECT_ID)
    await scene.called("never called", None)
    await scene.add("quiet")
    await scene.called("quiet", NOW - 2 * DAY, used=NOW - 2 * DAY)
    await scene.add("silent")
    await scene.called("silent", NOW - 2 * DAY, used=NOW - DAY)
    await scene.verified("quiet", NOW - 2 * DAY)
    await scene.add("bypassed")
    await scene.called("bypassed", NOW - HOUR, used=NOW)
    await scene.add("bypassed although bound", options=admission)
    await scene.called("bypassed although bound", NOW - HOUR, used=NOW)
    await scene.add("half", options={"credential_roles": {"admin": "view"}})
    await scene.called("half", None, used=NOW)
    await scene.add("old", options=admission)
    await scene.verified("old", NOW - timedelta(days=31))
    await scene.add("unknown")
    await scene.called("unknown", NOW)
    # The API server of a cluster with tokens sends audit events, and needs no webhook.
    await scene.add("tokens", signer="token")
    await scene.called("tokens", None, used=NOW)
    await scene.add("verified tokens", signer="token")
    await scene.verified("verified tokens")
    await scene.add("bound", options={"credential_roles": {"admin": "view"}})
    await scene.verified("bound")
    await scene.add("bound and quiet", options={"credential_roles": {"admin": "view"}})
    await scene.called("bound and quiet", NOW - 2 * DAY)
    await scene.verified("bound and quiet")
    await scene.add("only writes", options=admission)
    await scene.verified("only writes")
    await scene.add("better")
    # The second token is not in use yet.
    await scene.called("better", None)
    await scene.called("better", NOW, used=NOW)
    await scene.verified("better", NOW - DAY)
    # The use was before the verification, or in another cluster.
    await scene.used(await scene.issue("better", "alice"), NOW - DAY - HOUR)
    await scene.add("used")
    await scene.called("used", NOW, used=NOW)
    await scene.verified("used", NOW - DAY)
    await scene.used(await scene.issue("used", "alice"), NOW - HOUR)
    expected = {
        "unreviewed": 3,
        "none": 2,
        "used": 1,
        "incomplete": 1,
        "only_writes": 2,
        "quiet": 1,
        "unverified": 2,
        "tokens": 1,
        "bindings": 2,
        "verified": 1,
    }
    assert await queries.enforcement(None, NOW) == expected
    assert await queries.enforcement(BOTH, NOW) == expected
    assert await queries.enforcement([OTHER_PROJECT_ID], NOW) == {"none": 1}


async def test_rotations_are_ready_once_nobody_holds_the_old_ca(
    scene: FleetScene, queries: OverviewQueries
) -> None:
    for name, state, problem, asked in (
        ("planned", "planned", "no route", False),
        ("draining", "draining", None, False),
        ("held", "draining", None, False),
        ("completing", "draining", None, True),
        ("over", "complete", None, True),
        ("aborted", "aborted", "a problem", False),
    ):
        await scene.add(name, OTHER_PROJECT_ID if name == "planned" else PROJECT_ID)
        await scene.rotate(name, state, problem, asked=asked)
    await scene.issue("held", "alice", ca_id="old held")
    await scene.issue("draining", "alice", hours=0, ca_id="old draining")
    await scene.issue("draining", "alice")
    await scene.issue("draining", SERVICE, ca_id="old draining")
    assert await queries.rotations(None, NOW) == RunningRotations(4, 1, 1)
    assert await queries.rotations(ONE, NOW) == RunningRotations(3, 0, 1)
    assert await queries.rotations([], NOW) == RunningRotations(0, 0, 0)


async def test_client_cas_that_end_soon_are_counted(scene: FleetScene, queries: OverviewQueries) -> None:
    await scene.add("soon", client_ca=ca_ending(NOW + HOUR))
    await scene.add("ended", OTHER_PROJECT_ID, client_ca=ca_ending(NOW - HOUR))
    await scene.add("late", client_ca=ca_ending(NOW + 2 * DAY))
    await scene.add("retired", client_ca=replace(ca_ending(NOW), state="retired"))
    assert await queries.cas_ending(None, NOW + DAY) == 2
    assert await queries.cas_ending(ONE, NOW + DAY) == 1
    auditor = replace(caller(in_projects={}), service_roles=("auditor",))
    overviews = Overviews(queries, FleetQueries(scene.database), lambda: NOW)
    assert (await overviews.fleet(auditor)).ended_cas == 1


async def test_an_overview_is_reused_for_twenty_times_as_long_as_counting_takes(
    scene: FleetScene, queries: OverviewQueries
) -> None:
    times = iter([0.0, 1.0, 20.9, 21.0, 21.1, 26.0, 26.1, 30.0])
    overviews = Overviews(queries, FleetQueries(scene.database), lambda: NOW, lambda: next(times))
    operator = replace(caller(in_projects={}), service_roles=("operator",))

    async def clusters(who: Caller) -> int:
        return (await overviews.overview(who, ())).clusters

    await scene.add("a")
    assert await clusters(operator) == 1
    await scene.add("b", OTHER_PROJECT_ID)
    # Counting took a second, so the count is from then until second 21.
    assert await clusters(operator) == 1
    assert await clusters(operator) == 2
    await scene.add("c")
    # Now it took a tenth of a second, but an overview counts for at least 5 seconds.
    assert await clusters(operator) == 2
    # The projects of another caller are counted separately.
    assert await clusters(caller("admin")) == 2
    with pytest.raises(Forbidden):
        await clusters(caller("member"))
