"""First and last use, ids unknown to the ledger, and the alerts that both may be: on both databases."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from capturing import captured_logs
from clustercert.errors import Unavailable
from clustercert.metrics import MASTERS_CREDENTIALS, UNKNOWN_CREDENTIALS
from clustercert.model import AuditEvent, CertificateRecord, Cluster, ClusterOptions, Origin
from clustercert.store import sightings as module
from clustercert.store.clusters import ClusterRows
from clustercert.store.credentials import Credentials, Feed
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from clustercert.store.sightings import Alerts, SightingRows, UnknownUse, Use
from clustercert.store.webhook_tokens import Gate, WebhookTokenRows
from clustercert.webhook import sightings as webhook_sightings
from clustercert.webhook.review import Identity
from clustercert.webhook.sightings import UNKNOWN_WAITING, WAITING, Sighting, Sightings
from clustercert.webhook.tokens import WebhookTokens, hash_of
from nouns import CLUSTER_ID, PROJECT_ID
from stores import NOW, Store, blob, certificate_record, event
from webhooks import registered

ORIGIN = Origin(address="192.0.2.1", request_id="e" * 32)
GATE = Gate(CLUSTER_ID, PROJECT_ID, ClusterOptions(), ())
SECOND = timedelta(seconds=1)


@pytest.fixture
async def there(database: Database, store: Store) -> Cluster:
    return await registered(database, store)


@pytest.fixture
async def known(database: Database) -> Credentials:
    return Credentials(database, Feed(database))


@pytest.fixture
def sightings(database: Database, there: Cluster) -> Sightings:
    return Sightings(SightingRows(database), lambda: NOW)


async def recorded(database: Database, **changed: object) -> CertificateRecord:
    record, its_event = certificate_record()
    record = replace(record, **({"cluster_id": CLUSTER_ID} | changed))  # type: ignore[arg-type] # as the tests say
    await Ledger(database).record(record, its_event)
    return record


async def seen(
    known: Credentials,
    fingerprint: bytes,
    at: datetime = NOW,
    *groups: str,
    username: str = "bob",
    gate: Gate = GATE,
) -> Sighting:
    who = Identity(username, (*groups, "system:authenticated"), (fingerprint,))
    return Sighting(gate, who, fingerprint, await known.by_fingerprint(fingerprint), at, at, ORIGIN)


def times(store: Store, record: CertificateRecord) -> tuple[object, ...]:
    query = "SELECT first_seen_at, last_seen_at FROM certificate WHERE fingerprint = ?"
    (found,) = store.rows(query, record.fingerprint)
    return found


def alerts(store: Store) -> list[dict[str, object]]:
    return [said for said in store.events() if str(said["kind"]).startswith("credential.")]


async def test_the_first_and_the_last_use_are_written(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record, unused = await recorded(database), await recorded(database)
    for seconds in (5, 0, 9, 3):
        sightings.note(await seen(known, record.fingerprint, NOW + seconds * SECOND))
    assert times(store, record) == (None, None), "not before the flush"
    await sightings.flush()
    assert times(store, record) == (store.time(NOW), store.time(NOW + 9 * SECOND))
    assert times(store, unused) == (None, None)
    assert alerts(store) == []


async def test_one_credential_costs_one_write_a_minute_however_many_workers_see_it(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database)
    other_worker = Sightings(SightingRows(database), lambda: NOW)
    for seconds, expected in ((0, 0), (30, 0), (59, 0), (61, 61), (90, 61), (122, 122)):
        for worker in (sightings, other_worker):
            worker.note(await seen(known, record.fingerprint, NOW + seconds * SECOND))
            await worker.flush()
        assert times(store, record) == (store.time(NOW), store.time(NOW + expected * SECOND))


async def test_an_older_log_moves_the_first_use_and_not_the_last(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database)
    sightings.note(await seen(known, record.fingerprint, NOW))
    await sightings.flush()
    sightings.note(await seen(known, record.fingerprint, NOW - timedelta(days=3)))
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


async def test_an_unknown_id_is_written_once_and_told_once(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    fingerprint = os.urandom(32)
    before = UNKNOWN_CREDENTIALS._value.get()
    workers = (sightings, Sightings(SightingRows(database), lambda: NOW))
    for minutes in (0, 2, 4):
        for worker in workers:
            worker.note(await seen(known, fingerprint, NOW + timedelta(minutes=minutes), "devs"))
            await worker.flush()
    ((cluster_id, kept, username, first, last),) = store.rows(
        "SELECT cluster_id, fingerprint, username, first_seen_at, last_seen_at FROM unknown_credential"
    )
    assert (cluster_id, blob(kept), username) == (CLUSTER_ID, fingerprint, "bob")
    assert (first, last) == (store.time(NOW), store.time(NOW + timedelta(minutes=4)))
    (alert,) = alerts(store)
    assert alert["kind"] == "credential.unknown"
    assert (alert["subject"], alert["actor"]) == (fingerprint.hex(), f"cluster:{CLUSTER_ID}")
    assert (alert["project_id"], alert["source"]) == (PROJECT_ID, "192.0.2.1")
    assert alert["detail"] == {
        "cluster_id": CLUSTER_ID,
        "username": "bob",
        "groups": ["devs", "system:authenticated"],
        "first_seen_at": NOW.isoformat(),
        "known_for_another_cluster": False,
    }
    assert UNKNOWN_CREDENTIALS._value.get() - before == 1


async def test_a_certificate_of_another_cluster_is_unknown_here(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database, cluster_id="another cluster")
    sightings.note(await seen(known, record.fingerprint))
    await sightings.flush()
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert detail["known_for_another_cluster"] is True
    assert "another cluster" not in str(alert)
    assert times(store, record) == (None, None)


@pytest.mark.parametrize(("username", "group"), [("system:node:n1", "system:nodes"), ("bob", "system:nodes")])
async def test_whom_the_cluster_exempts_raises_no_alert(
    store: Store, known: Credentials, sightings: Sightings, username: str, group: str
) -> None:
    sightings.note(await seen(known, os.urandom(32), NOW, group, username=username))
    await sightings.flush()
    assert alerts(store) == []
    assert store.rows("SELECT * FROM unknown_credential") == []


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
    assert [alert["kind"] for alert in alerts(store)] == ["credential.unknown", "credential.masters"]
    ((username, groups),) = store.rows("SELECT username, groups FROM unknown_credential")
    assert username == "root"
    assert "system:masters" in str(groups)


async def test_system_masters_that_we_issued_raises_one_alert_at_its_first_use(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record = await recorded(database)
    for minutes in (0, 2):
        for worker in (sightings, Sightings(SightingRows(database), lambda: NOW)):
            at = NOW + timedelta(minutes=minutes)
            worker.note(await seen(known, record.fingerprint, at, "system:masters"))
            await worker.flush()
    assert [alert["kind"] for alert in alerts(store)] == ["credential.masters"]
    assert times(store, record) == (store.time(NOW), store.time(NOW + timedelta(minutes=2)))


async def test_what_the_operator_listed_raises_no_alert(
    database: Database, store: Store, known: Credentials, sightings: Sightings
) -> None:
    record, fingerprint = await recorded(database), os.urandom(32)
    listed = (record.fingerprint.hex(), fingerprint.hex())
    gate = replace(GATE, options=ClusterOptions(listed_masters=listed, exemptions=()))
    for each in (record.fingerprint, fingerprint):
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
            UnknownUse(CLUSTER_ID, number.to_bytes(32), "mallory", (), NOW, NOW)
            for number in range(first, last)
        ]

    def told(kind: str, use: UnknownUse) -> AuditEvent:
        return event(kind, use.fingerprint.hex())

    assert await rows.add_unknown(uses(0, 6000), told) == Alerts(6000, 0)
    assert await rows.add_unknown(uses(5000, 12_000), told) == Alerts(4000, 0, left_out=2000)
    assert await rows.add_unknown(uses(20_000, 20_001), told) == Alerts(0, 0, left_out=1)
    assert store.rows("SELECT count(*) FROM unknown_credential") == [(module.MAX_UNKNOWN,)]
    assert len(alerts(store)) == 10_000


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNKNOWN", 2)
    monkeypatch.setattr(module, "MORE_MASTERS", 1)


@pytest.mark.usefixtures("room_for_two")
async def test_nobody_hides_system_masters_behind_thousands_of_others(
    store: Store, known: Credentials, sightings: Sightings
) -> None:
    for groups in ([], [], [], ["system:masters"], ["system:masters"]):
        sightings.note(await seen(known, os.urandom(32), NOW, *groups))
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
    sightings = Sightings(SightingRows(database), lambda: now)
    often, once, third, fourth = (os.urandom(32) for _ in range(4))
    for fingerprint, days in ((often, 0), (once, 0), (often, 20), (third, 29), (third, 31), (fourth, 31)):
        sightings.note(await seen(known, fingerprint, NOW + timedelta(days=days)))
        await sightings.flush()
    assert [alert["subject"] for alert in alerts(store)] == [each.hex() for each in (often, once, third)]
    assert {blob(kept) for (kept,) in store.rows("SELECT fingerprint FROM unknown_credential")} == {
        often,
        third,
    }


async def test_the_names_in_somebody_elses_certificate_are_only_text(
    store: Store, known: Credentials, sightings: Sightings
) -> None:
    who = "evil\x00\x1b[31m\udc80" + "x" * 1000
    sightings.note(await seen(known, os.urandom(32), NOW, *["g\x00\n" * 200] * 40, username=who))
    await sightings.flush()
    ((username,),) = store.rows("SELECT username FROM unknown_credential")
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
    groups = [str(n) for n in range(1000)]
    record = await recorded(database)
    for fingerprint in (os.urandom(32), record.fingerprint):
        sightings.note(await seen(known, fingerprint, NOW, *groups, "system:masters", username="x" * 1000))
    (alert,), (master,) = sightings._unknown.values(), sightings._masters.values()
    for sighting in (alert.sighting, master):
        assert (len(sighting.who.username), len(sighting.who.groups)) == (256, 32)
        assert sighting.who.groups[0] == "system:masters"
    assert alert.use.groups == alert.sighting.who.groups


async def test_what_waits_is_bounded(database: Database, known: Credentials, sightings: Sightings) -> None:
    record, fingerprint = await recorded(database), os.urandom(32)
    sightings._uses = dict.fromkeys(range(-WAITING, 0), Use(0, NOW, NOW))
    sightings.note(await seen(known, record.fingerprint))
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
    await ClusterRows(database).remove(CLUSTER_ID, event("cluster.removed"))
    await sightings.flush()
    assert store.rows("SELECT * FROM unknown_credential") == []


async def test_when_an_api_server_asked_is_written_once_a_minute(
    database: Database, store: Store, there: Cluster
) -> None:
    clock = [NOW]
    tokens = WebhookTokens(WebhookTokenRows(database), Feed(database), lambda: NOW)
    here, elsewhere = (Sightings(SightingRows(database), lambda: clock[0]) for _ in range(2))
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
    record, fingerprint = await recorded(database), os.urandom(32)
    sightings.note(await seen(known, record.fingerprint, NOW, "system:masters"))
    sightings.note(await seen(known, fingerprint))
    store.execute("ALTER TABLE audit_event RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await sightings.flush()
    store.execute("ALTER TABLE elsewhere RENAME TO audit_event")
    sightings.note(await seen(known, record.fingerprint, NOW + timedelta(minutes=2)))
    await sightings.flush()
    assert {alert["kind"] for alert in alerts(store)} == {"credential.unknown", "credential.masters"}
    assert times(store, record) == (store.time(NOW), store.time(NOW + timedelta(minutes=2)))


class Failing(SightingRows):
    """Fails in a way that nobody thought of."""

    async def add(self, uses: Sequence[Use]) -> None:
        raise ValueError(uses)


async def test_no_failure_ends_the_writing_of_what_is_seen(database: Database, known: Credentials) -> None:
    sightings, stop = Sightings(Failing(database), lambda: NOW), asyncio.Event()
    sightings.note(await seen(known, (await recorded(database)).fingerprint))
    with captured_logs(webhook_sightings) as logs:
        writing = asyncio.create_task(sightings.watch(stop))
        await asyncio.sleep(0)
        stop.set()
        await writing
    assert [(log["log_level"], log["exc_info"]) for log in logs] == [("error", True)]
