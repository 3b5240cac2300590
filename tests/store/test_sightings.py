"""First and last use, ids unknown to the ledger, and the alerts that both may be: on both databases."""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from capturing import captured_logs
from clustercert.errors import Unavailable
from clustercert.metrics import ALTERED_CREDENTIALS, MASTERS_CREDENTIALS, UNKNOWN_CREDENTIALS
from clustercert.model import AuditEvent, CertificateRecord, Cluster, ClusterOptions, Origin
from clustercert.store import sightings as module
from clustercert.store.clusters import ClusterRows
from clustercert.store.credentials import Credentials, Feed
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from clustercert.store.revocations import Revocations
from clustercert.store.sightings import Alerts, SightingRows, UnknownUse, Use
from clustercert.store.webhook_tokens import Gate, WebhookTokenRows
from clustercert.webhook import sightings as webhook_sightings
from clustercert.webhook.recognition import Recognition
from clustercert.webhook.review import Identity
from clustercert.webhook.sightings import UNKNOWN_WAITING, WAITING, Sighting, Sightings
from clustercert.webhook.tokens import WebhookTokens, hash_of
from nouns import CLUSTER_ID, PROJECT_ID
from remembered import revocation as revocation_of
from stores import NOW, Store, certificate_record, event
from webhooks import registered

ORIGIN = Origin(address="192.0.2.1", request_id="e" * 32)
GATE = Gate(CLUSTER_ID, PROJECT_ID, ClusterOptions(), ())
POLICY_GROUPS = ("auditors", "system:auditors")
SECOND = timedelta(seconds=1)


@pytest.fixture
async def there(database: Database, store: Store) -> Cluster:
    return await registered(database, store)


@pytest.fixture
async def known(database: Database) -> Credentials:
    return Credentials(database, Feed(database))


@pytest.fixture
def sightings(database: Database, there: Cluster) -> Sightings:
    return sightings_at(database)


def sightings_at(database: Database, now: Callable[[], datetime] = lambda: NOW) -> Sightings:
    """Those of a worker."""
    return Sightings(SightingRows(database), now, POLICY_GROUPS)


async def recorded(database: Database, **changed: object) -> CertificateRecord:
    record, its_event = certificate_record()
    record = replace(record, **({"cluster_id": CLUSTER_ID} | changed))  # type: ignore[arg-type] # as the tests say
    await Ledger(database).record(record, its_event)
    return record


async def seen(
    known: Credentials,
    what: CertificateRecord | bytes,
    at: datetime = NOW,
    *groups: str,
    username: str = "bob",
    gate: Gate = GATE,
    copy: bytes | None = None,
) -> Sighting:
    """That somebody used a certificate of the ledger, an altered copy of one, or what a hash is of."""
    fingerprint = what if isinstance(what, bytes) else copy or what.fingerprint
    if isinstance(what, CertificateRecord):
        username, groups = what.user_id, what.organizations
    who = Identity(username, (*groups, "system:authenticated"), (fingerprint,))
    (shown,) = await Recognition(known).recognize(gate.cluster_id, who)
    return Sighting(gate, who, shown, at, at, ORIGIN, "webhook")


def times(store: Store, record: CertificateRecord) -> tuple[object, ...]:
    query = "SELECT first_seen_at, last_seen_at FROM certificate WHERE fingerprint = ?"
    (found,) = store.rows(query, record.fingerprint)
    return found


def unknown(store: Store) -> list[tuple[object, list[str], object, list[str]]]:
    """User name, groups, count of hashes and last hashes of the strangers, those first that were seen first."""
    query = (
        "SELECT username, groups, hashes, fingerprints FROM unknown_identity ORDER BY first_seen_at, identity"
    )
    return [
        (username, as_list(groups), hashes, as_list(fingerprints))
        for username, groups, hashes, fingerprints in store.rows(query)
    ]


def as_list(value: object) -> list[str]:
    found: list[str] = json.loads(str(value))
    return found


def alerts(store: Store) -> list[dict[str, object]]:
    return [said for said in store.events() if str(said["kind"]).startswith("credential.")]


async def test_the_first_and_the_last_use_are_written(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record, unused = await recorded(database), await recorded(database)
    for seconds in (5, 0, 9, 3):
        sightings.note(await seen(known, record, NOW + seconds * SECOND))
    assert times(store, record) == (None, None), "not before the flush"
    await sightings.flush()
    assert times(store, record) == (store.time(NOW), store.time(NOW + 9 * SECOND))
    assert times(store, unused) == (None, None)
    assert alerts(store) == []


async def test_one_credential_costs_one_write_a_minute_however_many_workers_see_it(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database)
    other_worker = sightings_at(database)
    for seconds, expected in ((0, 0), (30, 0), (59, 0), (61, 61), (90, 61), (122, 122)):
        for worker in (sightings, other_worker):
            worker.note(await seen(known, record, NOW + seconds * SECOND))
            await worker.flush()
        assert times(store, record) == (store.time(NOW), store.time(NOW + expected * SECOND))


async def test_an_older_log_moves_the_first_use_and_not_the_last(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database)
    sightings.note(await seen(known, record, NOW))
    await sightings.flush()
    sightings.note(await seen(known, record, NOW - timedelta(days=3)))
    await sightings.flush()
    assert times(store, record) == (store.time(NOW - timedelta(days=3)), store.time(NOW))


async def test_what_was_written_a_minute_ago_is_forgotten(database: Database, sightings: Sightings) -> None:
    sightings._written["row"] = NOW
    sightings._turned_at -= 61
    await sightings.flush()
    assert sightings._is_written("row", NOW, NOW)
    sightings._turned_at -= 61
    await sightings.flush()
    assert not sightings._is_written("row", NOW, NOW)


async def test_more_uses_than_one_transaction_takes(database: Database, store: Store) -> None:
    records = [await recorded(database) for _ in range(3)]
    ids = [int(str(row)) for (row,) in store.rows("SELECT id FROM certificate ORDER BY id")]
    nobodys = [Use(10_000 + number, NOW, NOW) for number in range(module.WRITTEN_AT_ONCE)]
    await SightingRows(database).add([*nobodys, *(Use(row, NOW, NOW) for row in reversed(ids))])
    assert all(times(store, record) == (store.time(NOW), store.time(NOW)) for record in records)


async def test_an_unknown_identity_is_written_once_and_told_once(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    fingerprint = os.urandom(32)
    before = UNKNOWN_CREDENTIALS._value.get()
    workers = (sightings, sightings_at(database))
    for minutes in (0, 2, 4):
        for worker in workers:
            worker.note(await seen(known, fingerprint, NOW + timedelta(minutes=minutes), "devs"))
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


async def test_one_holder_fills_one_row_however_many_hashes_they_make(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    hashes = [number.to_bytes(32) for number in range(1, 41)]
    workers = (sightings, sightings_at(database))
    for number, fingerprint in enumerate(hashes):
        groups = ("devs", "ops") if number % 2 else ("ops", "devs", "ops")
        workers[number % 2].note(await seen(known, fingerprint, NOW + number * SECOND, *groups))
        if number % 8 == 7:
            for worker in workers:
                await worker.flush()
    ((username, _, count, kept),) = unknown(store)
    assert (username, count, len(kept)) == ("bob", 40, 16)
    assert set(kept) <= {each.hex() for each in hashes[-24:]}
    assert [alert["kind"] for alert in alerts(store)] == ["credential.unknown"]
    # The same ones again are no new ones.
    for each in kept:
        workers[0].note(await seen(known, bytes.fromhex(each), NOW + timedelta(hours=1), "devs", "ops"))
    await workers[0].flush()
    assert [each[2] for each in unknown(store)] == [40]
    # Somebody else is another row.
    workers[0].note(await seen(known, hashes[0], NOW + timedelta(hours=1), "devs"))
    workers[0].note(await seen(known, hashes[0], NOW + timedelta(hours=1), "devs", "ops", username="eve"))
    await workers[0].flush()
    assert sorted(each[2] for each in unknown(store) if isinstance(each[2], int)) == [1, 1, 40]


# Altered copies


async def test_an_altered_copy_is_told_at_most_once_an_hour_whichever_worker_saw_it(
    database: Database, store: Store, known: Credentials, there: Cluster
) -> None:
    clock = [NOW]
    workers = [sightings_at(database, lambda: clock[0]) for _ in range(2)]
    record, other = await recorded(database), await recorded(database)
    copies = [os.urandom(32) for _ in range(3)]
    before = ALTERED_CREDENTIALS._value.get()
    minutes_of_reports = []
    for minute in (0, 1, 30, 59, 60, 61, 119, 121):
        clock[0] = NOW + timedelta(minutes=minute)
        for worker in workers:
            for copy in copies:
                worker.note(await seen(known, record, clock[0], copy=copy))
            told = len(altered(store))
            await worker.flush()
            minutes_of_reports += [minute] * (len(altered(store)) - told)
    assert minutes_of_reports == [0, 60, 121]
    first, *_ = altered(store)
    assert (first["subject"], first["actor"]) == (record.fingerprint.hex(), f"cluster:{CLUSTER_ID}")
    assert (first["project_id"], first["source"]) == (PROJECT_ID, "192.0.2.1")
    assert first["detail"] == {
        "cluster_id": CLUSTER_ID,
        "credential_number": record.credential_number,
        "presented": copies[0].hex(),
        "username": record.user_id,
        "first_seen_at": NOW.isoformat(),
        "reported_by": "webhook",
    }
    query = "SELECT altered_at FROM certificate WHERE fingerprint = ?"
    assert store.rows(query, record.fingerprint) == [(store.time(NOW + timedelta(minutes=121)),)]
    assert store.rows(query, other.fingerprint) == [(None,)]
    assert ALTERED_CREDENTIALS._value.get() - before == 3
    # It is the certificate's use, and nothing unknown.
    assert times(store, record) == (store.time(NOW), store.time(NOW + timedelta(minutes=121)))
    assert unknown(store) == []
    # Another certificate's copy is told at once.
    workers[0].note(await seen(known, other, clock[0], copy=copies[0]))
    await workers[0].flush()
    assert [each["subject"] for each in altered(store)][3:] == [other.fingerprint.hex()]


async def test_reports_of_altered_copies_that_wait_are_bounded(
    database: Database, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database)
    sighting = await seen(known, record, copy=os.urandom(32))
    sightings._altered = dict.fromkeys(range(-UNKNOWN_WAITING, 0), sighting)
    sightings.note(sighting)
    assert len(sightings._altered) == UNKNOWN_WAITING


@pytest.mark.parametrize("what", ["certificate", "user"])
async def test_a_report_of_an_altered_copy_revokes_nothing_and_undoes_nothing(
    database: Database, store: Store, known: Credentials, sightings: Sightings, what: str
) -> None:
    record = await recorded(database)
    query = "SELECT revoked_at, epoch FROM certificate"
    before = store.rows(query)
    sightings.note(await seen(known, record, copy=os.urandom(32)))
    await sightings.flush()
    assert store.rows(query) == before
    assert store.rows("SELECT * FROM revocation") == []
    await Revocations(database).revoke(revocation_of(record, what), event())
    revoked = store.rows(query)
    sightings.note(await seen(Credentials(database, Feed(database)), record, copy=os.urandom(32)))
    await sightings.flush()
    assert store.rows(query) == revoked
    assert store.rows("SELECT undone_at FROM revocation") == [(None,)]


def altered(store: Store) -> list[dict[str, object]]:
    return [said for said in store.events() if said["kind"] == "credential.altered"]


# Who is told of


@pytest.mark.parametrize(
    ("groups", "username", "fault"),
    [
        (["clustercert:admins", "clustercert:credential:" + "0" * 40], "bob", "unknown"),
        (["clustercert:credential:12"], "bob", "forged"),
        (["clustercert:credential:" + "0" * 40, "clustercert:credential:" + "1" * 40], "bob", "forged"),
        (["clustercert:credential:" + "0" * 40], "system:node:n1", "unknown"),
    ],
)
async def test_who_claims_a_credential_of_ours_is_told_of_whoever_is_exempt(
    store: Store,
    known: Credentials,
    sightings: Sightings,
    groups: list[str],
    username: str,
    fault: str,
) -> None:
    everybody = replace(GATE, options=ClusterOptions(exemptions=("*",)))
    sightings.note(await seen(known, os.urandom(32), NOW, *groups, username=username, gate=everybody))
    await sightings.flush()
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert (alert["kind"], detail["fault"], detail["groups"][: len(groups)]) == (
        "credential.unknown",
        fault,
        groups,
    )


async def test_a_strangers_number_is_told_of_and_is_no_use_of_the_strangers_certificate(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database)
    number = f"clustercert:credential:{record.credential_number}"
    sightings.note(await seen(known, record.fingerprint, NOW, "clustercert:admins", number))
    await sightings.flush()
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert (alert["kind"], detail["fault"], detail["username"]) == ("credential.unknown", "forged", "bob")
    assert times(store, record) == (None, None)


async def test_without_a_credential_id_there_is_no_hash_to_keep(
    store: Store, known: Credentials, sightings: Sightings
) -> None:
    """As API servers before 1.32 report."""
    who = Identity("bob", ("clustercert:credential:" + "0" * 40, "system:authenticated"), ())
    (shown,) = await Recognition(known).recognize(CLUSTER_ID, who)
    for minutes in (0, 0, 2):
        at = NOW + timedelta(minutes=minutes)
        sightings.note(Sighting(GATE, who, shown, at, at, ORIGIN, "audit-events"))
        await sightings.flush()
    assert [(hashes, kept) for _, _, hashes, kept in unknown(store)] == [(0, [])]
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert detail["reported_by"] == "audit-events"


async def test_what_an_older_program_issued_is_used_by_its_hash(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database, credential_number=None)
    sightings.note(await seen(known, record))
    await sightings.flush()
    assert times(store, record) == (store.time(NOW), store.time(NOW))
    assert alerts(store) == []


@pytest.mark.parametrize("changed", [{}, {"credential_number": None}], ids=["numbered", "unnumbered"])
async def test_a_certificate_of_another_cluster_is_unknown_here(
    database: Database,
    store: Store,
    known: Credentials,
    sightings: Sightings,
    changed: dict[str, object],
) -> None:
    record = await recorded(database, cluster_id="another cluster", **changed)
    sightings.note(await seen(known, record))
    await sightings.flush()
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert (detail["fault"], detail["known_for_another_cluster"]) == ("other_cluster", True)
    assert "another cluster" not in str(alert)
    assert times(store, record) == (None, None)


@pytest.mark.parametrize(("username", "group"), [("system:node:n1", "system:nodes"), ("bob", "system:nodes")])
async def test_whom_the_cluster_exempts_raises_no_alert(
    store: Store, known: Credentials, sightings: Sightings, username: str, group: str
) -> None:
    sightings.note(await seen(known, os.urandom(32), NOW, group, username=username))
    await sightings.flush()
    assert alerts(store) == []
    assert unknown(store) == []


@pytest.mark.parametrize(
    ("username", "groups"),
    [
        ("system:node:n1", ["system:nodes", "devs"]),
        ("system:node:n1", ["devs"]),
        ("bob", ["system:auditors"]),
        ("clustercert:service", ["system:nodes"]),
    ],
)
async def test_who_is_not_exempt_by_all_that_they_are_is_told_of(
    store: Store, known: Credentials, sightings: Sightings, username: str, groups: list[str]
) -> None:
    sightings.note(await seen(known, os.urandom(32), NOW, *groups, username=username))
    await sightings.flush()
    assert [alert["kind"] for alert in alerts(store)] == ["credential.unknown"]


async def test_system_masters_raises_both_alerts_although_it_is_exempt(
    store: Store, known: Credentials, sightings: Sightings
) -> None:
    fingerprint = os.urandom(32)
    before = MASTERS_CREDENTIALS._value.get()
    for _ in range(2):
        sightings.note(await seen(known, fingerprint, NOW, "system:masters", username="kubernetes-admin"))
        await sightings.flush()
    assert [alert["kind"] for alert in alerts(store)] == ["credential.unknown", "credential.masters"]
    assert MASTERS_CREDENTIALS._value.get() - before == 1


async def test_another_certificate_of_a_master_is_told_of_when_the_hour_is_over(
    store: Store, known: Credentials, sightings: Sightings
) -> None:
    first, second = os.urandom(32), os.urandom(32)
    for minutes, fingerprint in ((0, first), (10, second), (30, second), (70, second), (140, second)):
        at = NOW + timedelta(minutes=minutes)
        sightings.note(await seen(known, fingerprint, at, "system:masters", username="kubernetes-admin"))
        await sightings.flush()
    kinds = [alert["kind"] for alert in alerts(store)]
    assert kinds == ["credential.unknown", "credential.masters", "credential.masters"]


async def test_another_certificate_of_a_master_is_told_of_once_an_hour(
    store: Store, known: Credentials, sightings: Sightings
) -> None:
    for minutes in (0, 30, 59, 61, 90, 122):
        at = NOW + timedelta(minutes=minutes)
        sightings.note(await seen(known, os.urandom(32), at, "system:masters", username="kubernetes-admin"))
        await sightings.flush()
    kinds = [alert["kind"] for alert in alerts(store)]
    assert kinds == ["credential.unknown", "credential.masters", "credential.masters", "credential.masters"]
    assert store.rows("SELECT hashes FROM unknown_identity") == [(3,)], (
        "what was not told of is not counted yet"
    )


@pytest.mark.parametrize("flushed", [True, False])
async def test_an_id_that_was_seen_with_less_before_hides_no_master(
    store: Store, known: Credentials, sightings: Sightings, flushed: bool
) -> None:
    """Whoever may impersonate can have any id reported for any user."""
    fingerprint = os.urandom(32)
    sightings.note(await seen(known, fingerprint, NOW, "devs"))
    if flushed:
        await sightings.flush()
    masters = [*(f"group {number}" for number in range(40)), "system:masters"]
    sightings.note(await seen(known, fingerprint, NOW, *masters, username="root"))
    sightings.note(await seen(known, fingerprint, NOW, "devs"))
    await sightings.flush()
    await sightings.flush()
    kinds = [alert["kind"] for alert in alerts(store)]
    assert sorted(map(str, kinds)) == ["credential.masters", "credential.unknown", "credential.unknown"]
    by_name = {username: groups for username, groups, _, _ in unknown(store)}
    assert by_name.keys() == {"bob", "root"}
    assert "system:masters" in by_name["root"]


async def test_system_masters_that_we_issued_raises_one_alert_at_its_first_use(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database, groups=("system:masters",))
    for minutes in (0, 2):
        for worker in (sightings, sightings_at(database)):
            at = NOW + timedelta(minutes=minutes)
            worker.note(await seen(known, record, at))
            await worker.flush()
    assert [alert["kind"] for alert in alerts(store)] == ["credential.masters"]
    assert times(store, record) == (store.time(NOW), store.time(NOW + timedelta(minutes=2)))


async def test_what_the_operator_listed_raises_no_alert(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record, fingerprint = await recorded(database, groups=("system:masters",)), os.urandom(32)
    listed = (record.fingerprint.hex(), fingerprint.hex())
    gate = replace(GATE, options=ClusterOptions(listed_masters=listed, exemptions=()))
    for each in (record, fingerprint):
        sightings.note(await seen(known, each, NOW, "system:masters", gate=gate))
    await sightings.flush()
    assert alerts(store) == []
    assert times(store, record) == (store.time(NOW), store.time(NOW))


async def test_whoever_makes_certificates_fills_no_table(
    database: Database, store: Store, there: Cluster
) -> None:
    rows = SightingRows(database)

    def uses(first: int, last: int) -> list[UnknownUse]:
        return [
            UnknownUse(CLUSTER_ID, f"mallory {number}", (), (f"{number:064x}",), NOW, NOW)
            for number in range(first, last)
        ]

    def told(kind: str, use: UnknownUse) -> AuditEvent:
        return event(kind, use.fingerprints[-1])

    assert await rows.add_unknown(uses(0, 6000), told) == Alerts(6000, 0)
    assert await rows.add_unknown(uses(5000, 12_000), told) == Alerts(4000, 0, left_out=2000)
    assert await rows.add_unknown(uses(20_000, 20_001), told) == Alerts(0, 0, left_out=1)
    assert store.rows("SELECT count(*) FROM unknown_identity") == [(module.MAX_UNKNOWN,)]
    assert len(alerts(store)) == 10_000


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNKNOWN", 2)
    monkeypatch.setattr(module, "MORE_MASTERS", 1)


@pytest.mark.usefixtures("room_for_two")
async def test_nobody_hides_system_masters_behind_thousands_of_others(
    store: Store, known: Credentials, sightings: Sightings
) -> None:
    for number, groups in enumerate(([], [], [], ["system:masters"], ["system:masters"])):
        sightings.note(await seen(known, os.urandom(32), NOW, *groups, username=f"user {number}"))
        with captured_logs(webhook_sightings) as logs:
            await sightings.flush()
    kinds = [alert["kind"] for alert in alerts(store)]
    assert kinds == ["credential.unknown"] * 3 + ["credential.masters"]
    [said] = logs
    assert "no room" in said["event"], "what is left out is said"


@pytest.mark.usefixtures("room_for_two")
async def test_what_was_not_seen_for_a_month_makes_room(
    store: Store, known: Credentials, there: Cluster, database: Database
) -> None:
    now = NOW
    sightings = sightings_at(database, lambda: now)
    often, once, third, fourth = (os.urandom(32) for _ in range(4))
    for fingerprint, days in ((often, 0), (once, 0), (often, 20), (third, 29), (third, 31), (fourth, 31)):
        at = NOW + timedelta(days=days)
        sightings.note(await seen(known, fingerprint, at, username=fingerprint.hex()))
        await sightings.flush()
    assert [alert["subject"] for alert in alerts(store)] == [each.hex() for each in (often, once, third)]
    assert {username for username, _, _, _ in unknown(store)} == {often.hex(), third.hex()}


async def test_the_names_in_somebody_elses_certificate_are_only_text(
    store: Store, known: Credentials, sightings: Sightings
) -> None:
    who = "evil\x00\x1b[31m\udc80" + "x" * 1000
    sightings.note(await seen(known, os.urandom(32), NOW, *["g\x00\n" * 200] * 40, username=who))
    await sightings.flush()
    ((username, _, _, _),) = unknown(store)
    assert str(username).startswith("evil\ufffd\ufffd[31m\ufffdx")
    assert len(str(username)) == 256
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert len(detail["groups"]) == 32


async def test_what_waits_is_as_short_as_what_is_written(
    database: Database, known: Credentials, sightings: Sightings
) -> None:
    """A review may have a hundred thousand groups, and thousands of alerts wait while the database is away."""
    groups = (*(str(n) for n in range(1000)), "system:masters")
    record = await recorded(database, groups=groups, user_id="x" * 1000)
    sightings.note(await seen(known, os.urandom(32), NOW, *groups, username="x" * 1000))
    sightings.note(await seen(known, record))
    sightings.note(await seen(known, record, copy=os.urandom(32)))
    (alert,), (master,) = sightings._unknown.values(), sightings._masters.values()
    (copy,) = sightings._altered.values()
    for sighting in (alert.sighting, master, copy):
        assert (len(sighting.who.username), len(sighting.who.groups)) == (256, 32)
        assert sighting.who.groups[0] == "system:masters"
    assert alert.use.groups == alert.sighting.who.groups


async def test_what_waits_is_bounded(database: Database, known: Credentials, sightings: Sightings) -> None:
    record, fingerprint = await recorded(database), os.urandom(32)
    sightings._uses = dict.fromkeys(range(-WAITING, 0), Use(0, NOW, NOW))
    sightings.note(await seen(known, record))
    sightings.note(await seen(known, fingerprint))
    (alert,) = sightings._unknown.values()
    sightings._unknown = dict.fromkeys(
        ((CLUSTER_ID, bytes([n % 256, n // 256])) for n in range(10_000)), alert
    )
    sightings.note(await seen(known, os.urandom(32)))
    assert (len(sightings._uses), len(sightings._unknown)) == (WAITING, UNKNOWN_WAITING)


async def test_what_a_removed_cluster_saw_is_nobodys(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    sightings.note(await seen(known, os.urandom(32)))
    await sightings.flush()
    sightings.note(await seen(known, os.urandom(32)))
    # What a replica of before schema 0005 wrote.
    store.execute(
        "INSERT INTO unknown_credential (cluster_id, fingerprint, username, groups, first_seen_at, last_seen_at)"
        f" VALUES ('{CLUSTER_ID}', ?, 'bob', '[]', '2026-03-14 15:09:26.000000', '2026-03-14 15:09:26.000000')",
        os.urandom(32),
    )
    await ClusterRows(database).remove(CLUSTER_ID, event("cluster.removed"))
    await sightings.flush()
    assert unknown(store) == []
    assert store.rows("SELECT * FROM unknown_credential") == []


async def test_when_an_api_server_asked_is_written_once_a_minute(
    database: Database, store: Store, there: Cluster
) -> None:
    clock = [NOW]
    tokens = WebhookTokens(WebhookTokenRows(database), Feed(database), lambda: NOW)
    here, elsewhere = (sightings_at(database, lambda: clock[0]) for _ in range(2))
    first, second = [(await tokens.create(there, actor="cli:test", origin=ORIGIN)) for _ in range(2)]

    async def asked_at(by: Sightings) -> dict[str, object]:
        by.note_asking(hash_of(first.text))
        await by.flush()
        return {token.id: token.last_asked_at for token in await tokens.of_cluster(there.id)}

    generation = store.rows("SELECT value FROM generation")
    assert await asked_at(here) == {first.token.id: NOW, second.token.id: None}
    for seconds, expected in ((59, 0), (121, 121)):
        clock[0] = NOW + seconds * SECOND
        for by in (elsewhere, here):
            assert await asked_at(by) == {first.token.id: NOW + expected * SECOND, second.token.id: None}
    assert store.rows("SELECT value FROM generation") == generation
    # Who asks while the database is away is written down later.
    clock[0] = NOW + timedelta(hours=1)
    store.execute("ALTER TABLE webhook_token RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await asked_at(here)
    store.execute("ALTER TABLE elsewhere RENAME TO webhook_token")
    await here.flush()
    assert clock[0] in {token.last_asked_at for token in await tokens.of_cluster(there.id)}
    # A removed token's is nobody's.
    await tokens.remove(there, first.token.id, actor="cli:test", origin=ORIGIN)
    clock[0] += timedelta(hours=1)
    assert await asked_at(here) == {second.token.id: None}


async def test_what_could_not_be_written_waits(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record, fingerprint = await recorded(database, groups=("system:masters",)), os.urandom(32)
    sightings.note(await seen(known, record))
    sightings.note(await seen(known, record, copy=os.urandom(32)))
    sightings.note(await seen(known, fingerprint))
    store.execute("ALTER TABLE audit_event RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await sightings.flush()
    store.execute("ALTER TABLE elsewhere RENAME TO audit_event")
    sightings.note(await seen(known, record, NOW + timedelta(minutes=2)))
    await sightings.flush()
    kinds = sorted(str(alert["kind"]) for alert in alerts(store))
    assert kinds == ["credential.altered", "credential.masters", "credential.unknown"]
    assert times(store, record) == (store.time(NOW), store.time(NOW + timedelta(minutes=2)))


class Failing(SightingRows):
    """Fails in a way that nobody thought of."""

    async def add(self, uses: Sequence[Use]) -> None:
        raise ValueError(uses)


async def test_no_failure_ends_the_writing_of_what_is_seen(database: Database, known: Credentials) -> None:
    sightings, stop = Sightings(Failing(database), lambda: NOW, POLICY_GROUPS), asyncio.Event()
    sightings.note(await seen(known, await recorded(database)))
    with captured_logs(webhook_sightings) as logs:
        writing = asyncio.create_task(sightings.watch(stop))
        await asyncio.sleep(0)
        stop.set()
        await writing
    assert [(log["log_level"], log["exc_info"]) for log in logs] == [("error", True)]
