"""Synchronizing one cluster, with a real ledger and a double of kube-apiserver over TLS.

The queries are tested on each database in `test_enforcement`.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi
from clustercert.kubernetes.bindings import BINDINGS_PATH, Binding, bind, list_fingerprints
from clustercert.kubernetes.reconcile import ORPHAN_SECONDS, Sync
from clustercert.kubernetes.setup.admission import storage
from clustercert.model import CertificateRecord, Cluster, ClusterOptions, JsonObject
from clustercert.model.errors import RemoteFailed
from clustercert.observability import metrics
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.enforcement import EnforcementQueries, LiveCertificate
from support.apiserver import ApiServer, kinds
from support.credential_ledger import HERE, CredentialLedger
from support.managed_cluster import NAMESPACES, REVOKED, ROLES
from support.own_gauge import OwnGauge
from support.samples import cluster
from support.stores import NOW, Store, event, sqlite_url
from support.wait import SECONDS

T = TypeVar("T")


@dataclass
class Root:
    """Connects to the API server as `system:masters`."""

    double: ApiServer

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        pem = self.double._own_ca.client_identity_pem("root", ("system:masters",))
        ca, identity = self.double.server_ca.read_bytes(), ClientIdentity(pem, b"")
        async with KubeApi(self.double.url, ca, identity, seconds=SECONDS) as api:
            return await work(api)


@dataclass
class Scene:
    """A cluster, its ledger and its API server."""

    certificates: CredentialLedger
    root: Root
    store: Store
    room: int = 8000
    clock: float = 1000.0
    now: datetime = NOW
    sync: Sync = field(init=False)

    def __post_init__(self) -> None:
        self.sync = Sync(
            self.certificates.queries,
            self.root,
            self.certificates.database.record,
            lambda: self.now,
            clock=lambda: self.clock,
            room=self.room,
        )

    async def done(self, **options: Any) -> None:
        said = ClusterOptions(**(options or {"credential_roles": ROLES}))
        await self.sync.sync_cluster(replace(cluster(), options=said))

    async def bound(self) -> set[str]:
        return set(await self.root.call(cluster(), list_fingerprints))

    async def bind(self, record: CertificateRecord) -> None:
        await self.root.call(cluster(), lambda api: bind(api, binding(record)))

    async def listed(self) -> dict[str, str]:
        found: Any = await self.root.call(cluster(), lambda api: api.get(REVOKED))
        return dict(found.get("data") or {})


def binding(record: CertificateRecord, role: str = "cluster-admin") -> Binding:
    return Binding(number(record), role, record.fingerprint.hex(), record.not_after)


def number(record: CertificateRecord) -> str:
    """In certificates from older versions, the serial is the number."""
    return record.credential_number or record.serial


def name(record: CertificateRecord) -> str:
    return f"clustercert:credential:{number(record)}"


@pytest.fixture
def store(file: Path) -> Store:
    return Store(sqlite_url(file))


@pytest.fixture
def double(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        yield running


@pytest.fixture
async def scene(database: Database, store: Store, double: ApiServer) -> Scene:
    made = Scene(CredentialLedger(database), Root(double), store)
    for path, document in zip((NAMESPACES, f"{NAMESPACES}/clustercert/configmaps"), storage(), strict=True):
        await made.root.call(cluster(), lambda api, path=path, document=document: api.create(path, document))  # type: ignore[misc] # the lambda has no types
    return made


# Bindings


async def test_only_live_certificates_have_bindings(scene: Scene) -> None:
    missing, there = await scene.certificates.issue(rule="member"), await scene.certificates.issue()
    revoked, expired = await scene.certificates.issue(), await scene.certificates.issue(not_after=NOW)
    for record in (there, revoked, expired):
        await scene.bind(record)
    await scene.certificates.revoke(revoked)
    await scene.done()
    assert await scene.bound() == {name(missing), name(there)}
    made: Any = await scene.root.call(cluster(), lambda api: api.get(f"{BINDINGS_PATH}/{name(missing)}"))
    assert made["roleRef"]["name"] == "edit"
    assert made["subjects"][0]["name"] == name(missing)


async def test_nothing_is_written_if_nothing_changed(scene: Scene, double: ApiServer) -> None:
    await scene.certificates.revoke(await scene.certificates.issue())
    await scene.certificates.issue()
    await scene.done(credential_roles=ROLES, admission=True)
    double.seen.clear()
    await scene.done(credential_roles=ROLES, admission=True)
    assert {each.method for each in double.seen} == {"GET"}


async def test_an_expired_certificate_loses_its_binding(scene: Scene) -> None:
    record = await scene.certificates.issue(not_after=NOW + timedelta(hours=1))
    await scene.done()
    assert await scene.bound() == {name(record)}
    scene.now = NOW + timedelta(hours=1)
    await scene.done()
    assert await scene.bound() == set()


async def test_an_orphaned_binding_is_deleted_after_a_delay(scene: Scene) -> None:
    """A process that dies between binding and recording leaves one."""
    record = replace(await scene.certificates.issue(), fingerprint=b"\1" * 32, credential_number="ab" * 20)
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


async def test_a_certificate_recorded_during_the_sync_keeps_its_binding(scene: Scene) -> None:
    """It is bound before the bindings are listed, and recorded after the live certificates are read."""
    in_the_making, recorded = scene.certificates.prepare()
    await scene.bind(in_the_making)

    class Late(EnforcementQueries):
        async def live(self, *arguments: Any) -> tuple[LiveCertificate, ...]:
            page = await super().live(*arguments)
            if not page:
                await scene.certificates.ledger.record(in_the_making, recorded)
            return page

    scene.sync.queries = Late(scene.certificates.database)
    await scene.done()
    assert await scene.bound() == {name(in_the_making)}
    scene.sync.queries = scene.certificates.queries
    scene.clock += ORPHAN_SECONDS
    await scene.done()
    assert await scene.bound() == {name(in_the_making)}


async def test_a_binding_recorded_within_the_delay_is_kept(scene: Scene) -> None:
    late = await scene.certificates.issue()
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
async def test_a_binding_without_annotation_is_found_by_its_name(
    scene: Scene, annotation: str | None
) -> None:
    record = await scene.certificates.issue()
    document: Any = binding(record).document()
    document["metadata"]["annotations"] = (
        {} if annotation is None else {"clustercert/fingerprint": annotation}
    )
    await scene.root.call(cluster(), lambda api: api.create(BINDINGS_PATH, document))
    await scene.done()
    assert await scene.bound() == {name(record)}
    await scene.certificates.revoke(record)
    await scene.done()
    scene.clock += ORPHAN_SECONDS
    await scene.done()
    assert await scene.bound() == set()


async def test_other_bindings_are_not_changed(scene: Scene, double: ApiServer) -> None:
    double.bind("clustercert:admins", "cluster-admin")
    labelled: Any = binding(await scene.certificates.issue()).document()
    labelled["metadata"]["name"] = "by-hand"
    await scene.root.call(cluster(), lambda api: api.create(BINDINGS_PATH, labelled))
    scene.store.execute("DELETE FROM certificate")
    for _ in range(2):
        await scene.done()
        scene.clock += ORPHAN_SECONDS
    listed: Any = await scene.root.call(cluster(), lambda api: api.get(BINDINGS_PATH))
    names = {item["metadata"]["name"] for item in listed["items"]}
    assert {"by-hand", "clustercert:admins:cluster-admin", "cluster-admin"} <= names


async def test_certificates_with_policy_groups_get_no_binding(scene: Scene) -> None:
    await scene.certificates.issue(groups=("clustercert:admins",))
    await scene.done()
    assert await scene.bound() == set()


async def test_existing_bindings_are_maintained_without_new_ones(scene: Scene) -> None:
    kept, revoked, unbound = [await scene.certificates.issue() for _ in range(3)]
    await scene.bind(kept)
    await scene.bind(revoked)
    await scene.certificates.revoke(revoked)
    await scene.done(credential_roles={})
    assert await scene.bound() == {name(kept)}
    assert unbound.rule == "admin"


async def test_revoking_a_cluster_deletes_all_bindings(scene: Scene) -> None:
    records = [await scene.certificates.issue() for _ in range(12)]
    await scene.done()
    assert await scene.bound() == {name(record) for record in records}
    await scene.certificates.revoke(cluster_id=HERE)
    await scene.done()
    assert await scene.bound() == set()


async def test_bindings_are_listed_in_pages(scene: Scene, double: ApiServer) -> None:
    record = await scene.certificates.issue()
    for each in range(1203):
        document = replace(binding(record), credential_number=f"{each:040x}").document()
        double.storage.create(kinds.CLUSTER_ROLE_BINDINGS, "", dict(document))
    double.seen.clear()
    found = await scene.root.call(cluster(), list_fingerprints)
    assert found == {f"clustercert:credential:{each:040x}": record.fingerprint.hex() for each in range(1203)}
    assert len(double.seen) == 5


class EndlessPages:
    """An API server whose list of bindings has no end."""

    def __init__(self) -> None:
        self.names = 0

    async def get(self, path: str, parameters: Mapping[str, str], **_: object) -> JsonObject:
        names = [f"clustercert:credential:{self.names + each:040x}" for each in range(30_000)]
        self.names += len(names)
        return {"metadata": {"continue": "x"}, "items": [{"metadata": {"name": name}} for name in names]}


async def test_a_list_of_bindings_without_an_end_is_refused() -> None:
    pages = EndlessPages()
    with pytest.raises(RemoteFailed, match="too many bindings"):
        await list_fingerprints(cast("KubeApi", pages))
    assert pages.names <= 230_000


async def test_binding_twice_succeeds_and_a_different_binding_fails(scene: Scene) -> None:
    record = await scene.certificates.issue()
    await scene.bind(record)
    await scene.bind(record)
    with pytest.raises(RemoteFailed):
        await scene.bind(replace(record, fingerprint=b"\3" * 32))
    assert await scene.bound() == {name(record)}


# Admission


async def test_the_map_has_revoked_certificates_that_are_not_expired(scene: Scene) -> None:
    revoked = await scene.certificates.issue(not_after=NOW + timedelta(hours=1))
    await scene.certificates.issue()
    await scene.certificates.revoke(revoked)
    await scene.done(admission=True)
    assert await scene.listed() == {number(revoked): "2026-03-14T16:09:26Z"}
    scene.now = NOW + timedelta(hours=1)
    await scene.done(admission=True)
    assert await scene.listed() == {}


async def test_the_map_follows_bulk_revocations_and_their_undoing(scene: Scene) -> None:
    records = [await scene.certificates.issue() for _ in range(3)]
    made = await scene.certificates.revoke(cluster_id=HERE)
    await scene.done(admission=True)
    assert (await scene.listed()).keys() == {number(each) for each in records}
    await scene.certificates.revocations.undo(made.id, by="cli:test", at=NOW, event=event())
    await scene.done(admission=True)
    assert await scene.listed() == {}


async def test_a_deleted_map_is_created_again(scene: Scene) -> None:
    revoked = await scene.certificates.issue()
    await scene.certificates.revoke(revoked)
    await scene.root.call(cluster(), lambda api: api.delete(REVOKED))
    await scene.done(admission=True)
    assert (await scene.listed()).keys() == {number(revoked)}


async def test_other_keys_in_the_map_stay_and_forged_ids_are_deleted(scene: Scene) -> None:
    there: Any = await scene.root.call(cluster(), lambda api: api.get(REVOKED))
    changed = {**there, "data": {"note": "by hand", "0" * 40: "forged", "0" * 41: "o"}}
    await scene.root.call(cluster(), lambda api: api.replace(REVOKED, changed))
    await scene.done(admission=True)
    assert await scene.listed() == {"note": "by hand", "0" * 41: "o"}


async def test_a_missing_namespace_is_an_error(scene: Scene) -> None:
    await scene.root.call(cluster(), lambda api: api.delete(f"{NAMESPACES}/clustercert"))
    with pytest.raises(ApiServerRefused) as refused:
        await scene.done(admission=True)
    assert refused.value.http_status == 404


async def test_a_full_map_keeps_the_latest_revocations_and_reports_the_rest(scene: Scene) -> None:
    scene.room = 2
    scene.__post_init__()
    records = [await scene.certificates.issue() for _ in range(4)]
    for minute, record in enumerate(records):
        await scene.certificates.revoke(record, at=NOW + timedelta(minutes=minute))
    for _ in range(2):
        await scene.done(admission=True)
    assert (await scene.listed()).keys() == {number(record) for record in records[2:]}
    told = [event for event in scene.store.events() if event["kind"] == "enforcement.overflowed"]
    assert [(each["subject"], each["detail"]) for each in told] == [(HERE, {"left_out": 2, "kept": 2})]
    scene.now = NOW + timedelta(days=400)
    await scene.done(admission=True)
    assert scene.sync._left_out == {}


@pytest.mark.parametrize("reason", ["admission off", "cluster removed"])
async def test_what_was_left_out_is_no_longer_counted(
    scene: Scene, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = OwnGauge()
    monkeypatch.setattr(metrics, "ENFORCEMENT_LEFT_OUT", gauge)
    scene.room = 1
    scene.__post_init__()
    for _ in range(2):
        await scene.certificates.revoke(await scene.certificates.issue())
    await scene.done(admission=True)
    assert gauge.value == 1
    scene.sync.forget_others(frozenset({HERE}))
    assert gauge.value == 1
    if reason == "admission off":
        await scene.done(credential_roles=ROLES)
    else:
        scene.sync.forget_others(frozenset())
    assert gauge.value == 0


async def test_the_map_is_written_although_bindings_fail(scene: Scene, double: ApiServer) -> None:
    class OnlyMaps(Root):
        async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T:
            if self.failing:
                self.failing = False
                raise RemoteFailed("No.")
            return await super().call(cluster, work)

        failing = True

    revoked = await scene.certificates.issue()
    await scene.certificates.revoke(revoked)
    scene.sync.connections = OnlyMaps(double)
    with pytest.raises(RemoteFailed):
        await scene.done(credential_roles=ROLES, admission=True)
    assert (await scene.listed()).keys() == {number(revoked)}
