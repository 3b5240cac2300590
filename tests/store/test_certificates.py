"""Certificates that were issued: counted while they live, forgotten long after."""

from dataclasses import replace
from datetime import datetime, timedelta

from clustercert.model import AuditEvent
from clustercert.store import certificates
from clustercert.store.certificates import CertificateRows
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from clustercert.store.revocations import Revocations
from stores import NOW, Store, blob, certificate_record, event, revocation


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


async def test_what_revoked_a_forgotten_certificate_alone_goes_with_it(
    database: Database, store: Store
) -> None:
    await issue(database, NOW - timedelta(seconds=1), NOW + timedelta(seconds=1))
    revocations = Revocations(database)
    first, second = [
        blob(found) for (found,) in store.rows("SELECT fingerprint FROM certificate ORDER BY id")
    ]
    user, cluster = store.rows("SELECT user_id, cluster_id FROM certificate WHERE id = 1")[0]
    wanted = [
        revocation(fingerprint=first, user_id=str(user), cluster_id=str(cluster)),
        revocation(fingerprint=second, user_id=str(user)),
        revocation(user_id=str(user)),
        revocation(cluster_id=str(cluster)),
    ]
    made = [await revocations.revoke(one, event()) for one in (*wanted, wanted[0])]
    undone = made[-1].id
    await revocations.undo(undone, by="cli:test", at=NOW, event=event())
    assert await CertificateRows(database).prune(NOW, pruned) == 1
    left = store.rows("SELECT id FROM revocation ORDER BY id")
    assert left == [(one.id,) for one in made[1:4]]
    [still] = await revocations.find(second.hex())
    assert still.revoked


async def test_many_are_forgotten_in_small_transactions(database: Database, store: Store) -> None:
    await issue(database, NOW)
    columns = (
        "serial, epoch, cluster_id, project_id, ca_id, user_id, user_name, groups, not_before, not_after, key_type,"
        " key_origin, auth_method, source_address, request_id, issued_at, der"
    )
    doubled = certificates.PRUNED_AT_ONCE + 500
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {doubled})"
    name = f"CAST(CAST(i AS text) AS {'blob' if store.file is not None else 'bytea'})"
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
