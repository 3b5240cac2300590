"""Unknown identities and members of `system:masters`: rows and alerts, on both databases."""

import hashlib
import os
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from clustercert.kubernetes.webhook import credential_usage as webhook_usage
from clustercert.kubernetes.webhook.credential_usage import CredentialUsage
from clustercert.kubernetes.webhook.pending_reports import MAX_PENDING_OF_GROUP
from clustercert.model import Cluster, ClusterOptions, credential_group
from clustercert.model.errors import Unavailable
from clustercert.observability.metrics import EXEMPT_CREDENTIALS, MASTERS_CREDENTIALS, UNKNOWN_CREDENTIALS
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes import credential_usage as module
from clustercert.store.kubernetes.credential_cache import CredentialCache
from clustercert.store.kubernetes.credential_usage import (
    WRITTEN_AT_ONCE,
    Alerts,
    CredentialUsageQueries,
    Limits,
    UnknownUse,
)
from support.credential_usage import WEBHOOK_CONFIG, alerts, counted, recorded, seen, times, unknown, usage_at
from support.log_capture import captured_lines
from support.samples import CLUSTER_ID, PROJECT_ID
from support.stores import NOW, Store, event

# What these tests ask is decided in Python. Other files read and write the same tables on PostgreSQL.
pytestmark = pytest.mark.long_on_server

SECOND = timedelta(seconds=1)


async def test_an_unknown_identity_is_stored_and_reported_once(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    fingerprint = os.urandom(32)
    before = UNKNOWN_CREDENTIALS._value.get()
    workers = (usage, usage_at(database))
    for minutes in (0, 2, 4):
        for worker in workers:
            worker.report(await seen(known, fingerprint, NOW + timedelta(minutes=minutes), "devs"))
            await worker.flush()
    assert unknown(store) == [("bob", ["devs", "system:authenticated"], 1, [fingerprint.hex()])]
    query = "SELECT cluster_id, first_seen_at, last_seen_at FROM unknown_identity"
    assert store.rows(query) == [(CLUSTER_ID, store.time(NOW), store.time(NOW + timedelta(minutes=4)))]
    (alert,) = alerts(store)
    assert alert["kind"] == "credential.unknown"
    assert (alert["subject"], alert["actor"]) == (fingerprint.hex(), f"cluster:{CLUSTER_ID}")
    assert (alert["project_id"], alert["source"]) == (PROJECT_ID, "192.0.2.1")
    assert alert["detail"] == {
        "cluster_id": CLUSTER_ID,
        "username": "bob",
        "groups": ["devs", "system:authenticated"],
        "first_seen_at": NOW.isoformat(),
        "reported_by": "webhook",
        "fault": "unknown",
        "known_for_another_cluster": False,
    }
    assert UNKNOWN_CREDENTIALS._value.get() - before == 1


async def test_many_hashes_of_one_identity_share_a_row(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    hashes = [number.to_bytes(32) for number in range(1, 41)]
    workers = (usage, usage_at(database))
    for number, fingerprint in enumerate(hashes):
        groups = ("devs", "ops") if number % 2 else ("ops", "devs", "ops")
        workers[number % 2].report(await seen(known, fingerprint, NOW + number * SECOND, *groups))
        if number % 8 == 7:
            for worker in workers:
                await worker.flush()
    ((username, _, count, kept),) = unknown(store)
    assert (username, count, len(kept)) == ("bob", 40, 16)
    assert set(kept) <= {each.hex() for each in hashes[-24:]}
    assert [alert["kind"] for alert in alerts(store)] == ["credential.unknown"]
    # Known hashes are not counted again.
    for each in kept:
        workers[0].report(await seen(known, bytes.fromhex(each), NOW + timedelta(hours=1), "devs", "ops"))
    await workers[0].flush()
    assert [each[2] for each in unknown(store)] == [40]
    # Each identity has its own row.
    workers[0].report(await seen(known, hashes[0], NOW + timedelta(hours=1), "devs"))
    workers[0].report(await seen(known, hashes[0], NOW + timedelta(hours=1), "devs", "ops", username="eve"))
    await workers[0].flush()
    assert sorted(each[2] for each in unknown(store) if isinstance(each[2], int)) == [1, 1, 40]


# Alerts


@pytest.mark.parametrize(
    ("groups", "username", "fault"),
    [
        (["clustercert:admins", "clustercert:credential:" + "0" * 40], "bob", "unknown"),
        (["clustercert:credential:12"], "bob", "forged"),
        (["clustercert:credential:" + "0" * 40, "clustercert:credential:" + "1" * 40], "bob", "forged"),
        (["clustercert:credential:" + "0" * 40], "system:node:n1", "unknown"),
    ],
)
async def test_credential_groups_raise_alerts_despite_exemptions(
    store: Store,
    known: CredentialCache,
    usage: CredentialUsage,
    groups: list[str],
    username: str,
    fault: str,
) -> None:
    everybody = replace(WEBHOOK_CONFIG, options=ClusterOptions(exemptions=("*",)))
    usage.report(await seen(known, os.urandom(32), NOW, *groups, username=username, webhook_config=everybody))
    await usage.flush()
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert (alert["kind"], detail["fault"]) == ("credential.unknown", fault)
    assert sorted(detail["groups"]) == sorted((*groups, "system:authenticated"))


async def test_an_exempt_identity_raises_no_alert(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    usage.report(await seen(known, os.urandom(32), NOW, "system:nodes", username="system:node:n1"))
    await usage.flush()
    assert alerts(store) == []
    assert unknown(store) == []


@pytest.mark.parametrize(
    ("username", "groups"),
    [
        ("system:node:n1", ["system:nodes", "devs"]),
        ("system:node:n1", ["devs"]),
        ("bob", ["system:nodes"]),
        ("bob", ["system:auditors"]),
        ("clustercert:service", ["system:nodes"]),
    ],
)
async def test_a_partly_exempt_identity_raises_an_alert(
    store: Store, known: CredentialCache, usage: CredentialUsage, username: str, groups: list[str]
) -> None:
    usage.report(await seen(known, os.urandom(32), NOW, *groups, username=username))
    await usage.flush()
    assert [alert["kind"] for alert in alerts(store)] == ["credential.unknown"]


async def test_system_masters_raises_both_alerts_although_it_is_exempt(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    fingerprint = os.urandom(32)
    before = MASTERS_CREDENTIALS._value.get()
    for _ in range(2):
        usage.report(await seen(known, fingerprint, NOW, "system:masters", username="kubernetes-admin"))
        await usage.flush()
    assert [alert["kind"] for alert in alerts(store)] == ["credential.unknown", "credential.masters"]
    assert MASTERS_CREDENTIALS._value.get() - before == 1


@pytest.mark.parametrize("number", ["known", "invented", None])
async def test_a_forged_certificate_of_system_masters_raises_both_alerts(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage, number: str | None
) -> None:
    numbers = {"known": (await recorded(database)).credential_number, "invented": "0" * 40}
    groups = ["system:masters", *([credential_group(numbers[number])] if number else [])]
    fingerprint = os.urandom(32)
    usage.report(await seen(known, fingerprint, NOW, *groups, username="root"))
    await usage.flush()
    told = [(alert["kind"], alert["subject"]) for alert in alerts(store)]
    assert told == [(kind, fingerprint.hex()) for kind in ("credential.unknown", "credential.masters")]


async def test_a_new_certificate_of_a_master_is_reported_after_an_hour(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    at = NOW
    usage = usage_at(database, lambda: at)
    first, second = os.urandom(32), os.urandom(32)
    for minutes, fingerprint in ((0, first), (10, second), (30, second), (70, second), (140, second)):
        at = NOW + timedelta(minutes=minutes)
        usage.report(await seen(known, fingerprint, at, "system:masters", username="kubernetes-admin"))
        await usage.flush()
    kinds = [alert["kind"] for alert in alerts(store)]
    # At minutes 10 and 30, the second certificate is only counted.
    told = ["credential.unknown", "credential.masters", "credential.counted", "credential.masters"]
    assert kinds == [*told, "credential.counted"]
    assert counted(store) == [("credential.masters", 1)] * 2


async def test_new_certificates_of_a_master_are_reported_once_an_hour(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    at = NOW
    usage = usage_at(database, lambda: at)
    for minutes in (0, 30, 59, 61, 90, 122):
        at = NOW + timedelta(minutes=minutes)
        usage.report(await seen(known, os.urandom(32), at, "system:masters", username="kubernetes-admin"))
        await usage.flush()
    assert [kind for kind, _ in named(store)] == ["credential.unknown", *["credential.masters"] * 3]
    # The certificates that no event names are counted: at minutes 30 and 59, and at minute 90.
    assert counted(store) == [("credential.masters", 1), ("credential.masters", 2)]
    assert store.rows("SELECT hashes FROM unknown_identity") == [(3,)], (
        "what was not told of is not counted yet"
    )


async def test_times_that_an_api_server_chooses_cause_no_further_alerts(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    """Otherwise it could fill the log with an event for each hour of the past."""
    for days in (-4000, -3000, -2000, 0):
        at = NOW + timedelta(days=days)
        usage.report(await seen(known, os.urandom(32), at, "system:masters", username="kubernetes-admin"))
        await usage.flush()
    assert [kind for kind, _ in named(store)] == ["credential.unknown", "credential.masters"]
    assert counted(store) == [("credential.masters", 1)]


@pytest.mark.parametrize("flushed", [True, False])
async def test_an_earlier_report_of_the_same_hash_hides_no_master(
    store: Store, known: CredentialCache, usage: CredentialUsage, flushed: bool
) -> None:
    """A caller with the right to impersonate can send any id for any user."""
    fingerprint = os.urandom(32)
    usage.report(await seen(known, fingerprint, NOW, "devs"))
    if flushed:
        await usage.flush()
    masters = [*(f"group {number}" for number in range(40)), "system:masters"]
    usage.report(await seen(known, fingerprint, NOW, *masters, username="root"))
    usage.report(await seen(known, fingerprint, NOW, "devs"))
    await usage.flush()
    await usage.flush()
    kinds = [alert["kind"] for alert in alerts(store)]
    assert sorted(map(str, kinds)) == ["credential.masters", "credential.unknown", "credential.unknown"]
    by_name = {username: groups for username, groups, _, _ in unknown(store)}
    assert by_name.keys() == {"bob", "root"}
    assert "system:masters" in by_name["root"]


async def test_an_issued_master_raises_one_alert_at_its_first_use(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await recorded(database, groups=("system:masters",))
    for minutes in (0, 2):
        for worker in (usage, usage_at(database)):
            at = NOW + timedelta(minutes=minutes)
            worker.report(await seen(known, record, at))
            await worker.flush()
    assert [alert["kind"] for alert in alerts(store)] == ["credential.masters"]
    assert times(store, record) == (store.time(NOW), store.time(NOW + timedelta(minutes=2)))


COMPONENT = "system:kube-controller-manager"
KNOWN_ONLY = replace(
    WEBHOOK_CONFIG, options=ClusterOptions(mode="known-only", exemptions=("system:nodes", COMPONENT))
)


async def test_a_new_certificate_of_an_exempt_name_is_reported(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    """At most once an hour. The event names the new certificate, although the old one is in use too."""
    at = NOW
    usage = usage_at(database, lambda: at)
    old, new, next_one = (os.urandom(32) for _ in range(3))
    before = EXEMPT_CREDENTIALS._value.get()
    # Before the name was exempt, it was in the report of unknown identities.
    usage.report(await seen(known, old, at, username=COMPONENT))
    await usage.flush()
    for minutes, fingerprint in ((90, old), (90, new), (92, new), (100, next_one), (160, next_one)):
        at = NOW + timedelta(minutes=minutes)
        usage.report(await seen(known, fingerprint, at, username=COMPONENT, webhook_config=KNOWN_ONLY))
        if fingerprint != old:
            await usage.flush()
    single = [alert for alert in alerts(store) if alert["kind"] != "credential.counted"]
    assert [(alert["kind"], alert["subject"]) for alert in single] == [
        ("credential.unknown", old.hex()),
        ("credential.exempt", new.hex()),
        ("credential.exempt", next_one.hex()),
    ]
    assert counted(store) == [("credential.exempt", 1)]
    assert EXEMPT_CREDENTIALS._value.get() - before == 3


async def test_an_exempt_name_that_was_never_seen_is_reported(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    fingerprint = os.urandom(32)
    usage.report(await seen(known, fingerprint, NOW, username=COMPONENT, webhook_config=KNOWN_ONLY))
    await usage.flush()
    assert [(alert["kind"], alert["subject"]) for alert in alerts(store)] == [
        ("credential.exempt", fingerprint.hex())
    ]


@pytest.mark.parametrize(
    ("username", "groups", "changed"),
    [
        ("system:node:n1", ["system:nodes"], {}),
        # In the default mode nothing is denied that the name could let pass.
        (COMPONENT, [], {"mode": "default"}),
        (COMPONENT, [], {"pins": ("ab" * 32,), "pin_components": True}),
    ],
)
async def test_kubelets_and_pinned_certificates_are_not_reported(
    store: Store,
    known: CredentialCache,
    usage: CredentialUsage,
    username: str,
    groups: list[str],
    changed: dict[str, object],
) -> None:
    options = replace(KNOWN_ONLY.options, **changed)  # type: ignore[arg-type] # each value has its field's type
    config = replace(KNOWN_ONLY, options=options)
    pinned = bytes.fromhex("ab" * 32)
    usage.report(await seen(known, pinned, NOW, *groups, username=username, webhook_config=config))
    await usage.flush()
    assert alerts(store) == []


async def test_a_listed_master_raises_no_alert(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record, fingerprint = await recorded(database, groups=("system:masters",)), os.urandom(32)
    listed = (record.fingerprint.hex(), fingerprint.hex())
    webhook_config = replace(WEBHOOK_CONFIG, options=ClusterOptions(listed_masters=listed, exemptions=()))
    for each in (record, fingerprint):
        usage.report(await seen(known, each, NOW, "system:masters", webhook_config=webhook_config))
    await usage.flush()
    assert alerts(store) == []
    assert times(store, record) == (store.time(NOW), store.time(NOW))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower limits: two events an hour for each token, and three rows."""
    for name in ("LIMITS_OF_EACH", "LIMITS_OF_OTHERS"):
        monkeypatch.setattr(module, name, Limits(stored=3, hourly=2))


def named(store: Store) -> list[tuple[object, object]]:
    """Kind and user name of each alert about a single certificate."""
    single = [alert for alert in alerts(store) if alert["kind"] != "credential.counted"]
    return [(alert["kind"], cast("dict[str, Any]", alert["detail"])["username"]) for alert in single]


async def test_unknown_identities_are_limited_per_token_and_cluster(
    database: Database, store: Store, there: Cluster
) -> None:
    rows = CredentialUsageQueries(database)

    def uses(first: int, last: int, token: bytes | None = b"token") -> list[UnknownUse]:
        return [
            UnknownUse(CLUSTER_ID, f"mallory {number}", (), (f"{number:064x}",), NOW, NOW, token_hash=token)
            for number in range(first, last)
        ]

    async def add(uses: list[UnknownUse]) -> Alerts:
        return await rows.add_unknown(
            uses,
            NOW,
            lambda kind, use: event(kind, use.fingerprints[-1]),
            lambda due: event("credential.counted", str(due.uses.count)),
        )

    assert await add(uses(0, 600)) == Alerts(unknown=600)
    assert await add(uses(500, 1200)) == Alerts(unknown=600, counted=200)
    assert await add(uses(2000, 2001, b"other")) == Alerts(unknown=1)
    # An imported audit log has no hourly limit.
    for first in range(3000, 13_000, 500):
        assert await add(uses(first, first + 500, None)) == Alerts(unknown=500)
    assert store.rows("SELECT count(*) FROM unknown_identity") == [(10_000,)]
    assert store.rows("SELECT count(*) FROM unknown_identity WHERE token_hash IS NOT NULL") == [(1001,)]
    subjects = [alert["subject"] for alert in alerts(store) if alert["kind"] == "credential.counted"]
    assert subjects == ["200"]


@pytest.mark.usefixtures("few")
async def test_what_exceeds_the_limits_of_a_token_is_counted_in_an_event_an_hour(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    """Of all workers together, and the last one comes without any further report."""
    clock = [NOW]
    workers = [usage_at(database, lambda: clock[0]) for _ in range(2)]
    before = MASTERS_CREDENTIALS._value.get()

    async def report(number: int, token: bytes = b"stolen") -> None:
        use = await seen(
            known, os.urandom(32), clock[0], "system:masters", username=f"root {number}", token=token
        )
        workers[number % 2].report(use)
        await workers[number % 2].flush()

    for number in range(5):
        await report(number)
        clock[0] += SECOND
    await report(10, b"other")
    assert named(store) == [
        (kind, f"root {number}")
        for number in (0, 1, 10)
        for kind in ("credential.unknown", "credential.masters")
    ]
    assert counted(store) == [("credential.masters", 1)]
    assert MASTERS_CREDENTIALS._value.get() - before == 6
    for minutes, expected in ((30, 1), (59, 1), (62, 2), (130, 2)):
        clock[0] = NOW + timedelta(minutes=minutes)
        for worker in workers:
            await worker.flush()
        assert len(counted(store)) == expected
    (last,) = [said for said in store.events() if said["kind"] == "credential.counted"][-1:]
    assert (last["subject"], last["actor"]) == (CLUSTER_ID, f"cluster:{CLUSTER_ID}")
    assert (last["project_id"], last["source"]) == (PROJECT_ID, "local")
    assert last["detail"] == {
        "cluster_id": CLUSTER_ID,
        "alert": "credential.masters",
        "count": 2,
        "first": (NOW + 3 * SECOND).isoformat(),
        "last": (NOW + 4 * SECOND).isoformat(),
    }
    assert store.rows("SELECT * FROM use_count") == []
    # An hour later, the token's limit allows single events again.
    await report(4)
    assert named(store)[-1] == ("credential.masters", "root 4")


@pytest.mark.usefixtures("few")
async def test_other_identities_and_other_tokens_hide_no_master(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    for number, groups in enumerate(
        [(), (), (), ("system:masters",), ("system:masters",), ("system:masters",)]
    ):
        usage.report(
            await seen(known, os.urandom(32), NOW, *groups, username=f"user {number}", token=b"stolen")
        )
    usage.report(await seen(known, os.urandom(32), NOW, "system:masters", username="root", token=b"other"))
    with captured_lines(webhook_usage) as logs:
        await usage.flush()
    assert [name for kind, name in named(store) if kind == "credential.masters"] == [
        "user 3",
        "user 4",
        "root",
    ]
    assert counted(store) == [("credential.unknown", 1), ("credential.masters", 1)]
    assert [(said["event"], said["count"]) for said in logs] == [
        ("suspicious certificates counted, not recorded individually", 1)
    ] * 2


@pytest.mark.usefixtures("few")
async def test_new_identities_replace_the_oldest_ones_of_the_token_that_has_most(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    clock = [NOW]
    usage = usage_at(database, lambda: clock[0])

    async def report(username: str, token: bytes, *groups: str) -> None:
        clock[0] += timedelta(hours=1)
        fingerprint = hashlib.sha256(username.encode()).digest()
        usage.report(await seen(known, fingerprint, clock[0], *groups, username=username, token=token))
        await usage.flush()

    def masters() -> list[str]:
        return sorted(str(name) for name, groups, _, _ in unknown(store) if "system:masters" in groups)

    await report("real", b"other", "system:masters")
    await report("used again", b"stolen", "system:masters")
    await report("invented 1", b"stolen", "system:masters")
    await report("used again", b"stolen", "system:masters")
    for number in range(2, 5):
        await report(f"invented {number}", b"stolen", "system:masters")
        assert masters() == [f"invented {number}", "real", "used again"]
    # Identities outside system:masters have rows of their own.
    for number in range(4):
        await report(f"user {number}", b"stolen")
    assert masters() == ["invented 4", "real", "used again"]
    assert sorted(str(name) for name, *_ in unknown(store) if str(name).startswith("user")) == [
        f"user {number}" for number in (1, 2, 3)
    ]
    assert len(named(store)) == 2 * 6 + 4


@pytest.mark.usefixtures("few")
async def test_exempt_names_have_rows_and_events_of_their_own(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    for number in range(4):
        usage.report(await seen(known, os.urandom(32), NOW, username=f"user {number}"))
        await usage.flush()
    usage.report(await seen(known, os.urandom(32), NOW, username=COMPONENT, webhook_config=KNOWN_ONLY))
    await usage.flush()
    assert [kind for kind, _ in named(store)] == ["credential.unknown"] * 2 + ["credential.exempt"]


async def test_counted_reports_are_counted_once_if_a_later_write_fails(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    for number in range(MAX_PENDING_OF_GROUP + 3):
        usage.report(await seen(known, os.urandom(32), NOW, "system:masters", username=f"root {number}"))
    usage.report_token_use(CLUSTER_ID, b"token")
    store.execute("ALTER TABLE webhook_token RENAME TO elsewhere")
    for _ in range(2):
        with pytest.raises(Unavailable):
            await usage.flush()
    store.execute("ALTER TABLE elsewhere RENAME TO webhook_token")
    await usage.flush()
    ((uses,),) = store.rows("SELECT uses FROM use_count")
    ((_, first),) = counted(store)
    assert (first, uses) == (WRITTEN_AT_ONCE, MAX_PENDING_OF_GROUP + 3 - 100 - WRITTEN_AT_ONCE)


async def test_names_in_unknown_certificates_are_sanitised(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    identity = "evil\x00\x1b[31m\udc80" + "x" * 1000
    usage.report(await seen(known, os.urandom(32), NOW, *["g\x00\n" * 200] * 40, username=identity))
    await usage.flush()
    ((username, _, _, _),) = unknown(store)
    assert str(username).startswith("evil\ufffd\ufffd[31m\ufffdx")
    assert len(str(username)) == 256
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert len(detail["groups"]) == 32
