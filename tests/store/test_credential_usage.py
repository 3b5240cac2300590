"""First and last use of credentials, altered copies, and pending reports, on both databases."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import insert, select

from clustercert.kubernetes.webhook import credential_usage as webhook_usage
from clustercert.kubernetes.webhook.audit_events import Allowed, AllowedRequests, Approval
from clustercert.kubernetes.webhook.credential_usage import CredentialUsage
from clustercert.kubernetes.webhook.pending_reports import (
    MAX_PENDING,
    MAX_PENDING_ALERTS,
    MAX_PENDING_OF_GROUP,
    ObservedUse,
    PendingReports,
    Reporter,
)
from clustercert.kubernetes.webhook.recognition import Recognition
from clustercert.kubernetes.webhook.review import RequestSender
from clustercert.kubernetes.webhook.tokens import WebhookTokens, token_hash
from clustercert.model import Actor, CertificateRecord, Cluster, ClusterOptions
from clustercert.model.errors import Unavailable
from clustercert.observability.metrics import ALTERED_CREDENTIALS, REVOKED_CREDENTIALS_USED
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.clusters.registry import ClusterQueries, ClusterWebhookConfig, WebhookTokenQueries
from clustercert.store.engine.database import Database
from clustercert.store.engine.transaction import Transaction
from clustercert.store.kubernetes import credential_usage as module
from clustercert.store.kubernetes.credential_cache import CredentialCache, RevocationFeed
from clustercert.store.kubernetes.credential_usage import Alerts, CredentialUsageQueries, UnknownUse, Use
from clustercert.store.tables import webhook_token
from support.credential_cache import SCOPES
from support.credential_cache import revocation as revocation_of
from support.credential_usage import (
    ORIGIN,
    POLICY_GROUPS,
    WEBHOOK_CONFIG,
    alerts,
    altered,
    recorded,
    seen,
    times,
    unknown,
    usage_at,
)
from support.lock_waits import LockWaits
from support.log_capture import captured_lines
from support.samples import CLUSTER_ID, PROJECT_ID, cluster
from support.store_records import register_cluster
from support.stores import NOW, Store, event, patient
from support.token_clusters import record_token

SECOND = timedelta(seconds=1)


async def test_first_and_last_use_are_written(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record, unused = await recorded(database), await recorded(database)
    for seconds in (5, 0, 9, 3):
        usage.report(await seen(known, record, NOW + seconds * SECOND))
    assert times(store, record) == (None, None), "not before the flush"
    await usage.flush()
    assert times(store, record) == (store.time(NOW), store.time(NOW + 9 * SECOND))
    assert times(store, unused) == (None, None)
    assert alerts(store) == []


async def test_a_credential_is_written_once_a_minute_by_all_workers(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await recorded(database)
    other_worker = usage_at(database)
    for seconds, expected in ((0, 0), (30, 0), (59, 0), (61, 61), (90, 61), (122, 122)):
        for worker in (usage, other_worker):
            worker.report(await seen(known, record, NOW + seconds * SECOND))
            await worker.flush()
        assert times(store, record) == (store.time(NOW), store.time(NOW + expected * SECOND))


async def test_an_older_log_moves_the_first_use_and_not_the_last(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await recorded(database)
    usage.report(await seen(known, record, NOW))
    await usage.flush()
    usage.report(await seen(known, record, NOW - timedelta(days=3)))
    await usage.flush()
    assert times(store, record) == (store.time(NOW - timedelta(days=3)), store.time(NOW))


async def test_written_times_are_forgotten_after_minutes(database: Database, usage: CredentialUsage) -> None:
    usage._written.add("row", NOW)
    usage._written._rotated_at -= 61
    await usage.flush()
    assert usage._written.has("row", NOW, NOW)
    usage._written._rotated_at -= 61
    await usage.flush()
    assert not usage._written.has("row", NOW, NOW)


async def test_many_uses_are_written_in_several_transactions(database: Database, store: Store) -> None:
    records = [await recorded(database) for _ in range(3)]
    ids = [int(str(row)) for (row,) in store.rows("SELECT id FROM certificate ORDER BY id")]
    nobodys = [Use(10_000 + number, NOW, NOW) for number in range(module.WRITTEN_AT_ONCE)]
    await CredentialUsageQueries(database).add([*nobodys, *(Use(row, NOW, NOW) for row in reversed(ids))])
    assert all(times(store, record) == (store.time(NOW), store.time(NOW)) for record in records)


# Altered copies


async def test_an_altered_copy_is_reported_once_an_hour_by_all_workers(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    clock = [NOW]
    workers = [usage_at(database, lambda: clock[0]) for _ in range(2)]
    record, other = await recorded(database), await recorded(database)
    copies = [os.urandom(32) for _ in range(3)]
    before = ALTERED_CREDENTIALS._value.get()
    minutes_of_reports = []
    for minute in (0, 1, 30, 59, 60, 61, 119, 121):
        clock[0] = NOW + timedelta(minutes=minute)
        for worker in workers:
            for copy in copies:
                worker.report(await seen(known, record, clock[0], copy=copy))
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
    # It counts as a use of the certificate, not as unknown.
    assert times(store, record) == (store.time(NOW), store.time(NOW + timedelta(minutes=121)))
    assert unknown(store) == []
    # A copy of another certificate is reported at once.
    workers[0].report(await seen(known, other, clock[0], copy=copies[0]))
    await workers[0].flush()
    assert [each["subject"] for each in altered(store)][3:] == [other.fingerprint.hex()]


async def test_a_copy_of_a_verification_is_recorded_and_causes_no_alert(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    record = await recorded(database)
    store.execute(
        "UPDATE certificate SET user_id = 'clustercert:verify', auth_method = 'cli' WHERE fingerprint = ?",
        record.fingerprint,
    )
    record = replace(record, user_id="clustercert:verify")
    before = ALTERED_CREDENTIALS._value.get()
    worker = usage_at(database, lambda: NOW)
    worker.report(await seen(known, record, NOW, copy=os.urandom(32)))
    await worker.flush()
    assert [each["subject"] for each in altered(store)] == [record.fingerprint.hex()]
    assert ALTERED_CREDENTIALS._value.get() == before


async def test_pending_altered_copies_are_limited(
    database: Database, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await recorded(database)
    observed = await seen(known, record, copy=os.urandom(32))
    usage._pending.altered = dict.fromkeys(range(-MAX_PENDING_ALERTS, 0), observed)
    usage.report(observed)
    assert len(usage._pending.altered) == MAX_PENDING_ALERTS


@pytest.mark.parametrize("what", ["certificate", "user"])
async def test_reporting_an_altered_copy_changes_no_revocation(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage, what: str
) -> None:
    record = await recorded(database)
    query = "SELECT revoked_at, epoch FROM certificate"
    before = store.rows(query)
    usage.report(await seen(known, record, copy=os.urandom(32)))
    await usage.flush()
    assert store.rows(query) == before
    assert store.rows("SELECT * FROM revocation") == []
    await RevocationQueries(database).revoke(revocation_of(record, what), event())
    revoked = store.rows(query)
    usage.report(await seen(CredentialCache(database, RevocationFeed(database)), record, copy=os.urandom(32)))
    await usage.flush()
    assert store.rows(query) == revoked
    assert store.rows("SELECT undone_at FROM revocation") == [(None,)]


async def test_a_forged_number_is_not_a_use_of_its_certificate(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await recorded(database)
    number = f"clustercert:credential:{record.credential_number}"
    usage.report(await seen(known, record.fingerprint, NOW, "clustercert:admins", number))
    await usage.flush()
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert (alert["kind"], detail["fault"], detail["username"]) == ("credential.unknown", "forged", "bob")
    assert times(store, record) == (None, None)


async def test_a_report_without_credential_id_stores_no_hash(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    """As with API servers before 1.32."""
    identity = RequestSender("bob", ("clustercert:credential:" + "0" * 40, "system:authenticated"), ())
    (shown,) = await Recognition(known).recognize(CLUSTER_ID, identity)
    for minutes in (0, 0, 2):
        at = NOW + timedelta(minutes=minutes)
        usage.report(ObservedUse(WEBHOOK_CONFIG, identity, shown, at, at, ORIGIN, "audit-events"))
        await usage.flush()
    assert [(hashes, kept) for _, _, hashes, kept in unknown(store)] == [(0, [])]
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert detail["reported_by"] == "audit-events"


async def test_a_certificate_of_another_cluster_is_unknown_here(
    database: Database,
    store: Store,
    known: CredentialCache,
    usage: CredentialUsage,
) -> None:
    record = await recorded(database, cluster_id="another cluster")
    usage.report(await seen(known, record))
    await usage.flush()
    (alert,) = alerts(store)
    detail = alert["detail"]
    assert isinstance(detail, dict)
    assert (detail["fault"], detail["known_for_another_cluster"]) == ("other_cluster", True)
    assert "another cluster" not in str(alert)
    assert times(store, record) == (None, None)


async def test_pending_reports_are_shortened(
    database: Database, known: CredentialCache, usage: CredentialUsage
) -> None:
    """A review may have 100,000 groups, and thousands of alerts may be pending while the database is down."""
    groups = (*(str(n) for n in range(1000)), "system:masters")
    record = await recorded(database, groups=groups, user_id="x" * 1000)
    usage.report(await seen(known, os.urandom(32), NOW, *groups, username="x" * 1000))
    usage.report(await seen(known, record))
    usage.report(await seen(known, record, copy=os.urandom(32)))
    (((use, alert),), (master,)) = _unknown_reports(usage._pending), usage._pending.masters.values()
    (copy,) = usage._pending.altered.values()
    for observed in (alert, master, copy):
        assert (len(observed.identity.username), len(observed.identity.groups)) == (256, 32)
        assert observed.identity.groups[0] == "system:masters"
    assert use.groups == alert.identity.groups


async def test_pending_reports_are_limited(
    database: Database, known: CredentialCache, usage: CredentialUsage
) -> None:
    record, fingerprint = await recorded(database), os.urandom(32)
    usage._pending.uses = dict.fromkeys(range(-MAX_PENDING, 0), Use(0, NOW, NOW))
    usage.report(await seen(known, record))
    usage.report(await seen(known, fingerprint))
    for number in range(MAX_PENDING_OF_GROUP):
        usage.report(await seen(known, fingerprint, username=str(number)))
    assert (len(usage._pending.uses), len(_unknown_reports(usage._pending))) == (
        MAX_PENDING,
        MAX_PENDING_OF_GROUP,
    )
    assert _counted_reports(usage._pending) == {"credential.unknown": 1}


def _unknown_reports(pending: PendingReports) -> list[tuple[UnknownUse, ObservedUse]]:
    return [report for group in pending.unknown.groups.values() for report in group.values()]


def _counted_reports(pending: PendingReports) -> dict[str, int]:
    return {kind: uses.count for (_, kind), uses in pending.unknown.counts.items()}


async def test_pending_reports_of_many_tokens_leave_room_for_each_other_one(
    known: CredentialCache, usage: CredentialUsage
) -> None:
    """Every report of a member of system:masters is kept or counted."""
    tokens = [number.to_bytes(32) for number in range(1, 7)]
    for token in tokens:
        for number in range(2000):
            use = await seen(
                known, os.urandom(32), NOW, "system:masters", username=f"user {number}", token=token
            )
            usage.report(use)
    others = [
        await seen(known, os.urandom(32), NOW, *each, token=b"o" * 32) for each in ((), ("system:masters",))
    ]
    for other in others:
        usage.report(other)
    reports = _unknown_reports(usage._pending)
    assert [observed.token_hash for _, observed in reports[-2:]] == [b"o" * 32] * 2
    assert len(reports) == MAX_PENDING_ALERTS + 10 + 2
    assert _counted_reports(usage._pending) == {"credential.masters": 1990}


async def test_reports_of_a_removed_cluster_are_dropped(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    usage.report(await seen(known, os.urandom(32)))
    await usage.flush()
    usage.report(await seen(known, os.urandom(32)))
    await ClusterQueries(database).remove(CLUSTER_ID, event("cluster.removed"))
    await usage.flush()
    assert unknown(store) == []


async def test_the_use_of_a_token_is_written_once_a_minute(
    database: Database, store: Store, there: Cluster
) -> None:
    clock = [NOW]
    tokens = WebhookTokens(WebhookTokenQueries(database), RevocationFeed(database), lambda: NOW)
    here, elsewhere = (usage_at(database, lambda: clock[0]) for _ in range(2))
    first, second = [(await tokens.create(there, actor=Actor("cli:test", ORIGIN))) for _ in range(2)]

    async def asked_at(by: CredentialUsage) -> dict[str, object]:
        by.report_token_use(CLUSTER_ID, token_hash(first.text))
        await by.flush()
        return {token.id: token.last_asked_at for token in await tokens.queries.tokens_of_cluster(there.id)}

    generation = store.rows("SELECT value FROM generation")
    assert await asked_at(here) == {first.token.id: NOW, second.token.id: None}
    for seconds, expected in ((59, 0), (121, 121)):
        clock[0] = NOW + seconds * SECOND
        for by in (elsewhere, here):
            assert await asked_at(by) == {first.token.id: NOW + expected * SECOND, second.token.id: None}
    assert store.rows("SELECT value FROM generation") == generation
    # A use while the database is down is written later.
    clock[0] = NOW + timedelta(hours=1)
    store.execute("ALTER TABLE webhook_token RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await asked_at(here)
    store.execute("ALTER TABLE elsewhere RENAME TO webhook_token")
    await here.flush()
    assert clock[0] in {token.last_asked_at for token in await tokens.queries.tokens_of_cluster(there.id)}
    # The use of a removed token is dropped.
    await tokens.remove(there, first.token.id, actor=Actor("cli:test", ORIGIN))
    clock[0] += timedelta(hours=1)
    assert await asked_at(here) == {second.token.id: None}


@pytest.mark.parametrize("what", ["token uses", "refused calls"])
async def test_the_times_of_tokens_are_written_in_one_order(on_postgresql: Store, what: str) -> None:
    """Otherwise, two workers could wait for each other."""
    here, elsewhere = (patient(on_postgresql.url) for _ in range(2))
    there = await register_cluster(here, on_postgresql)
    other_id = "f" * 8 + there.id[8:]
    ca = replace(there.client_ca, id="f" * 32, cluster_id=other_id)
    other = replace(there, id=other_id, name="other", client_ca=ca)
    await ClusterQueries(here).add(other, event("cluster.added"), 2)
    second, first, last = ((there.id, b"3" * 32), (there.id, b"2" * 32), (other.id, b"1" * 32))
    async with here.transaction() as connection:
        for cluster_id, hashed in (second, first, last):
            values = {"id": hashed.hex()[:32], "cluster_id": cluster_id, "hash": hashed, "created_at": NOW}
            await connection.execute(insert(webhook_token).values(values))

    async def lock(connection: Transaction, hashed: bytes) -> None:
        query = select(webhook_token.c.id).where(webhook_token.c.hash == hashed)
        await connection.execute(query.with_for_update(nowait=True))

    waits, queries = LockWaits(elsewhere, on_postgresql), CredentialUsageQueries(elsewhere)
    async with here.transaction() as connection:
        await lock(connection, first[1])
        if what == "token uses":
            writing = asyncio.create_task(
                queries.add_webhook_calls(dict.fromkeys((second, first, last), NOW))
            )
        else:
            writing = asyncio.create_task(queries.add_refused_calls({there.id: NOW, other.id: NOW}))
        await waits.begun(writing)
        for _, hashed in (second, last):
            await lock(connection, hashed)
    await writing
    column = "last_asked_at" if what == "token uses" else "refused_at"
    assert on_postgresql.rows(f"SELECT {column} FROM webhook_token") == [(NOW,)] * 3
    await here.close()
    await elsewhere.close()


async def test_a_call_with_a_wrong_token_is_written_once_a_minute(
    database: Database, store: Store, there: Cluster
) -> None:
    clock = [NOW]
    tokens = WebhookTokens(WebhookTokenQueries(database), RevocationFeed(database), lambda: NOW)
    await tokens.create(there, actor=Actor("cli:test", ORIGIN))
    usage = usage_at(database, lambda: clock[0])
    for seconds, expected in ((0, 0), (59, 0), (121, 121)):
        clock[0] = NOW + seconds * SECOND
        usage.report_refused_call(there.id)
        await usage.flush()
        (token,) = await tokens.queries.tokens_of_cluster(there.id)
        assert (token.refused_at, token.last_asked_at) == (NOW + expected * SECOND, None)
    # It is written later if the database is down.
    clock[0] = NOW + timedelta(hours=1)
    usage.report_refused_call(there.id)
    store.execute("ALTER TABLE webhook_token RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await usage.flush()
    store.execute("ALTER TABLE elsewhere RENAME TO webhook_token")
    await usage.flush()
    (token,) = await tokens.queries.tokens_of_cluster(there.id)
    assert token.refused_at == clock[0]


async def test_failed_reports_are_written_later(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record, fingerprint = await recorded(database, groups=("system:masters",)), os.urandom(32)
    usage.report(await seen(known, record))
    usage.report(await seen(known, record, copy=os.urandom(32)))
    usage.report(await seen(known, fingerprint))
    store.execute("ALTER TABLE audit_event RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await usage.flush()
    store.execute("ALTER TABLE elsewhere RENAME TO audit_event")
    usage.report(await seen(known, record, NOW + timedelta(minutes=2)))
    await usage.flush()
    kinds = sorted(str(alert["kind"]) for alert in alerts(store))
    assert kinds == ["credential.altered", "credential.masters", "credential.unknown"]
    assert times(store, record) == (store.time(NOW), store.time(NOW + timedelta(minutes=2)))


class Unreachable(CredentialUsageQueries):
    """Can't write. Calls `meanwhile` first."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    async def add(self, uses: Sequence[Use]) -> None:
        self.meanwhile()
        raise Unavailable("The database is away.")

    async def add_unknown(self, *_arguments: object) -> Alerts:
        self.meanwhile()
        raise Unavailable("The database is away.")


async def test_reports_during_a_failed_writing_join_the_failed_ones(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    queries = Unreachable(database)
    usage = CredentialUsage(queries, lambda: NOW, POLICY_GROUPS)
    first, second = os.urandom(32), os.urandom(32)
    later = await seen(known, second, NOW + SECOND)
    queries.meanwhile = lambda: usage.report(later)
    usage.report(await seen(known, first, NOW))
    with pytest.raises(Unavailable):
        await usage.flush()
    usage.queries = CredentialUsageQueries(database)
    await usage.flush()
    ((_, _, hashes, fingerprints),) = unknown(store)
    assert (hashes, fingerprints) == (2, [first.hex(), second.hex()])
    (alert,) = alerts(store)
    assert (alert["subject"], cast("dict[str, Any]", alert["detail"])["first_seen_at"]) == (
        first.hex(),
        NOW.isoformat(),
    )


async def test_failed_reports_stay_within_the_limits(database: Database, known: CredentialCache) -> None:
    queries = Unreachable(database)
    usage = CredentialUsage(queries, lambda: NOW, POLICY_GROUPS)
    record = await recorded(database)
    copy = await seen(known, record, copy=os.urandom(32))
    usage.report(copy)
    used = await used_after_revocation(known, record, NOW)
    usage._pending.revoked = {1: used}
    usage.report(await seen(known, os.urandom(32)))
    strangers = [
        await seen(known, os.urandom(32), username=str(each)) for each in range(MAX_PENDING_OF_GROUP)
    ]

    def fill() -> None:
        pending = usage._pending
        pending.altered = dict.fromkeys(range(-MAX_PENDING_ALERTS, 0), copy)
        pending.revoked = dict.fromkeys(range(-MAX_PENDING_ALERTS, 0), used)
        for stranger in strangers:
            usage.report(stranger)

    queries.meanwhile = fill
    with pytest.raises(Unavailable):
        await usage.flush()
    pending = usage._pending
    assert [len(reports) for reports in (pending.altered, pending.revoked)] == [MAX_PENDING_ALERTS] * 2
    assert len(_unknown_reports(pending)) == MAX_PENDING_OF_GROUP
    assert _counted_reports(pending) == {"credential.unknown": 1}


class Failing(CredentialUsageQueries):
    """Fails with an unexpected error."""

    async def add(self, uses: Sequence[Use]) -> None:
        raise ValueError(uses)


async def test_an_unexpected_error_does_not_end_the_writing(
    database: Database, known: CredentialCache
) -> None:
    usage, stop = CredentialUsage(Failing(database), lambda: NOW, POLICY_GROUPS), asyncio.Event()
    usage.report(await seen(known, await recorded(database)))
    with captured_lines(webhook_usage) as logs:
        writing = asyncio.create_task(usage.watch(stop))
        await asyncio.sleep(0)
        stop.set()
        await writing
    assert [(log["log_level"], log["exc_info"]) for log in logs] == [("error", True)]


class Waiting(CredentialUsageQueries):
    """Calls `meanwhile` during the first write of one use."""

    meanwhile: Callable[[], None]

    async def add(self, uses: Sequence[Use]) -> None:
        if len(uses) == 1:
            self.meanwhile()
            self.meanwhile = lambda: None
        await super().add(uses)


async def test_a_use_reported_during_the_writing_before_the_end_is_written(
    database: Database, store: Store, known: CredentialCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_usage, "FLUSH_SECONDS", 0)
    queries, stop = Waiting(database), asyncio.Event()
    usage = CredentialUsage(queries, lambda: NOW, POLICY_GROUPS)
    late = await recorded(database)
    late_use = await seen(known, late, NOW)

    def end() -> None:
        usage.report(late_use)
        stop.set()

    queries.meanwhile = end
    usage.report(await seen(known, await recorded(database), NOW))
    await usage.watch(stop)
    assert times(store, late) == (store.time(NOW), store.time(NOW))


async def used_after_revocation(
    known: CredentialCache,
    record: CertificateRecord,
    at: datetime,
    *,
    decided_at: datetime | None = None,
    webhook_config: ClusterWebhookConfig = WEBHOOK_CONFIG,
) -> ObservedUse:
    """A report that a request with a certificate was allowed."""
    use = await seen(known, record, at, webhook_config=webhook_config)
    allowed = Allowed(decided_at or at, at)
    return replace(use, reporter="audit-events", allowed=AllowedRequests(1, allowed, allowed))


def details(store: Store, kind: str) -> list[dict[str, Any]]:
    return [cast("dict[str, Any]", said["detail"]) for said in store.events() if said["kind"] == kind]


def revoked_uses(store: Store) -> list[dict[str, Any]]:
    return details(store, "credential.revoked_used")


async def test_the_last_refusal_is_written_once_a_minute(
    database: Database, store: Store, usage: CredentialUsage, known: CredentialCache
) -> None:
    record = await recorded(database)
    row = (await seen(known, record, NOW)).recognized.credential
    assert row is not None

    async def refused(seconds: int) -> object:
        for each in (usage, other_worker):
            each.now = lambda: NOW + seconds * SECOND
            each.report_refusal(row.id)
            await each.flush()
        (stored,) = store.rows("SELECT refused_at FROM certificate")
        return stored[0]

    other_worker = usage_at(database)
    assert await refused(0) == store.time(NOW)
    assert await refused(59) == store.time(NOW)
    assert await refused(61) == store.time(NOW + 61 * SECOND)


@pytest.mark.parametrize("scope", SCOPES)
async def test_an_allowed_use_after_a_revocation_is_reported(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage, scope: str
) -> None:
    record = await recorded(database)
    reports = REVOKED_CREDENTIALS_USED._value.get()
    await RevocationQueries(database).revoke(revocation_of(record, scope), event())
    # The API server may still cache an answer from before the revocation.
    usage.report(await used_after_revocation(known, record, NOW + 3 * SECOND))
    await usage.flush()
    assert revoked_uses(store) == []
    usage.report(await used_after_revocation(known, record, NOW + 4 * SECOND))
    await usage.flush()
    said = store.events()[-1]
    assert (said["subject"], said["actor"]) == (record.fingerprint.hex(), f"cluster:{CLUSTER_ID}")
    assert revoked_uses(store) == [
        {
            "cluster_id": CLUSTER_ID,
            "credential_number": record.credential_number,
            "username": record.user_id,
            "revoked_at": NOW.isoformat(),
            "count": 1,
            "first_used_at": (NOW + 4 * SECOND).isoformat(),
            "used_at": (NOW + 4 * SECOND).isoformat(),
            "reported_by": "audit-events",
        }
    ]
    assert REVOKED_CREDENTIALS_USED._value.get() == reports + 1
    (stored,) = store.rows("SELECT revoked_used_at FROM certificate")
    assert stored == (store.time(NOW + 4 * SECOND),)


async def test_a_token_is_reported_once_the_api_servers_cache_must_have_expired(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await record_token(database, replace(cluster(), id=CLUSTER_ID))
    await RevocationQueries(database).revoke(revocation_of(record, "certificate"), event())
    config = replace(WEBHOOK_CONFIG, kind="token")
    username = f"system:serviceaccount:clustercert-users:alice-{record.credential_number}"
    identity = RequestSender(username, (), (), token_ids=(str(UUID(hex=record.serial)),))
    [shown] = await Recognition(known).recognize(CLUSTER_ID, identity)
    for seconds, reported in ((12, []), (13, [(NOW + 13 * SECOND).isoformat()])):
        at = NOW + seconds * SECOND
        allowed = AllowedRequests(1, Allowed(at, at), Allowed(at, at))
        usage.report(
            ObservedUse(config, identity, shown, at, at, ORIGIN, "audit-events", None, allowed=allowed)
        )
        await usage.flush()
        assert [each["used_at"] for each in revoked_uses(store)] == reported
    assert times(store, record) == (store.time(NOW + 12 * SECOND), store.time(NOW + 12 * SECOND))


async def test_uses_after_a_revocation_are_one_event_an_hour_for_all_workers(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    """Each event has the number of uses since the last one. The last one comes without any further use."""
    clock = [NOW]
    workers = [usage_at(database, lambda: clock[0]) for _ in range(2)]
    record = await recorded(database)
    await RevocationQueries(database).revoke(revocation_of(record, "user"), event())
    reports = REVOKED_CREDENTIALS_USED._value.get()
    for minutes in (1, 2, 30, 60, 61, 62, 90):
        clock[0] = NOW + timedelta(minutes=minutes)
        for worker in workers:
            worker.report(await used_after_revocation(known, record, clock[0]))
            await worker.flush()
    (stored,) = store.rows("SELECT revoked_used_at FROM certificate")
    assert stored == (store.time(clock[0]),)
    clock[0] = NOW + timedelta(minutes=130)
    for worker in workers:
        await worker.flush()
    said = [(each["count"], each["first_used_at"], each["used_at"]) for each in revoked_uses(store)]
    assert said == [
        (uses, (NOW + timedelta(minutes=first)).isoformat(), (NOW + timedelta(minutes=last)).isoformat())
        for uses, first, last in ((1, 1, 1), (8, 1, 61), (5, 61, 90))
    ]
    assert REVOKED_CREDENTIALS_USED._value.get() - reports == 3
    assert store.events()[-1]["actor"] == f"cluster:{CLUSTER_ID}"


async def test_an_invented_use_of_a_revoked_certificate_hides_no_real_one(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    """Whatever times it has. All requests of one report are counted."""
    clock = [NOW + timedelta(minutes=10)]
    usage = usage_at(database, lambda: clock[0])
    record = await recorded(database)
    await RevocationQueries(database).revoke(revocation_of(record, "certificate"), event())
    invented = await used_after_revocation(known, record, clock[0])
    usage.report(invented)
    await usage.flush()
    for seconds in (1, 2):
        real = await used_after_revocation(known, record, clock[0] + seconds * SECOND)
        assert real.allowed is not None
        usage.report(replace(real, allowed=replace(real.allowed, count=20)))
        await usage.flush()
    clock[0] += timedelta(minutes=61)
    for _ in range(2):
        await usage.flush()
    assert [each["count"] for each in revoked_uses(store)] == [1, 40]


async def test_of_a_report_that_begins_before_the_revocation_only_the_last_use_counts(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await recorded(database)
    await RevocationQueries(database).revoke(revocation_of(record, "certificate"), event())
    first, last = Allowed(NOW - SECOND, NOW - SECOND), Allowed(NOW + 10 * SECOND, NOW + 10 * SECOND)
    use = await used_after_revocation(known, record, NOW)
    usage.report(replace(use, allowed=AllowedRequests(7, first, last)))
    await usage.flush()
    (said,) = revoked_uses(store)
    assert (said["count"], said["first_used_at"]) == (1, (NOW + 10 * SECOND).isoformat())


async def test_counted_uses_of_a_certificate_that_is_not_revoked_any_more_are_dropped(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    clock = [NOW]
    usage = usage_at(database, lambda: clock[0])
    record = await recorded(database)
    revocation = await RevocationQueries(database).revoke(revocation_of(record, "certificate"), event())
    for minutes in (1, 5):
        clock[0] = NOW + timedelta(minutes=minutes)
        usage.report(await used_after_revocation(known, record, clock[0]))
        await usage.flush()
    await RevocationQueries(database).undo(revocation.id, by="cli:test", at=clock[0], event=event())
    clock[0] += timedelta(hours=1)
    await usage.flush()
    assert [each["count"] for each in revoked_uses(store)] == [1]


async def test_the_first_use_after_each_revocation_is_reported(
    database: Database, store: Store, known: CredentialCache, there: Cluster
) -> None:
    clock = [NOW]
    usage = usage_at(database, lambda: clock[0])
    record = await recorded(database)
    revocations = RevocationQueries(database)
    for minutes in (0, 10):
        at = NOW + timedelta(minutes=minutes)
        revoked = await revocations.revoke(replace(revocation_of(record, "certificate"), at=at), event())
        clock[0] = at + timedelta(minutes=1)
        usage.report(await used_after_revocation(known, record, clock[0]))
        await usage.flush()
        await revocations.undo(revoked.id, by="cli:test", at=at + timedelta(minutes=2), event=event())
    assert [said["revoked_at"] for said in revoked_uses(store)] == [
        (NOW + timedelta(minutes=minutes)).isoformat() for minutes in (0, 10)
    ]


@pytest.mark.parametrize(
    ("ttl", "decided", "expected"), [(2, 0, True), (30, 0, False), (2, 10, False), (2, 6, True)]
)
async def test_use_after_a_revocation_counts_when_no_cache_can_allow_it(
    database: Database,
    store: Store,
    known: CredentialCache,
    usage: CredentialUsage,
    ttl: int,
    decided: int,
    expected: bool,
) -> None:
    """`decided`: seconds for which the server that answered may have cached the API server's decision."""
    record = await recorded(database)
    await RevocationQueries(database).revoke(revocation_of(record, "certificate"), event())
    config = replace(WEBHOOK_CONFIG, options=ClusterOptions(unauthorized_ttl_seconds=ttl))
    at = NOW + 10 * SECOND
    decided_at = at - decided * SECOND
    usage.report(await used_after_revocation(known, record, at, decided_at=decided_at, webhook_config=config))
    await usage.flush()
    assert bool(revoked_uses(store)) is expected


async def test_no_use_is_reported_without_a_revocation(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    live, revoked, undone = [await recorded(database) for _ in range(3)]
    for record in (revoked, undone):
        revocation = await RevocationQueries(database).revoke(revocation_of(record, "certificate"), event())
    await RevocationQueries(database).undo(revocation.id, by="cli:test", at=NOW, event=event())
    usage.report(await used_after_revocation(known, live, NOW + 10 * SECOND))
    usage.report(await used_after_revocation(known, undone, NOW + 10 * SECOND))
    usage.report(await seen(known, revoked, NOW + 10 * SECOND))
    await usage.flush()
    assert revoked_uses(store) == []


async def test_an_undone_revocation_is_not_reported_while_the_cache_is_stale(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await recorded(database)
    revocation = await RevocationQueries(database).revoke(revocation_of(record, "certificate"), event())
    usage.report(await used_after_revocation(known, record, NOW + 10 * SECOND))
    await RevocationQueries(database).undo(revocation.id, by="cli:test", at=NOW, event=event())
    await usage.flush()
    assert revoked_uses(store) == []


async def test_approvals_with_a_certificate_are_one_event_a_minute(
    database: Database, store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    record = await recorded(database)
    service = await recorded(database, groups=("clustercert:service",))

    async def approve(record: CertificateRecord, *names: str, reporter: Reporter = "audit-events") -> None:
        use = await seen(known, record)
        approvals = tuple(Approval(name, "kubernetes.io/kube-apiserver-client") for name in names)
        usage.report(replace(use, reporter=reporter, approvals=approvals))
        await usage.flush()

    await approve(service, "own")
    await approve(record, "imported", reporter="import-audit-log")
    await approve(record)
    assert details(store, "cluster_certificates.approved") == []
    await approve(record, "one", "two")
    await approve(record, "two", "three")
    await approve(record, *(f"csr-{number}" for number in range(100)))
    assert store.events()[-1]["subject"] == record.fingerprint.hex()
    (first,) = details(store, "cluster_certificates.approved")
    signer = "kubernetes.io/kube-apiserver-client"
    assert first["requests"] == [{"name": name, "signer": signer} for name in ("one", "two")]
    assert first["username"] == record.user_id
    await usage.flush(is_last=True)
    (_, later) = details(store, "cluster_certificates.approved")
    assert [each["name"] for each in later["requests"]] == [
        *("two", "three"),
        *(f"csr-{number}" for number in range(30)),
    ]


@pytest.mark.parametrize(
    ("asked", "used", "reporter", "groups", "expected"),
    [
        (None, 0, "audit-events", ("clustercert:admins",), 1),
        (-10, 0, "audit-events", ("clustercert:admins",), 1),
        (-9, 0, "audit-events", ("clustercert:admins",), 0),
        (0, 0, "audit-events", ("clustercert:admins",), 0),
        # Nothing was used later, so nothing shows that the API server asks now.
        (None, -600, "audit-events", ("clustercert:admins",), 1),
        (-1440, -600, "audit-events", ("clustercert:admins",), 1),
        # It asked later.
        (-300, -600, "audit-events", ("clustercert:admins",), 0),
        # A quiet cluster: it was not used after it asked.
        (-1440, -1440, "audit-events", ("clustercert:admins",), 0),
        (None, 0, "import-audit-log", ("clustercert:admins",), 0),
        (None, 0, "webhook", ("clustercert:admins",), 0),
        # API servers don't ask about them.
        (None, 0, "audit-events", ("system:masters",), 0),
    ],
)
async def test_clusters_are_counted_whose_api_servers_use_certificates_without_asking(
    database: Database,
    store: Store,
    known: CredentialCache,
    usage: CredentialUsage,
    there: Cluster,
    asked: int | None,
    used: int,
    reporter: Reporter,
    groups: tuple[str, ...],
    expected: int,
) -> None:
    """`asked`, `used`: minutes."""
    tokens = WebhookTokens(WebhookTokenQueries(database), RevocationFeed(database), lambda: NOW)
    for _ in range(2):
        issued = await tokens.create(there, actor=Actor("cli:test", ORIGIN))
    record = await recorded(database, groups=groups)
    usage.report(replace(await seen(known, record, NOW + timedelta(minutes=used)), reporter=reporter))
    # Another cluster's uses don't count.
    other = replace(WEBHOOK_CONFIG, cluster_id="00000000-0000-4000-8000-000000000000")
    usage.report(replace(await seen(known, record, NOW, webhook_config=other), reporter=reporter))
    await usage.flush()
    if asked is not None:
        times_asked = {(CLUSTER_ID, token_hash(issued.text)): NOW + timedelta(minutes=asked)}
        await usage.queries.add_webhook_calls(times_asked)
    assert await usage.queries.clusters_without_reviews() == expected


@pytest.mark.parametrize(
    "options", [ClusterOptions(admission=True), ClusterOptions(credential_roles={"admin": "cluster-admin"})]
)
async def test_a_cluster_that_enforces_revocations_without_the_webhook_need_not_ask(
    database: Database,
    known: CredentialCache,
    usage: CredentialUsage,
    there: Cluster,
    options: ClusterOptions,
) -> None:
    tokens = WebhookTokens(WebhookTokenQueries(database), RevocationFeed(database), lambda: NOW)
    issued = await tokens.create(there, actor=Actor("cli:test", ORIGIN))
    await ClusterQueries(database).replace(replace(there, options=options), event())
    usage.report(replace(await seen(known, await recorded(database), NOW), reporter="audit-events"))
    await usage.flush()
    assert await usage.queries.clusters_without_reviews() == 0
    # It has asked before, so it has the webhook as well.
    await usage.queries.add_webhook_calls({(CLUSTER_ID, token_hash(issued.text)): NOW - timedelta(hours=1)})
    assert await usage.queries.clusters_without_reviews() == 1


async def test_the_time_of_the_last_audit_events_is_written_once_a_minute(
    database: Database, store: Store, there: Cluster
) -> None:
    tokens = WebhookTokens(WebhookTokenQueries(database), RevocationFeed(database), lambda: NOW)
    await tokens.create(there, actor=Actor("cli:test", ORIGIN))
    clock = [NOW]
    workers = [usage_at(database, lambda: clock[0]) for _ in range(2)]
    for seconds, expected in ((0, 0), (30, 0), (61, 61), (90, 61)):
        clock[0] = NOW + seconds * SECOND
        for worker in workers:
            worker.report_audit_events(CLUSTER_ID)
            await worker.flush()
        assert store.rows("SELECT last_events_at FROM webhook_token") == [
            (store.time(NOW + expected * SECOND),)
        ]


async def test_the_credential_group_of_a_certificate_with_many_groups_is_kept(
    store: Store, known: CredentialCache, usage: CredentialUsage
) -> None:
    """The access report decides by it."""
    number = f"clustercert:credential:{'a' * 40}"
    groups = (*(f"group-{each}" for each in range(140)), number)
    usage.report(await seen(known, os.urandom(32), NOW, *groups))
    await usage.flush()
    ((_, stored, _, _),) = unknown(store)
    assert (stored[0], len(stored)) == (number, 32)
