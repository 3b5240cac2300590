"""Rotations of client CAs on each database: holders, concurrent changes, removed clusters, and what leaders do."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from clustercert.clusters import discarded_keys
from clustercert.clusters.ca_progress import CaProgress
from clustercert.clusters.ca_rotation import ReportedResult
from clustercert.clusters.discarded_keys import ADDING
from clustercert.clusters.registration import ClusterLimits
from clustercert.clusters.registry import Clusters
from clustercert.model import ClientCA, Cluster
from clustercert.model.ca_rotation import PROOF_AGE, CaProof, CaRotation
from clustercert.model.choices import RotationState
from clustercert.model.errors import ConcurrentChange, Conflict, Forbidden, InvalidRequest, Unavailable
from clustercert.model.kubernetes import CA_PROVER, SERVICE
from clustercert.pki.client_ca import ca_subject
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.clusters.client_cas import ClientCaQueries
from clustercert.store.engine.database import Database
from clustercert.store.engine.transaction import rolling_back
from support import samples
from support.log_capture import captured_lines
from support.rotation_scene import BY, DRAIN_AFTER, RotationScene
from support.stores import NOW, Store, certificate_record, event, revocation


@pytest.fixture
def scene(store: Store, database: Database) -> RotationScene:
    scene = RotationScene(store, database)
    scene.add_project()
    return scene


async def issue(
    scene: RotationScene, cluster: Cluster, ca_id: str, user_id: str = "u" * 32, **more: object
) -> bytes:
    """Record a certificate of a CA, and return its fingerprint. It is valid for 30 days."""
    record, issued = certificate_record()
    record = replace(record, cluster_id=cluster.id, ca_id=ca_id, user_id=user_id, **more)  # type: ignore[arg-type]
    await Ledger(scene.database).record(record, issued)
    return record.fingerprint


async def draining(scene: RotationScene, **options: object) -> Cluster:
    """A cluster whose rotation is draining."""
    cluster = await scene.register()
    await scene.start(cluster, **options)
    await scene.trust_bundle(cluster)
    await scene.reach(cluster, "draining")
    return cluster


async def test_holders_are_valid_certificates_of_others(scene: RotationScene) -> None:
    cluster = await scene.register()
    ca_id = cluster.client_ca.id
    await issue(scene, cluster, ca_id, "u" * 32, not_after=NOW + timedelta(hours=1))
    await issue(scene, cluster, ca_id, "u" * 32, not_after=NOW + timedelta(hours=8))
    await issue(scene, cluster, ca_id, "v" * 32, not_after=NOW + timedelta(hours=2))
    await issue(scene, cluster, ca_id, not_after=NOW)
    await issue(scene, cluster, "c" * 32)
    for user_id in (SERVICE, CA_PROVER):
        await issue(scene, cluster, ca_id, user_id)
    gone = await issue(scene, cluster, ca_id)
    await RevocationQueries(scene.database).revoke(
        revocation(fingerprint=gone, user_id="u" * 32, cluster_id=cluster.id), event()
    )
    status = await scene.start(cluster)
    assert (status.old.certificates, status.old.until) == (3, NOW + timedelta(hours=8))
    assert [(each.user_id[0], each.certificates, each.until) for each in status.holders] == [
        ("u", 2, NOW + timedelta(hours=8)),
        ("v", 1, NOW + timedelta(hours=2)),
    ]
    [listed] = await scene.rotations.page("", 10)
    assert (listed.old, listed.holders) == (status.old, ())


async def test_two_operators_start_one_rotation(scene: RotationScene) -> None:
    cluster = await scene.register()
    started = await asyncio.gather(*(scene.start(cluster) for _ in range(4)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in started) == ["Conflict"] * 3 + ["RotationStatus"]
    # In the end, the signer keeps no key of a CA that nobody uses.
    scene.now += ADDING + timedelta(minutes=1)
    await scene.discarded.delete_all()
    [new] = scene.signers["local"].keys - {cluster.client_ca.id}
    assert scene.store.rows("SELECT new_ca_id FROM ca_rotation") == [(new,)]


async def test_a_dry_run_changes_nothing(scene: RotationScene) -> None:
    cluster = await scene.register()
    with rolling_back():
        planned = await scene.start(cluster)
    assert planned.rotation.state == "planned"
    assert scene.store.rows("SELECT cluster_id FROM ca_rotation") == []
    assert scene.store.rows("SELECT id FROM client_ca") == [(cluster.client_ca.id,)]
    assert scene.events(cluster) == []


async def test_another_signer_takes_over(scene: RotationScene) -> None:
    cluster = await scene.register()
    with pytest.raises(InvalidRequest, match="nowhere is not installed"):
        await scene.start(cluster, signer="nowhere")
    await scene.start(cluster, signer="other")
    await scene.trust_bundle(cluster)
    await scene.reach(cluster, "draining")
    current = await scene.current(cluster)
    assert (current.signer, current.client_ca.signer) == ("other", "other")
    await scene.rotations.complete(current, holders=None, deny_old=None, actor=BY)
    await scene.trust_bundle(cluster)
    await scene.reach(cluster, "complete")
    assert scene.signers["local"].keys == set()
    assert scene.signers["other"].keys == {current.client_ca.id}


@pytest.mark.parametrize("state", ["planned", "draining"])
async def test_an_abort_gives_the_cluster_its_signer_back(scene: RotationScene, state: RotationState) -> None:
    cluster = await scene.register()
    await scene.start(cluster, signer="other")
    if state == "draining":
        await scene.trust_bundle(cluster)
        await scene.reach(cluster, state)
    assert (await scene.current(cluster)).signer == "other"
    await scene.rotations.abort(cluster, actor=BY)
    assert (await scene.current(cluster)).signer == "local"


async def test_a_silent_address_is_not_proved_and_is_named(scene: RotationScene) -> None:
    cluster = await scene.register()
    await scene.start(cluster)
    await scene.trust_bundle(cluster)
    first, second = cluster.api_servers
    scene.servers.silent.add(second)
    await scene.step(cluster)
    rotation = (await scene.status(cluster)).rotation
    assert (rotation.state, rotation.unproved(scene.now)) == ("planned", (second,))
    assert rotation.problem is not None
    assert second in rotation.problem
    assert first not in rotation.problem


async def test_a_lost_proof_goes_back_and_says_where(scene: RotationScene) -> None:
    cluster = await scene.register()
    await scene.start(cluster)
    await scene.trust_bundle(cluster)
    await scene.step(cluster)
    assert await scene.state(cluster) == "distributed"
    scene.servers.trusted[cluster.api_servers[1]] = set()
    await scene.step(cluster)
    status = await scene.status(cluster)
    assert status.rotation.state == "planned"
    assert status.rotation.problem is not None
    assert cluster.api_servers[1] in status.rotation.problem
    assert scene.events(cluster) == ["started", "distributed", "proof_lost"]
    assert scene.active(cluster) == cluster.client_ca.id


async def test_an_api_server_that_is_added_meanwhile_is_proved_too(scene: RotationScene) -> None:
    cluster = await scene.register()
    started = await scene.start(cluster)
    await scene.trust_bundle(cluster)
    await scene.step(cluster)
    proved = (await scene.status(cluster)).rotation
    third = f"{cluster.api_servers[0]}0"
    scene.servers.trusted[third] = set()
    current = await scene.current(cluster)
    await scene.clusters.replace(replace(current, api_servers=(*current.api_servers, third)), event())
    # A leader that has read the cluster before can't go on.
    with pytest.raises(ConcurrentChange):
        await scene.rotations.queries.save(proved, proved.advanced("issuing", scene.now))
    await scene.step(cluster)
    assert (await scene.status(cluster)).rotation.unproved(scene.now) == (third,)
    assert scene.active(cluster) == started.old_ca.id


async def test_an_api_server_that_is_added_in_the_last_step_keeps_a_rotation_from_completing(
    scene: RotationScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await draining(scene)
    await scene.rotations.complete(cluster, holders=None, deny_old=None, actor=BY)
    third = f"{cluster.api_servers[0]}0"
    await scene.trust_bundle(cluster, third)
    scene.servers.trusted[third].add(ca_subject(cluster.client_ca.certificate).key_identifier)
    await scene.trust_bundle(cluster)
    prove = scene.servers.prove

    async def prove_and_add(proved: Cluster, ca: ClientCA, addresses: Sequence[str]) -> tuple[CaProof, ...]:
        proofs = await prove(proved, ca, addresses)
        if ca.id == cluster.client_ca.id and third not in addresses:
            current = await scene.current(cluster)
            await scene.clusters.replace(replace(current, api_servers=(*current.api_servers, third)), event())
        return proofs

    monkeypatch.setattr(scene.servers, "prove", prove_and_add)
    await scene.step(cluster)
    await scene.step(cluster)
    assert (await scene.status(cluster)).rotation.trusting() == (third,)
    assert cluster.client_ca.id in scene.signers["local"].keys


async def test_a_cluster_that_moves_is_proved_at_its_new_address(scene: RotationScene) -> None:
    cluster = await scene.register(api_servers=0)
    await scene.start(cluster)
    scene.servers.trusted[cluster.internal_url] = set()
    await scene.step(cluster)
    current = await scene.current(cluster)
    moved = "https://moved.example:6443"
    await scene.clusters.replace(replace(current, internal_url=moved), event())
    await scene.trust_bundle(cluster, moved)
    await scene.reach(cluster, "issuing")
    assert (await scene.status(cluster)).rotation.addresses == (moved,)


async def test_nothing_is_proved_before_the_addresses_are_known(
    scene: RotationScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await scene.register(api_servers=0)
    await scene.start(cluster)
    await scene.trust_bundle(cluster, cluster.internal_url)

    async def silent(_: Cluster) -> tuple[str, ...]:
        raise Unavailable("The addresses can't be read.")

    with monkeypatch.context() as patch:
        patch.setattr(scene.servers, "api_servers", silent)
        await scene.step(cluster)
        rotation = (await scene.status(cluster)).rotation
        assert (rotation.state, rotation.problem) == ("planned", "The addresses can't be read.")
    await scene.step(cluster)
    assert await scene.state(cluster) == "distributed"


async def test_an_operator_completes_a_rotation_whose_old_signer_is_lost(scene: RotationScene) -> None:
    """Nobody can sign a temporary certificate of the old CA."""
    cluster = await draining(scene, signer="other")
    del scene.signers["local"]
    await scene.rotations.complete(cluster, holders=None, deny_old=None, actor=BY)
    await scene.trust_bundle(cluster)
    await scene.step(cluster)
    problem = (await scene.status(cluster)).rotation.problem
    assert problem is not None
    assert "local is not installed" in problem
    refused = [ReportedResult(cluster.client_ca.id, each, "refused") for each in cluster.api_servers]
    await scene.rotations.report(cluster, refused, actor=BY)
    await scene.step(cluster)
    assert await scene.state(cluster) == "complete"


async def test_old_certificates_keep_a_rotation_from_completing(scene: RotationScene) -> None:
    cluster = await scene.register()
    await issue(scene, cluster, cluster.client_ca.id, not_after=NOW + timedelta(hours=1))
    await scene.start(cluster, auto_complete=True)
    await scene.trust_bundle(cluster)
    await scene.reach(cluster, "draining")
    await scene.step(cluster)
    status = await scene.status(cluster)
    assert (status.rotation.completion_asked_at, status.safe_at) == (None, NOW + timedelta(hours=1))
    assert len(await scene.clusters.bundle(cluster.id)) == 2
    for holders in (None, 0, 2):
        with pytest.raises(Conflict, match="Valid certificates of the old CA: 1, not "):
            await scene.rotations.complete(cluster, holders=holders, deny_old=None, actor=BY)
    scene.forward(timedelta(hours=1))
    await scene.step(cluster)
    assert (await scene.status(cluster)).rotation.is_completing
    assert len(await scene.clusters.bundle(cluster.id)) == 1


async def test_the_service_asks_api_servers_less_often_the_longer_nobody_acts(scene: RotationScene) -> None:
    cluster = await scene.register()
    await scene.start(cluster)
    assert await scene.progress.advance(cluster.id) == timedelta(seconds=2)
    scene.forward(timedelta(minutes=5))
    assert await scene.progress.advance(cluster.id) == timedelta(seconds=30)
    scene.forward(timedelta(hours=1))
    assert await scene.progress.advance(cluster.id) == timedelta(minutes=1)


async def test_draining_begins_only_when_no_worker_issues_from_the_old_ca(scene: RotationScene) -> None:
    cluster = await scene.register()
    await scene.start(cluster)
    await scene.trust_bundle(cluster)
    await scene.reach(cluster, "issuing")
    waiting = await scene.progress.advance(cluster.id)
    assert await scene.state(cluster) == "issuing"
    assert waiting == DRAIN_AFTER
    scene.forward(DRAIN_AFTER - timedelta(seconds=1))
    assert await scene.progress.advance(cluster.id) == timedelta(seconds=1)
    scene.forward(timedelta(seconds=1))
    await scene.progress.advance(cluster.id)
    assert await scene.state(cluster) == "draining"


async def test_an_expired_ca_is_replaced_without_a_proof_that_it_is_refused(scene: RotationScene) -> None:
    """No certificate of it can be issued."""
    cluster = await draining(scene)
    await scene.rotations.complete(cluster, holders=None, deny_old=None, actor=BY)
    scene.now = scene.servers.now = cluster.client_ca.not_after
    await scene.step(cluster)
    assert await scene.state(cluster) == "complete"


async def test_the_ca_of_the_cluster_itself_stays_trusted(
    scene: RotationScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await draining(scene, signer="other")
    monkeypatch.setattr(scene.signers["local"], "is_ca_of_cluster", True)
    await scene.rotations.complete(cluster, holders=None, deny_old=None, actor=BY)
    await scene.step(cluster)
    assert await scene.state(cluster) == "complete"


async def test_a_key_that_its_signer_does_not_delete_is_deleted_later(scene: RotationScene) -> None:
    cluster = await scene.register()
    started = await scene.start(cluster)
    await scene.rotations.abort(cluster, actor=BY)
    signer = scene.signers["local"]
    signer.fails = True
    [failed] = await scene.discarded.delete_keys_of(cluster.id, actor=BY)
    assert (failed.is_done, failed.ca_id) == (False, started.new_ca.id)
    assert "The token is not there. The service tries again." in failed.result
    with captured_lines(discarded_keys) as lines:
        await scene.discarded.delete_all()
    assert [(line["event"], line["cluster"], line["error"]) for line in lines] == [
        ("key of a discarded client CA not deleted", cluster.id, failed.result)
    ]
    assert started.new_ca.id in signer.keys
    signer.fails = False
    await scene.discarded.delete_all()
    assert signer.keys == {cluster.client_ca.id}
    assert scene.store.rows("SELECT id FROM discarded_ca") == []
    query = "SELECT kind FROM audit_event WHERE subject = ?"
    assert scene.store.rows(query, started.new_ca.id) == [("client_ca.key_deleted",)]


async def test_a_fault_of_a_signer_leaves_no_other_key(scene: RotationScene) -> None:
    clusters = [await scene.register(), await scene.register()]
    discarded = []
    for each in clusters:
        discarded.append((await scene.start(each)).new_ca.id)
        await scene.rotations.abort(each, actor=BY)
    first = min(discarded)
    signer = scene.signers["local"]
    signer.faulty = {first}
    await scene.discarded.delete_all()
    assert signer.keys == {first, *(each.client_ca.id for each in clusters)}
    assert scene.store.rows("SELECT id FROM discarded_ca") == [(first,)]


async def test_a_cluster_that_is_not_registered_leaves_no_key(scene: RotationScene) -> None:
    """A request that is still under way keeps its key."""
    registered = await scene.register()
    clusters = Clusters(
        scene.clusters,
        scene.signers,
        ClientCaQueries(scene.database),
        lambda: scene.now,
        limits=ClusterLimits(clusters=2),
    )
    prepared = [
        await clusters.prepare(samples.PROJECT_ID, replace(samples.cluster(), name=name))
        for name in ("one", "two", "three")
    ]
    await clusters.register(prepared[0], actor=BY)
    with pytest.raises(Forbidden):
        await clusters.register(prepared[1], actor=BY)
    keys = {each.client_ca.id for each in (registered, *prepared)}
    await scene.discarded.delete_all()
    assert scene.signers["local"].keys == keys
    scene.now += ADDING + timedelta(minutes=1)
    await scene.discarded.delete_all()
    assert scene.signers["local"].keys == {registered.client_ca.id, prepared[0].client_ca.id}
    assert scene.store.rows("SELECT id FROM discarded_ca") == []


async def test_a_ca_whose_key_was_deleted_meanwhile_is_not_added(
    scene: RotationScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a replica whose clock is ahead."""
    registered = await scene.register()

    async def delete_all_keys() -> None:
        now, scene.now = scene.now, scene.now + ADDING + timedelta(minutes=1)
        await scene.discarded.delete_all()
        scene.now = now

    cas = ClientCaQueries(scene.database)
    clusters = Clusters(scene.clusters, scene.signers, cas, lambda: scene.now)
    prepared = await clusters.prepare(samples.PROJECT_ID, replace(samples.cluster(), signer="other"))
    await delete_all_keys()
    with pytest.raises(Conflict, match="The key of the new client CA was deleted meanwhile"):
        await clusters.register(prepared, actor=BY)
    assert await scene.clusters.clusters_with_ids([prepared.id]) == ()

    note_created = ClientCaQueries.note_created

    async def note_and_delete(queries: ClientCaQueries, ca: ClientCA) -> None:
        await note_created(queries, ca)
        await delete_all_keys()

    monkeypatch.setattr(ClientCaQueries, "note_created", note_and_delete)
    with pytest.raises(Conflict, match="The key of the new client CA was deleted meanwhile"):
        await scene.start(registered, signer="other")
    assert await cas.of_cluster(registered.id) == (registered.client_ca,)
    assert scene.signers["other"].keys == set()


async def test_a_ca_that_the_database_does_not_take_leaves_no_key(scene: RotationScene) -> None:
    cluster = await scene.register()
    scene.store.execute("ALTER TABLE discarded_ca RENAME TO unreachable")
    with pytest.raises(Unavailable):
        await scene.start(cluster)
    assert scene.signers["local"].keys == {cluster.client_ca.id}


async def test_a_removed_cluster_leaves_no_key(scene: RotationScene) -> None:
    """Neither those of a running rotation, nor that of a CA that was replaced before."""
    cluster = await draining(scene)
    await scene.rotations.complete(cluster, holders=None, deny_old=None, actor=BY)
    await scene.trust_bundle(cluster)
    await scene.reach(cluster, "complete")
    await scene.start(cluster)
    assert len(scene.signers["local"].keys) == 2
    await scene.clusters.remove(cluster.id, event())
    await scene.step(cluster)
    assert scene.store.rows("SELECT cluster_id FROM ca_rotation") == []
    deleted = await scene.discarded.delete_keys_of(cluster.id, actor=BY)
    assert len(deleted) == 2
    assert scene.signers["local"].keys == set()


async def test_an_operator_and_the_leader_act_at_the_same_time(
    scene: RotationScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's write comes between the operator's read and write."""
    cluster = await draining(scene)
    queries = scene.rotations.queries
    read, raced = queries.rotation, 0

    async def read_and_race(cluster_id: str) -> CaRotation | None:
        nonlocal raced
        found = await read(cluster_id)
        if raced < 2 and found is not None:
            raced += 1
            await queries.save(found, replace(found, problem=f"problem {raced}"))
        return found

    monkeypatch.setattr(queries, "rotation", read_and_race)
    status = await scene.rotations.complete(cluster, holders=None, deny_old=None, actor=BY)
    assert status.rotation.is_completing
    assert raced == 2
    assert scene.events(cluster).count("completion_requested") == 1


async def test_two_operators_who_abort_at_the_same_time_abort_once(
    scene: RotationScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other operator's abort comes between this operator's read and write."""
    cluster = await draining(scene)
    queries = scene.rotations.queries
    save = queries.save

    async def race_and_save(before: CaRotation, *more: Any, **options: Any) -> CaRotation:
        monkeypatch.setattr(queries, "save", save)
        await scene.rotations.abort(cluster, actor=BY)
        return await save(before, *more, **options)

    monkeypatch.setattr(queries, "save", race_and_save)
    status = await scene.rotations.abort(cluster, actor=BY)
    assert (status.rotation.state, status.rotation.new_ca_id) == ("planned", cluster.client_ca.id)
    assert scene.events(cluster).count("reversed") == 1


async def test_a_report_of_an_unknown_address_or_ca_is_refused(scene: RotationScene) -> None:
    cluster = await scene.register()
    started = await scene.start(cluster)
    good = ReportedResult(started.new_ca.id, cluster.api_servers[0], "accepted")
    elsewhere, unprintable = replace(good, address="https://elsewhere:6443"), replace(good, detail="a\x1b[2J")
    for wrong in (replace(good, ca_id="0" * 32), elsewhere, unprintable):
        with pytest.raises(InvalidRequest):
            await scene.rotations.report(cluster, [good, wrong], actor=BY)
    assert (await scene.status(cluster)).rotation.proofs == ()


async def test_an_operators_proof_counts_for_ten_minutes(scene: RotationScene) -> None:
    """The service reaches no address."""
    cluster = await scene.register()
    started = await scene.start(cluster)
    scene.servers.silent.update(cluster.api_servers)
    results = [ReportedResult(started.new_ca.id, each, "accepted") for each in cluster.api_servers]
    await scene.rotations.report(cluster, results, actor=BY)
    await scene.step(cluster)
    assert await scene.state(cluster) == "distributed"
    scene.forward(PROOF_AGE)
    await scene.step(cluster)
    assert await scene.state(cluster) == "planned"
    await scene.rotations.report(cluster, results, actor=BY)
    await scene.reach(cluster, "issuing")
    assert scene.events(cluster).count("proof_reported") == 2


async def test_unchanged_proofs_are_seldom_written(scene: RotationScene) -> None:
    cluster = await scene.register()
    await scene.start(cluster)
    await scene.step(cluster)
    before = (await scene.status(cluster)).rotation.version
    for _ in range(4):
        await scene.step(cluster)
    assert (await scene.status(cluster)).rotation.version == before
    await scene.step(cluster)
    assert (await scene.status(cluster)).rotation.version == before + 1


async def test_an_error_is_stored_with_its_cluster_only(
    scene: RotationScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = [await scene.register() for _ in range(2)]
    prove = scene.servers.prove

    async def fail(cluster: Cluster, ca: ClientCA, addresses: tuple[str, ...]) -> object:
        if cluster.id == bad.id:
            raise RuntimeError("a fault of ours")
        return await prove(cluster, ca, addresses)

    monkeypatch.setattr(scene.servers, "prove", fail)
    for cluster in (bad, good):
        await scene.start(cluster)
        await scene.trust_bundle(cluster)
        await scene.step(cluster)
    assert await scene.state(good) == "distributed"
    rotation = (await scene.status(bad)).rotation
    assert (rotation.state, rotation.problem) == ("planned", "Unexpected error. See the log.")
    counts = await scene.rotations.queries.counts()
    assert (counts.states, counts.failing) == ({"planned": 1, "distributed": 1}, 1)
    monkeypatch.undo()
    await scene.step(bad)
    assert (await scene.status(bad)).rotation.problem is None


async def test_a_step_that_hangs_ends(scene: RotationScene, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = await scene.register()
    await scene.start(cluster)

    async def hang(*_: object) -> object:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(scene.servers, "prove", hang)
    await CaProgress(scene.rotations, scene.discarded, DRAIN_AFTER, step_seconds=0.01).advance(cluster.id)
    assert (await scene.status(cluster)).rotation.problem == "The step took longer than 0.01 seconds."
