"""How tokens end in a cluster: a real ledger, and an API server in memory."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from clustercert.clusters.unknown_tokens import UnknownTokenDeletion
from clustercert.kube_api import KubeApi
from clustercert.kubernetes import token_listing, token_sync
from clustercert.kubernetes.token_sync import LOOK_SECONDS, MAX_UNKNOWN, UNKNOWN_SECONDS, TokenSync
from clustercert.model import Actor, CertificateRecord, Cluster
from clustercert.model.errors import Conflict, RemoteFailed, Unavailable
from clustercert.model.kubernetes import INSTALLATION_LABEL, MANAGED_BY
from clustercert.model.times import rfc3339
from clustercert.model.token_objects import (
    ACCOUNTS_PATH,
    CLUSTER_ROLE_BINDINGS_PATH,
    NOT_AFTER_ANNOTATION,
    role_bindings_path,
)
from clustercert.observability import metrics
from clustercert.store.certificates.revocation_pruning import RevocationPruningQueries
from clustercert.store.clusters.signing_clusters import SigningClusterQueries, UnknownTokens
from clustercert.store.engine.database import Database
from support.credential_ledger import CredentialLedger
from support.own_gauge import OwnGauge
from support.samples import CLUSTER_ID
from support.store_records import register_cluster
from support.stores import NOW, Store, event, sqlite_url
from support.token_objects import (
    VIEW,
    MemoryApi,
    default_account,
    later,
    service_account_binding,
    token_cluster,
    token_objects,
    token_record,
)

HERE = token_cluster()
BLUE = role_bindings_path("blue")


@dataclass
class Problems:
    """Finds the problem that the test sets, or raises the error."""

    found: str | Exception | None = None

    async def __call__(self, _api: KubeApi, _cluster: Cluster, _installation: str) -> str | None:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@dataclass
class Scene:
    """A cluster in memory, the ledger, and the synchronization of one leader."""

    ledger: CredentialLedger
    installation: str
    store: Store
    api: MemoryApi = field(default_factory=MemoryApi)
    problems: Problems = field(default_factory=Problems)
    clock: float = 1000.0
    now: datetime = NOW
    generation: int = 0
    sync: TokenSync = field(init=False)

    def __post_init__(self) -> None:
        self.sync = self.leader()

    def leader(self) -> TokenSync:
        """A leader that has just been elected."""
        database = self.ledger.database
        return TokenSync(
            self.ledger.queries,
            SigningClusterQueries(database),
            self.api,
            database.record,
            lambda: self.generation,
            lambda: self.now,
            self.problems,
            RevocationPruningQueries(database).longest_lifetime,
            clock=lambda: self.clock,
        )

    async def issue(self, *, recorded: bool = True, **changed: object) -> tuple[CertificateRecord, list[str]]:
        """A credential with its objects. Returns their paths, first the account's."""
        record = token_record(**changed)
        if recorded:
            await self.ledger.ledger.record(record, event("certificate.issued", record.fingerprint.hex()))
        return record, self.api.issue(token_objects(record, self.installation))

    async def revoke(
        self, record: CertificateRecord | None = None, *, user_id: str = "", cluster_id: str = ""
    ) -> None:
        await self.ledger.revoke(record, user_id=user_id, cluster_id=cluster_id)
        self.generation += 1

    async def done(self, cluster: Cluster = HERE) -> None:
        await self.sync.sync_cluster(cluster)

    async def look(self) -> None:
        """Look again, as after the reconciler's next sweep."""
        self.clock += LOOK_SECONDS
        await self.done()

    async def unknown_for(self, seconds: float) -> None:
        self.clock += seconds
        await self.done()

    def events(self, kind: str) -> list[Any]:
        return [each["detail"] for each in self.store.events() if each["kind"] == f"cluster_tokens.{kind}"]

    @property
    def left(self) -> set[str]:
        return set(self.api.objects)

    async def problem(self) -> str | None:
        found = await self.sync.clusters.of_ca(HERE.client_ca.id)
        assert found is not None
        return found.problem

    async def unknown(self) -> UnknownTokens:
        return await self.sync.clusters.unknown_tokens(HERE.client_ca.id)


@pytest.fixture
def store(file: Any) -> Store:
    return Store(sqlite_url(file))


@pytest.fixture
async def scene(database: Database, store: Store) -> Scene:
    store.execute(
        "INSERT INTO audit_log (id, origin, public_key, sealed_key, size) VALUES ('main', 'log', ?, ?, 0)",
        b"p" * 32,
        b"sealed",
    )
    await register_cluster(database, store, HERE)
    installation = await SigningClusterQueries(database).installation()
    made = Scene(CredentialLedger(database), installation, store)
    made.api.add(ACCOUNTS_PATH, default_account())
    return made


# At once


async def test_a_revocation_ends_only_the_revoked_token_and_lists_no_others(scene: Scene) -> None:
    await scene.done()
    revoked, gone = await scene.issue()
    _, kept = await scene.issue()
    await scene.revoke(revoked)
    scene.api.requests.clear()
    await scene.done()
    assert scene.left == {*kept, f"{ACCOUNTS_PATH}/default"}
    deleted = [path for method, path in scene.api.requests if method == "DELETE"]
    # Rights end before the account.
    assert set(deleted) == set(gone)
    assert deleted[-1] == gone[0]


@pytest.mark.parametrize(("user_id", "cluster_id"), [("bob", CLUSTER_ID), ("bob", ""), ("", CLUSTER_ID)])
async def test_a_revocation_of_users_and_clusters_ends_their_tokens(
    scene: Scene, user_id: str, cluster_id: str
) -> None:
    await scene.done()
    await scene.issue(user_id="bob")
    _, other = await scene.issue(user_id="carol")
    await scene.revoke(user_id=user_id, cluster_id=cluster_id)
    await scene.done()
    assert scene.left == {*(other if user_id else ()), f"{ACCOUNTS_PATH}/default"}


async def test_what_has_ended_is_not_ended_again(scene: Scene) -> None:
    await scene.done()
    first, _ = await scene.issue()
    await scene.revoke(first)
    await scene.done()
    scene.api.requests.clear()
    await scene.done()
    assert scene.api.requests == []


async def test_a_failed_deletion_is_repeated(scene: Scene) -> None:
    await scene.done()
    record, paths = await scene.issue()
    await scene.revoke(record)
    scene.api.failures[f"DELETE {paths[1]}"] = 500
    with pytest.raises(RemoteFailed):
        await scene.done()
    # The other binding and the account are deleted all the same.
    assert scene.left == {paths[1], f"{ACCOUNTS_PATH}/default"}
    scene.api.failures.clear()
    await scene.done()
    assert scene.left == {f"{ACCOUNTS_PATH}/default"}


async def test_a_token_of_a_short_grant_ends_with_the_grant(scene: Scene) -> None:
    await scene.done()
    _, short = await scene.issue(not_after=later(90))
    _, long = await scene.issue()
    scene.now = later(89)
    await scene.done()
    assert set(short) < scene.left
    scene.now, scene.clock = later(90), scene.clock + 1
    await scene.done()
    assert scene.left == {*long, f"{ACCOUNTS_PATH}/default"}


async def test_many_tokens_end_at_once(scene: Scene) -> None:
    await scene.done()
    for _ in range(120):
        await scene.issue()
    await scene.revoke(cluster_id=CLUSTER_ID)
    await scene.done()
    assert scene.left == {f"{ACCOUNTS_PATH}/default"}
    # Three selectors of at most 50 numbers, in three lists.
    assert len([path for method, path in scene.api.requests if method == "GET"]) == 3 + 9


async def test_if_very_many_tokens_end_at_once_all_objects_are_listed_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_sync, "_MANY", 100)
    await scene.done()
    for _ in range(120):
        await scene.issue(user_id="bob")
    _, kept = await scene.issue(user_id="carol")
    await scene.revoke(user_id="bob")
    scene.api.requests.clear()
    await scene.done()
    assert scene.left == {*kept, f"{ACCOUNTS_PATH}/default"}
    assert len([path for method, path in scene.api.requests if method == "GET"]) == 3


async def test_a_revocation_during_a_look_does_not_wait_for_its_end(scene: Scene) -> None:
    record, paths = await scene.issue()
    _, others = await scene.issue()
    scene.api.page = 1

    async def revoke_once(_method: str, path: str) -> None:
        if path == CLUSTER_ROLE_BINDINGS_PATH and not scene.generation:
            await scene.revoke(record)

    scene.api.on_request = revoke_once
    await scene.done()
    assert scene.left == {*others, f"{ACCOUNTS_PATH}/default"}
    ended_at = scene.api.requests.index(("DELETE", paths[0]))
    # The look lists the bindings of the namespace only after the first list.
    assert ("GET", BLUE) in scene.api.requests[ended_at:]


# The look


async def test_a_new_leader_ends_what_ended_before(scene: Scene) -> None:
    revoked, _ = await scene.issue()
    _, _ = await scene.issue(not_after=NOW)
    _, kept = await scene.issue()
    await scene.revoke(revoked)
    await scene.done()
    assert scene.left == {*kept, f"{ACCOUNTS_PATH}/default"}


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_what_a_killed_process_left_is_deleted_after_a_minute(scene: Scene, steps: int) -> None:
    """It created the account, and perhaps bindings, and died before the credential was recorded."""
    _, paths = await scene.issue(recorded=False)
    for path in paths[steps:]:
        del scene.api.objects[path]
    await scene.done()
    await scene.unknown_for(UNKNOWN_SECONDS - 1)
    assert set(paths[:steps]) < scene.left
    await scene.unknown_for(LOOK_SECONDS)
    assert scene.left == {f"{ACCOUNTS_PATH}/default"}


async def test_a_credential_that_is_recorded_late_is_kept(scene: Scene) -> None:
    record, paths = await scene.issue(recorded=False)
    await scene.done()
    await scene.ledger.ledger.record(record, event())
    await scene.unknown_for(2 * UNKNOWN_SECONDS)
    assert set(paths) < scene.left


async def test_a_killed_deletion_is_finished(scene: Scene) -> None:
    """The bindings were deleted, and then the process died."""
    record, paths = await scene.issue()
    await scene.revoke(record)
    del scene.api.objects[paths[1]], scene.api.objects[paths[2]]
    await scene.done()
    assert scene.left == {f"{ACCOUNTS_PATH}/default"}


async def test_bindings_without_an_account_are_deleted(scene: Scene) -> None:
    _, paths = await scene.issue()
    del scene.api.objects[paths[0]]
    await scene.done()
    assert scene.left == {f"{ACCOUNTS_PATH}/default"}


async def test_two_leaders_at_once_end_the_same_and_nothing_else(scene: Scene) -> None:
    other = scene.leader()
    revoked, _ = await scene.issue()
    _, kept = await scene.issue()
    await scene.done()
    await other.sync_cluster(HERE)
    await scene.revoke(revoked)
    await scene.done()
    await other.sync_cluster(HERE)
    assert scene.left == {*kept, f"{ACCOUNTS_PATH}/default"}


async def test_a_token_recorded_for_another_registration_of_the_cluster_is_known(scene: Scene) -> None:
    _, paths = await scene.issue(cluster_id=token_cluster(7).id)
    await scene.done()
    await scene.unknown_for(2 * UNKNOWN_SECONDS)
    assert set(paths) < scene.left


async def test_nothing_is_written_if_nothing_has_changed(scene: Scene) -> None:
    await scene.issue()
    await scene.done()
    recorded = len(scene.store.events())
    scene.api.requests.clear()
    await scene.look()
    assert {method for method, _ in scene.api.requests} == {"GET"}
    assert len(scene.store.events()) == recorded


# Objects of others


async def test_objects_of_others_are_reported_once_and_never_touched(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = OwnGauge()
    monkeypatch.setattr(metrics, "TOKEN_OBJECTS_FOREIGN", gauge)
    record, paths = await scene.issue()
    account: str = paths[0].rpartition("/")[2]
    other = token_objects(token_record(), "f" * 32)
    theirs = scene.api.issue(other, (VIEW,))
    foreign = [
        scene.api.add(ACCOUNTS_PATH, {"metadata": {"name": "builder"}}),
        scene.api.add(CLUSTER_ROLE_BINDINGS_PATH, service_account_binding("by-hand", account)),
        scene.api.add(BLUE, service_account_binding("in-blue", account)),
        scene.api.add(
            BLUE,
            {
                "metadata": {"name": "group"},
                "subjects": [{"kind": "Group", "name": "system:serviceaccounts:clustercert-users"}],
            },
        ),
    ]
    unrelated = scene.api.add(
        CLUSTER_ROLE_BINDINGS_PATH,
        {"metadata": {"name": "x", "labels": dict(MANAGED_BY)}, "subjects": [{"kind": "User", "name": "me"}]},
    )
    nobody = scene.api.add(CLUSTER_ROLE_BINDINGS_PATH, {"metadata": {"name": "nobody"}})
    await scene.revoke(record)
    await scene.done()
    await scene.unknown_for(2 * UNKNOWN_SECONDS)
    assert scene.left == {*theirs, *foreign, unrelated, nobody, f"{ACCOUNTS_PATH}/default"}
    (reported,) = scene.events("foreign")
    assert reported["objects"] == sorted(
        [
            "ServiceAccount clustercert-users/builder",
            f"ServiceAccount clustercert-users/{other.account}",
            f"ClusterRoleBinding clustercert-{other.number}-0",
            "ClusterRoleBinding by-hand",
            "RoleBinding blue/in-blue",
            "RoleBinding blue/group",
        ]
    )
    assert gauge.value == 6


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"labels": {}}},
        {"metadata": {"labels": {INSTALLATION_LABEL: "e" * 32}}},
        {"metadata": {"name": "clustercert-0"}},
        {"subjects": []},
        {"subjects": [{"kind": "User", "name": "system:serviceaccount:clustercert-users:x"}]},
    ],
)
async def test_a_binding_that_differs_from_ours_is_kept(scene: Scene, change: dict[str, Any]) -> None:
    record, paths = await scene.issue()
    binding: Any = scene.api.objects.pop(paths[1])
    metadata = change.get("metadata", {})
    binding["metadata"] |= metadata
    if "subjects" in change:
        binding["subjects"] = [*binding["subjects"], *change["subjects"]] if change["subjects"] else []
    path = scene.api.add(CLUSTER_ROLE_BINDINGS_PATH, binding)
    await scene.revoke(record)
    await scene.done()
    assert scene.left == {path, f"{ACCOUNTS_PATH}/default"}


async def test_bindings_of_an_account_whose_labels_were_removed_stay(scene: Scene) -> None:
    _, paths = await scene.issue()
    account: Any = scene.api.objects[paths[0]]
    account["metadata"]["labels"] = {}
    await scene.done()
    assert set(paths) < scene.left
    assert len(scene.events("foreign")) == 1


# A restored database


async def restored(scene: Scene, unknown: int, known: int) -> list[list[str]]:
    paths = [(await scene.issue(recorded=False))[1] for _ in range(unknown)]
    for _ in range(known):
        await scene.issue()
    await scene.done()
    await scene.unknown_for(UNKNOWN_SECONDS)
    return paths


async def test_a_few_unknown_credentials_are_deleted(scene: Scene) -> None:
    await restored(scene, MAX_UNKNOWN, 0)
    assert scene.left == {f"{ACCOUNTS_PATH}/default"}


async def test_unknown_credentials_are_deleted_if_most_are_known(scene: Scene) -> None:
    unknown = await restored(scene, MAX_UNKNOWN + 1, MAX_UNKNOWN + 1)
    assert scene.left.isdisjoint({path for paths in unknown for path in paths})


async def test_if_most_are_unknown_they_wait_for_an_operator(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = OwnGauge()
    monkeypatch.setattr(metrics, "TOKENS_UNKNOWN", gauge)
    count = MAX_UNKNOWN + 1
    unknown = {path for paths in await restored(scene, count, MAX_UNKNOWN) for path in paths}
    assert unknown < scene.left
    assert await scene.unknown() == UnknownTokens(count, 0)
    assert [(told["unknown"], told["known"]) for told in scene.events("unknown")] == [(count, MAX_UNKNOWN)]
    assert gauge.value == count
    # New credentials don't outweigh them, and what has ended is deleted all the same.
    for _ in range(count):
        await scene.issue()
    revoked, gone = await scene.issue()
    await scene.revoke(revoked)
    await scene.look()
    assert unknown < scene.left
    assert scene.left.isdisjoint(gone)
    assert len(scene.events("unknown")) == 1
    # A new leader keeps them, too.
    scene.sync = scene.leader()
    await scene.done()
    await scene.unknown_for(UNKNOWN_SECONDS)
    assert unknown < scene.left
    assert await scene.sync.clusters.confirm_unknown_tokens(HERE.client_ca.id, count - 1, event()) is False
    assert await scene.sync.clusters.confirm_unknown_tokens(HERE.client_ca.id, count, event()) is True
    await scene.look()
    assert scene.left.isdisjoint(unknown)
    await scene.look()
    assert await scene.unknown() == UnknownTokens(0, 0)
    assert gauge.value == 0


async def test_unknown_credentials_that_expired_do_not_wait(scene: Scene) -> None:
    count = MAX_UNKNOWN + 1
    expiring = [(await scene.issue(recorded=False, not_after=later(200)))[1] for _ in range(count)]
    wrong: Any = scene.api.objects[expiring[0][0]]
    wrong["metadata"]["annotations"][NOT_AFTER_ANNOTATION] = "soon"
    lasting = {path for paths in await restored(scene, count, 0) for path in paths}
    kept = {*lasting, *expiring[0]}
    assert await scene.unknown() == UnknownTokens(2 * count, 0)
    scene.now = later(199)
    await scene.look()
    assert scene.left > {path for paths in expiring for path in paths}
    scene.now = later(200)
    await scene.look()
    assert scene.left == {*kept, f"{ACCOUNTS_PATH}/default"}
    await scene.look()
    assert await scene.unknown() == UnknownTokens(count + 1, 0)


async def test_no_annotation_keeps_an_unknown_credential_longer_than_any_lifetime(scene: Scene) -> None:
    await RevocationPruningQueries(scene.ledger.database).note_lifetime(timedelta(hours=8))
    lasting = [(await scene.issue(recorded=False, not_after=later(10**6)))[1] for _ in range(MAX_UNKNOWN + 1)]
    for account, *_ in lasting:
        created: Any = scene.api.objects[account]
        created["metadata"]["creationTimestamp"] = rfc3339(scene.now)
    await scene.done()
    await scene.unknown_for(UNKNOWN_SECONDS)
    scene.now += timedelta(hours=8) - timedelta(seconds=1)
    await scene.look()
    assert scene.left > {path for paths in lasting for path in paths}
    scene.now += timedelta(seconds=1)
    await scene.look()
    assert scene.left == {f"{ACCOUNTS_PATH}/default"}


async def test_a_confirmation_is_not_for_more_credentials_than_the_operator_saw(scene: Scene) -> None:
    count = MAX_UNKNOWN + 1
    await restored(scene, count, 0)
    assert await scene.sync.clusters.confirm_unknown_tokens(HERE.client_ca.id, count, event())
    for _ in range(3):
        await scene.issue(recorded=False)
    # The additional ones are unknown only now, so the confirmed ones go.
    before = len(scene.left)
    await scene.look()
    assert len(scene.left) == before - 3 * count
    scene.sync = scene.leader()


# Problems


async def test_a_problem_stops_issuing_but_not_ending(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = OwnGauge()
    monkeypatch.setattr(metrics, "TOKEN_CLUSTERS_STOPPED", gauge)
    scene.problems.found = "The role edit may start pods."
    record, paths = await scene.issue()
    await scene.revoke(record)
    await scene.done()
    await scene.look()
    assert scene.left.isdisjoint(paths)
    assert await scene.problem() == "The role edit may start pods."
    assert [told["problem"] for told in scene.events("stopped")] == ["The role edit may start pods."]
    assert gauge.value == 1
    scene.problems.found = None
    await scene.look()
    assert await scene.problem() is None
    assert len(scene.events("resumed")) == 1
    assert gauge.value == 0


async def test_a_look_that_fails_does_not_stop_ending(scene: Scene) -> None:
    scene.problems.found = Unavailable("The cluster's API server is busy.")
    record, paths = await scene.issue()
    await scene.revoke(record)
    with pytest.raises(Unavailable):
        await scene.done()
    assert scene.left.isdisjoint(paths)
    assert await scene.problem() is None


@pytest.mark.parametrize(("status", "words"), [(401, "does not accept the token"), (403, "lacks rights")])
async def test_an_account_without_access_is_named_once(scene: Scene, status: int, words: str) -> None:
    scene.api.failures["GET"] = status
    for _ in range(2):
        with pytest.raises(RemoteFailed):
            await scene.done()
    assert words in str(await scene.problem())
    assert len(scene.events("stopped")) == 1
    scene.api.failures.clear()
    await scene.done()
    assert await scene.problem() is None


async def test_an_account_that_may_not_delete_is_named_once(scene: Scene) -> None:
    record, _ = await scene.issue()
    await scene.revoke(record)
    scene.api.failures["DELETE"] = 403
    for _ in range(2):
        with pytest.raises(RemoteFailed):
            await scene.done()
    assert "lacks rights" in str(await scene.problem())
    assert (len(scene.events("stopped")), len(scene.events("resumed"))) == (1, 0)


async def test_a_namespace_that_is_deleted_or_closed_is_named_and_stops_nothing(scene: Scene) -> None:
    record, paths = await scene.issue()
    await scene.revoke(record)
    del scene.api.objects[paths[2]]
    scene.api.failures[f"GET {BLUE}"] = 403
    await scene.done()
    assert scene.left.isdisjoint(paths)
    unread = "RoleBindings of the namespace blue, which the service may not read"
    assert [each["objects"] for each in scene.events("foreign")] == [[unread]]
    # Whoever administers the namespace does not stop the users of the cluster.
    assert await scene.problem() is None


@pytest.mark.parametrize("subjects", [30, 600])
async def test_long_bindings_of_a_namespace_do_not_keep_credentials_alive(
    scene: Scene, subjects: int
) -> None:
    """Who may write RoleBindings in a mapped namespace knows the labels of the own credential."""
    await scene.done()
    record, paths = await scene.issue()
    _, theirs = await scene.issue()
    scene.api.longest = 20_000
    long = {
        "metadata": {"labels": scene.api.objects[paths[0]]["metadata"]["labels"]},  # type: ignore[index]
        "subjects": [{"kind": "User", "name": "x" * 50}] * subjects,
    }
    shields = [
        scene.api.add(BLUE, long | {"metadata": {**long["metadata"], "name": f"a{number:03}"}})  # type: ignore[dict-item]
        for number in range(40)
    ]
    await scene.revoke(record)
    await scene.done()
    assert scene.left.isdisjoint(paths[:2])
    await scene.look()
    is_readable = subjects == 30
    assert (paths[2] not in scene.left) == is_readable
    assert scene.left >= {*theirs, *shields}
    told = [["RoleBindings of the namespace blue, one of which is too long to read"]]
    assert [each["objects"] for each in scene.events("foreign")] == ([] if is_readable else told)
    assert await scene.problem() is None


async def test_a_namespace_with_slow_answers_does_not_keep_credentials_alive(scene: Scene) -> None:
    record, paths = await scene.issue()
    await scene.revoke(record)

    async def slow(method: str, path: str) -> None:
        if (method, path) == ("GET", BLUE):
            raise Unavailable("The cluster's API server did not respond in time.")

    scene.api.on_request = slow
    with pytest.raises(Unavailable):
        await scene.done()
    assert scene.left.isdisjoint(paths[:2])


@pytest.mark.parametrize("is_new_leader", [False, True])
async def test_a_list_of_bindings_that_takes_long_does_not_delay_the_deletion_of_accounts(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, *, is_new_leader: bool
) -> None:
    monkeypatch.setattr(token_listing, "MAX_SELECTED_SECONDS", 0.01)
    if not is_new_leader:
        await scene.done()
    record, paths = await scene.issue()
    await scene.revoke(record)
    if is_new_leader:
        # Nothing else finds this credential: it ended before this leader began.
        monkeypatch.setattr(token_listing, "MAX_SECONDS", 0.5)

    async def slow(method: str, path: str) -> None:
        if (method, path) == ("GET", BLUE):
            await asyncio.Event().wait()

    scene.api.on_request = slow
    with pytest.raises(Unavailable, match="to list"):
        await asyncio.wait_for(scene.done(), 60)
    assert scene.left.isdisjoint(paths[:2])


async def test_accounts_are_deleted_if_bindings_of_the_whole_cluster_cannot_be_read(scene: Scene) -> None:
    record, paths = await scene.issue()
    await scene.revoke(record)
    scene.api.failures[f"GET {CLUSTER_ROLE_BINDINGS_PATH}"] = 403
    with pytest.raises(RemoteFailed):
        await scene.done()
    assert paths[0] not in scene.left
    assert "lacks rights" in str(await scene.problem())
    assert len(scene.events("stopped")) == 1


async def test_pages_without_end_are_not_read_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_listing, "MAX_PAGES", 3)
    monkeypatch.setattr(token_listing, "PAGE", 1)
    scene.api.page = 1
    expired = [(await scene.issue(not_after=NOW))[1] for _ in range(5)]
    await scene.done()
    assert "more than 3 bindings" in str(await scene.problem())
    # What was read is ended, and a binding whose account was not read stays.
    gone = {path for paths in expired for path in paths} - scene.left
    assert gone
    for _ in range(3):
        await scene.look()
    assert scene.left == {f"{ACCOUNTS_PATH}/default"}


@pytest.mark.parametrize(
    "item",
    [
        None,
        "x",
        {},
        {"metadata": {}},
        {"metadata": {"name": 7}},
        {"metadata": {"name": f"x-{'a' * 40}", "labels": 7}},
    ],
)
async def test_a_list_that_is_no_list_of_objects_is_an_error(scene: Scene, item: Any) -> None:
    class Lying(MemoryApi):
        async def get(self, path: str, parameters: Any = None, **_: Any) -> Any:
            return {"items": [item]}

    scene.api = Lying(scene.api.objects)
    scene.sync = scene.leader()
    with pytest.raises(RemoteFailed):
        await scene.done()


async def test_a_name_from_the_cluster_is_never_part_of_a_path(scene: Scene) -> None:
    scene.api.add(ACCOUNTS_PATH, {"metadata": {"name": f"x/../../secrets/y\n-{'a' * 40}"}})
    await scene.done()
    await scene.unknown_for(2 * UNKNOWN_SECONDS)
    assert {method for method, _ in scene.api.requests} == {"GET"}
    assert scene.events("foreign")[0]["objects"] == [
        f"ServiceAccount clustercert-users/x/../../secrets/y?-{'a' * 40}"
    ]


async def test_no_installation_means_no_deletion(scene: Scene) -> None:
    scene.store.execute("DELETE FROM audit_log")
    _, paths = await scene.issue(not_after=NOW)
    with pytest.raises(Unavailable):
        await scene.done()
    assert set(paths) < scene.left


async def test_an_operator_confirms_only_the_number_that_waits(scene: Scene) -> None:
    deletion = UnknownTokenDeletion(scene.sync.clusters, lambda: scene.now)
    count = MAX_UNKNOWN + 1
    with pytest.raises(Conflict, match="no credential of this cluster waits"):
        await deletion.confirm(HERE, count, actor=Actor.service())
    await restored(scene, count, 0)
    with pytest.raises(Conflict, match=f"{count} credentials of this cluster wait"):
        await deletion.confirm(HERE, count - 1, actor=Actor.service())
    assert await deletion.status(HERE) == UnknownTokens(count, 0)
    for _ in range(2):
        assert await deletion.confirm(HERE, count, actor=Actor.service()) == UnknownTokens(count, count)
    assert [told["unknown"] for told in scene.events("deletion_confirmed")] == [count]
