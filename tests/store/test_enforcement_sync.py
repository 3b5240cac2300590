"""One cluster brought up to date: a real ledger, and the double of kube-apiserver over real TLS.

What is asked of the ledger is tested on each database elsewhere.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from apiserver import ApiServer, kinds
from clustercert.enforcement.bindings import BINDINGS_PATH, Binding, bind, bound_names
from clustercert.enforcement.sync import ORPHAN_SECONDS, Sync
from clustercert.errors import RemoteFailed
from clustercert.kubeapi import ClientIdentity, KubeApi, Refused, opened
from clustercert.manifests.admission import storage
from clustercert.model import CertificateRecord, Cluster, ClusterOptions
from clustercert.store.database import Database
from clustercert.store.enforcement import Credential, EnforcementRows
from enforcing import NAMESPACES, REVOKED, ROLES
from nouns import cluster
from shelf import HERE, Shelf
from stores import NOW, Store, event, sqlite_url

T = TypeVar("T")


@dataclass
class Root:
    """A way in for somebody who may do anything."""

    double: ApiServer

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        pem = self.double._own_ca.client_identity_pem("root", ("system:masters",))
        async with opened(
            self.double.url, self.double.server_ca.read_bytes(), ClientIdentity(pem, b"")
        ) as api:
            return await work(api)


@dataclass
class Scene:
    """A cluster, what its ledger says, and what its API server holds."""

    shelf: Shelf
    root: Root
    store: Store
    room: int = 8000
    clock: float = 1000.0
    now: datetime = NOW
    sync: Sync = field(init=False)

    def __post_init__(self) -> None:
        self.sync = Sync(
            self.shelf.rows, self.root, lambda: self.now, clock=lambda: self.clock, room=self.room
        )

    async def done(self, **options: Any) -> None:
        said = ClusterOptions(**(options or {"credential_roles": ROLES}))
        await self.sync.cluster(replace(cluster(), options=said))

    async def bound(self) -> set[str]:
        return set(await self.root.call(cluster(), bound_names))

    async def bind(self, record: CertificateRecord) -> None:
        await self.root.call(cluster(), lambda api: bind(api, binding(record)))

    async def listed(self) -> dict[str, str]:
        found: Any = await self.root.call(cluster(), lambda api: api.get(REVOKED))
        return dict(found.get("data") or {})


@pytest.fixture
def store(file: Path) -> Store:
    return Store(sqlite_url(file))


@pytest.fixture
def double(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        yield running


@pytest.fixture
async def scene(database: Database, store: Store, double: ApiServer) -> Scene:
    made = Scene(Shelf(database), Root(double), store)
    for path, document in zip((NAMESPACES, f"{NAMESPACES}/clustercert/configmaps"), storage(), strict=True):
        await made.root.call(cluster(), lambda api, path=path, document=document: api.create(path, document))  # type: ignore[misc] # the lambda has no types
    return made


def binding(record: CertificateRecord, role: str = "cluster-admin") -> Binding:
    return Binding(number(record), role, record.fingerprint.hex(), record.not_after)


def number(record: CertificateRecord) -> str:
    """An older program's has its serial for a number."""
    return record.credential_number or record.serial


def name(record: CertificateRecord) -> str:
    return f"clustercert:credential:{number(record)}"


# Bindings


async def test_what_lives_gets_its_binding_and_what_does_not_loses_it(scene: Scene) -> None:
    missing, there = await scene.shelf.issue(rule="member"), await scene.shelf.issue()
    revoked, expired = await scene.shelf.issue(), await scene.shelf.issue(not_after=NOW)
    for record in (there, revoked, expired):
        await scene.bind(record)
    await scene.shelf.revoke(revoked)
    await scene.done()
    assert await scene.bound() == {name(missing), name(there)}
    made: Any = await scene.root.call(cluster(), lambda api: api.get(f"{BINDINGS_PATH}/{name(missing)}"))
    assert made["roleRef"]["name"] == "edit"
    assert made["subjects"][0]["name"] == name(missing)


async def test_what_an_older_program_bound_is_kept_and_looked_after(scene: Scene) -> None:
    kept, missing, revoked = [await scene.shelf.issue_as_before() for _ in range(3)]
    await scene.bind(kept)
    await scene.bind(revoked)
    await scene.shelf.revoke(revoked)
    await scene.done()
    assert await scene.bound() == {name(kept), name(missing)}


async def test_nothing_is_written_where_all_is_well(scene: Scene, double: ApiServer) -> None:
    await scene.shelf.revoke(await scene.shelf.issue())
    await scene.shelf.issue()
    await scene.done(credential_roles=ROLES, admission=True)
    double.seen.clear()
    await scene.done(credential_roles=ROLES, admission=True)
    assert {each.method for each in double.seen} == {"GET"}


async def test_what_ends_loses_its_binding_as_time_goes_by(scene: Scene) -> None:
    record = await scene.shelf.issue(not_after=NOW + timedelta(hours=1))
    await scene.done()
    assert await scene.bound() == {name(record)}
    scene.now = NOW + timedelta(hours=1)
    await scene.done()
    assert await scene.bound() == set()


async def test_a_binding_without_a_certificate_goes_once_it_can_not_be_in_the_making(scene: Scene) -> None:
    """A process that died between binding and recording left it."""
    record = replace(await scene.shelf.issue(), fingerprint=b"\1" * 32, credential_number="ab" * 20)
    await scene.bind(record)
    before = await scene.bound()
    await scene.done()
    scene.clock += ORPHAN_SECONDS - 1
    await scene.done()
    assert before - await scene.bound() == set()
    scene.clock += 1
    await scene.done()
    assert before - await scene.bound() == {name(record)}
    assert scene.sync._orphans == {}


async def test_what_is_recorded_while_this_looks_keeps_its_binding(scene: Scene) -> None:
    """Bound before the bindings are listed, recorded after the live ones are read."""
    in_the_making, recorded = scene.shelf.prepare()
    await scene.bind(in_the_making)

    class Late(EnforcementRows):
        async def live(self, *arguments: Any) -> tuple[Credential, ...]:
            page = await super().live(*arguments)
            if not page:
                await scene.shelf.ledger.record(in_the_making, recorded)
            return page

    scene.sync.rows = Late(scene.shelf.database)
    await scene.done()
    assert await scene.bound() == {name(in_the_making)}
    scene.sync.rows = scene.shelf.rows
    scene.clock += ORPHAN_SECONDS
    await scene.done()
    assert await scene.bound() == {name(in_the_making)}


async def test_a_binding_whose_certificate_is_recorded_in_time_stays(scene: Scene) -> None:
    late = await scene.shelf.issue()
    await scene.bind(late)
    scene.store.execute("UPDATE certificate SET cluster_id = ? WHERE serial = ?", "0" * 36, late.serial)
    scene.store.execute("UPDATE certificate SET fingerprint = ? WHERE serial = ?", b"\2" * 32, late.serial)
    await scene.done()
    assert await scene.bound() == {name(late)}
    scene.store.execute(
        "UPDATE certificate SET cluster_id = ?, fingerprint = ? WHERE serial = ?",
        HERE,
        late.fingerprint,
        late.serial,
    )
    scene.clock += 2 * ORPHAN_SECONDS
    await scene.done()
    assert await scene.bound() == {name(late)}


@pytest.mark.parametrize("annotation", [None, "", "zz", "00"])
async def test_a_binding_whose_annotation_somebody_took_away_is_known_by_its_name(
    scene: Scene, annotation: str | None
) -> None:
    record = await scene.shelf.issue()
    document: Any = binding(record).document()
    document["metadata"]["annotations"] = (
        {} if annotation is None else {"clustercert/fingerprint": annotation}
    )
    await scene.root.call(cluster(), lambda api: api.create(BINDINGS_PATH, document))
    await scene.done()
    assert await scene.bound() == {name(record)}
    await scene.shelf.revoke(record)
    await scene.done()
    scene.clock += ORPHAN_SECONDS
    await scene.done()
    assert await scene.bound() == set()


async def test_bindings_of_others_are_never_touched(scene: Scene, double: ApiServer) -> None:
    double.bind("clustercert:admins", "cluster-admin")
    labelled: Any = binding(await scene.shelf.issue()).document()
    labelled["metadata"]["name"] = "by-hand"
    await scene.root.call(cluster(), lambda api: api.create(BINDINGS_PATH, labelled))
    scene.store.execute("DELETE FROM certificate")
    for _ in range(2):
        await scene.done()
        scene.clock += ORPHAN_SECONDS
    listed: Any = await scene.root.call(cluster(), lambda api: api.get(BINDINGS_PATH))
    names = {item["metadata"]["name"] for item in listed["items"]}
    assert {"by-hand", "clustercert:admins:cluster-admin", "cluster-admin"} <= names


async def test_certificates_with_the_policys_groups_get_none(scene: Scene) -> None:
    await scene.shelf.issue(groups=("clustercert:admins",))
    await scene.shelf.issue(groups=("clustercert:admins",), credential_number=None)
    await scene.shelf.issue(groups=("clustercert:credential:" + "0" * 40,), credential_number=None)
    await scene.done()
    assert await scene.bound() == set()


async def test_where_no_new_ones_are_bound_the_old_ones_are_looked_after(scene: Scene) -> None:
    kept, revoked, unbound = [await scene.shelf.issue() for _ in range(3)]
    await scene.bind(kept)
    await scene.bind(revoked)
    await scene.shelf.revoke(revoked)
    await scene.done(credential_roles={})
    assert await scene.bound() == {name(kept)}
    assert unbound.rule == "admin"


async def test_a_revocation_of_everything_takes_every_binding(scene: Scene) -> None:
    records = [await scene.shelf.issue() for _ in range(12)]
    await scene.done()
    assert await scene.bound() == {name(record) for record in records}
    await scene.shelf.revoke(cluster_id=HERE)
    await scene.done()
    assert await scene.bound() == set()


async def test_bindings_are_listed_in_pages(scene: Scene, double: ApiServer) -> None:
    record = await scene.shelf.issue()
    for each in range(1203):
        document = replace(binding(record), credential_number=f"{each:040x}").document()
        double.storage.create(kinds.CLUSTER_ROLE_BINDINGS, "", dict(document))
    double.seen.clear()
    found = await scene.root.call(cluster(), bound_names)
    assert found == {f"clustercert:credential:{each:040x}": record.fingerprint.hex() for each in range(1203)}
    assert len(double.seen) == 3


async def test_binding_twice_is_binding_once_and_another_of_that_name_is_refused(scene: Scene) -> None:
    record = await scene.shelf.issue()
    await scene.bind(record)
    await scene.bind(record)
    with pytest.raises(RemoteFailed):
        await scene.bind(replace(record, fingerprint=b"\3" * 32))
    assert await scene.bound() == {name(record)}


# Admission


def both_keys(*records: CertificateRecord) -> set[str]:
    """Until the policy in the cluster is known to read numbers, it may be the older one, which reads hashes."""
    return {key for record in records for key in (number(record), record.fingerprint.hex())}


async def test_until_the_policy_reads_numbers_both_keys_of_each_certificate_are_in_the_map(
    scene: Scene,
) -> None:
    numbered, bound = await scene.shelf.issue(groups=("x",)), await scene.shelf.issue_as_before()
    unnumbered = await scene.shelf.issue(credential_number=None, groups=("x",))
    for record in (numbered, bound, unnumbered):
        await scene.shelf.revoke(record)
    await scene.done(admission=True)
    hashes = {unnumbered.fingerprint.hex()}
    assert (await scene.listed()).keys() == both_keys(numbered, bound) | hashes
    await scene.done(admission=True, admission_by_number=True)
    assert (await scene.listed()).keys() == {number(numbered), number(bound)} | hashes
    await scene.done(admission=True)
    assert (await scene.listed()).keys() == both_keys(numbered, bound) | hashes


async def test_the_map_has_what_is_revoked_and_not_yet_expired(scene: Scene) -> None:
    revoked = await scene.shelf.issue(not_after=NOW + timedelta(hours=1))
    await scene.shelf.issue()
    await scene.shelf.revoke(revoked)
    await scene.done(admission=True, admission_by_number=True)
    assert await scene.listed() == {number(revoked): "2026-03-14T16:09:26Z"}
    scene.now = NOW + timedelta(hours=1)
    await scene.done(admission=True)
    assert await scene.listed() == {}


async def test_a_revocation_of_many_and_its_undoing_are_in_the_map(scene: Scene) -> None:
    records = [await scene.shelf.issue() for _ in range(3)]
    made = await scene.shelf.revoke(cluster_id=HERE)
    await scene.done(admission=True)
    assert (await scene.listed()).keys() == both_keys(*records)
    await scene.shelf.revocations.undo(made.id, by="cli:test", at=NOW, event=event())
    await scene.done(admission=True)
    assert await scene.listed() == {}


async def test_a_map_that_somebody_removed_is_made_again(scene: Scene) -> None:
    revoked = await scene.shelf.issue()
    await scene.shelf.revoke(revoked)
    await scene.root.call(cluster(), lambda api: api.delete(REVOKED))
    await scene.done(admission=True)
    assert (await scene.listed()).keys() == both_keys(revoked)


async def test_keys_of_others_in_the_map_stay_and_forged_ids_go(scene: Scene) -> None:
    there: Any = await scene.root.call(cluster(), lambda api: api.get(REVOKED))
    changed = {**there, "data": {"note": "by hand", "0" * 64: "forged", "0" * 40: "forged", "0" * 41: "o"}}
    await scene.root.call(cluster(), lambda api: api.replace(REVOKED, changed))
    await scene.done(admission=True)
    assert await scene.listed() == {"note": "by hand", "0" * 41: "o"}


async def test_a_missing_namespace_is_the_operators_to_make(scene: Scene) -> None:
    await scene.root.call(cluster(), lambda api: api.delete(f"{NAMESPACES}/clustercert"))
    with pytest.raises(Refused) as refused:
        await scene.done(admission=True)
    assert refused.value.http_status == 404


async def test_what_does_not_fit_is_left_out_loudly_and_what_was_revoked_last_is_kept(scene: Scene) -> None:
    scene.room = 2
    scene.__post_init__()
    records = [await scene.shelf.issue() for _ in range(4)]
    for minute, record in enumerate(records):
        await scene.shelf.revoke(record, at=NOW + timedelta(minutes=minute))
    for _ in range(2):
        await scene.done(admission=True, admission_by_number=True)
    assert (await scene.listed()).keys() == {number(record) for record in records[2:]}
    told = [event for event in scene.store.events() if event["kind"] == "enforcement.overflowed"]
    assert [(each["subject"], each["detail"]) for each in told] == [(HERE, {"left_out": 2, "kept": 2})]
    scene.now = NOW + timedelta(days=400)
    await scene.done(admission=True)
    assert scene.sync._left_out == {}


async def test_while_both_keys_are_kept_a_certificate_is_kept_with_both_or_not_at_all(scene: Scene) -> None:
    scene.room = 3
    scene.__post_init__()
    records = [await scene.shelf.issue() for _ in range(3)]
    for minute, record in enumerate(records):
        await scene.shelf.revoke(record, at=NOW + timedelta(minutes=minute))
    await scene.done(admission=True)
    assert (await scene.listed()).keys() == both_keys(records[2])
    (told,) = [event for event in scene.store.events() if event["kind"] == "enforcement.overflowed"]
    assert told["detail"] == {"left_out": 2, "kept": 1}


async def test_where_bindings_fail_the_map_is_written_all_the_same(scene: Scene, double: ApiServer) -> None:
    class OnlyMaps(Root):
        async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T:
            if self.failing:
                self.failing = False
                raise RemoteFailed("No.")
            return await super().call(cluster, work)

        failing = True

    revoked = await scene.shelf.issue()
    await scene.shelf.revoke(revoked)
    scene.sync.access = OnlyMaps(double)
    with pytest.raises(RemoteFailed):
        await scene.done(credential_roles=ROLES, admission=True)
    assert (await scene.listed()).keys() == both_keys(revoked)
