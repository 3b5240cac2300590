"""Certificates that were issued: counted while they live, forgotten long after."""

from dataclasses import replace
from datetime import datetime, timedelta

from clustercert.model import AuditEvent
from clustercert.store import certificates
from clustercert.store.certificates import CertificateRows
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from stores import NOW, Store, certificate_record, event


async def issue(database: Database, *ends: datetime) -> None:
    ledger = Ledger(database)
    for end in ends:
        record, issued = certificate_record()
        await ledger.record(replace(record, not_after=end), issued)


def pruned(count: int) -> AuditEvent:
    return replace(event("certificates.pruned"), detail={"count": count})


async def test_those_that_are_valid_are_counted_by_when_they_end(database: Database, store: Store) -> None:
    hour = timedelta(hours=1)
    await issue(database, NOW - hour, NOW, NOW + hour, NOW + 2 * hour, NOW + 3 * hour)
    store.execute("UPDATE certificate SET revoked_at = not_before WHERE id = 3")
    rows = CertificateRows(database)
    assert await rows.live(NOW, [NOW + hour, NOW + 2 * hour, NOW + 9 * hour]) == (2, (0, 1, 2))


async def test_those_that_ended_before_a_time_are_forgotten_oldest_first_and_counted(
    database: Database, store: Store
) -> None:
    second = timedelta(seconds=1)
    await issue(database, NOW, NOW - second, NOW + second)
    rows = CertificateRows(database)
    assert await rows.prune(NOW - second, pruned) == 0
    assert await rows.prune(NOW, pruned) == 1
    assert await rows.prune(NOW, pruned) == 0
    assert store.rows("SELECT id FROM certificate ORDER BY id") == [(1,), (3,)]
    assert [found["detail"] for found in store.events() if found["kind"] == "certificates.pruned"] == [
        {"count": 1}
    ]
    assert len([found for found in store.events() if found["kind"] == "certificate.issued"]) == 3


async def test_many_are_forgotten_in_small_transactions(database: Database, store: Store) -> None:
    await issue(database, NOW)
    columns = (
        "serial, epoch, cluster_id, project_id, ca_id, user_id, user_name, groups, not_before, not_after, key_type,"
        " key_origin, auth_method, source_address, request_id, issued_at, der"
    )
    doubled = certificates.PRUNED_AT_ONCE + 500
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {doubled})"
    name = "CAST(i AS text)" if store.file is not None else "CAST(CAST(i AS text) AS bytea)"
    store.execute(
        f"{numbers} INSERT INTO certificate (fingerprint, {columns}) SELECT {name}, {columns} FROM certificate, n"
        if store.file is not None
        else f"INSERT INTO certificate (fingerprint, {columns}) {numbers} SELECT {name}, {columns} FROM certificate, n"
    )
    rows, counts = CertificateRows(database), []
    while count := await rows.prune(NOW + timedelta(seconds=1), pruned):
        counts.append(count)
    assert counts == [1000, 501]
    details = [found["detail"] for found in store.events() if found["kind"] == "certificates.pruned"]
    assert details == [{"count": 1000}, {"count": 501}]
