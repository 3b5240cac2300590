"""Counting live certificates, and deleting expired ones."""

from dataclasses import fields, replace
from datetime import datetime, timedelta

from sqlalchemy import insert

from clustercert.model.events.administration import CertificatesPruned
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.maintenance import CertificateMaintenance
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.engine.database import Database
from clustercert.store.engine.queries import BATCH
from support.statements import QueryPlans
from support.store_records import cluster_id, user_id
from support.stores import NOW, Store, blob, certificate_record, event, revocation


async def issue(database: Database, *ends: datetime) -> None:
    ledger = Ledger(database)
    for end in ends:
        record, issued = certificate_record()
        await ledger.record(replace(record, not_after=end), issued)


def pruned(count: int) -> CertificatesPruned:
    return CertificatesPruned(
        at=NOW, actor=event().actor, subject="ended", count=count, ended_before=f"{NOW:%Y-%m-%d}"
    )


async def test_those_that_are_valid_are_counted_by_when_they_end(database: Database, store: Store) -> None:
    hour = timedelta(hours=1)
    await issue(database, NOW - hour, NOW, NOW + hour, NOW + 2 * hour, NOW + 3 * hour)
    store.execute("UPDATE certificate SET revoked_at = not_before WHERE id = 3")
    rows = CertificateMaintenance(database)
    assert await rows.live(NOW, [NOW + hour, NOW + 2 * hour, NOW + 9 * hour]) == (2, (0, 1, 2))


async def test_live_certificates_are_counted_by_user_and_cluster(database: Database, store: Store) -> None:
    ledger, hour = Ledger(database), timedelta(hours=1)
    alice, bob, here, there = user_id(), user_id(), cluster_id(), cluster_id()
    for user, cluster, end in (
        (alice, here, NOW + hour),
        (alice, here, NOW + 2 * hour),
        (alice, here, NOW),
        (alice, there, NOW + hour),
        (bob, here, NOW + hour),
    ):
        record, issued = certificate_record()
        changed = replace(record, user_id=user, cluster_id=cluster, not_after=end)
        await ledger.record(changed, issued)
    maintenance = CertificateMaintenance(database)
    assert await maintenance.count_live(NOW, user_id=alice, cluster_id=here) == 2
    assert await maintenance.count_live(NOW, user_id=alice) == 3
    assert await maintenance.count_live(NOW, cluster_id=here) == 3
    assert await maintenance.count_expired(NOW + hour) == 1
    store.execute("UPDATE certificate SET revoked_at = not_before WHERE id = 1")
    assert await maintenance.count_live(NOW, user_id=alice, cluster_id=here) == 1
    await RevocationQueries(database).revoke(revocation(user_id=alice, cluster_id=here), event())
    assert await maintenance.count_live(NOW, user_id=alice, cluster_id=here) == 0
    assert await maintenance.count_live(NOW, user_id=alice) == 1


async def test_live_certificates_of_a_user_are_counted_by_an_index(database: Database, store: Store) -> None:
    """The quota counts them for requests. A ledger keeps a user's expired certificates for years."""
    record, _ = certificate_record()
    alice, here = user_id(), cluster_id()
    columns = {each.name: getattr(record, each.name) for each in fields(record)} | {"epoch": 0}

    def row(number: int, user: str, cluster: str, days: int) -> dict[str, object]:
        mine = {"user_id": user, "cluster_id": cluster, "not_after": NOW + timedelta(days=days)}
        unique = {"fingerprint": number.to_bytes(32), "credential_number": f"{number:040x}"}
        return columns | mine | unique

    rows = [row(number, alice, here, -number) for number in range(1, 4000)]
    rows += [row(number, user_id(), here, 1) for number in range(4000, 4400)]
    rows += [row(number, user_id(), cluster_id(), 1) for number in range(4400, 6000)]
    rows += [row(6000, alice, here, 1)]
    async with database.transaction() as connection:
        await connection.execute(insert(tables.certificate), rows)
    if store.file is None:
        store.execute("ANALYZE certificate")
    plans = QueryPlans(database, of="certificate")
    with plans.noted():
        count = await CertificateMaintenance(database).count_live(NOW, user_id=alice, cluster_id=here)
    assert count == 1
    [plan] = await plans.all()
    assert "ix_certificate_cluster_id_not_after_user_id" in plan
    if store.file is None:
        [condition] = [line for line in plan.splitlines() if "Index Cond" in line and "not_after" in line]
        assert all(column in condition for column in ("cluster_id", "not_after", "user_id"))


async def test_expired_certificates_are_pruned_oldest_first_and_counted(
    database: Database, store: Store
) -> None:
    second = timedelta(seconds=1)
    await issue(database, NOW, NOW - second, NOW + second)
    rows = CertificateMaintenance(database)
    assert await rows.prune(NOW - second, pruned) == 0
    assert await rows.prune(NOW, pruned) == 1
    assert await rows.prune(NOW, pruned) == 0
    assert store.rows("SELECT id FROM certificate ORDER BY id") == [(1,), (3,)]
    assert [found["detail"] for found in store.events() if found["kind"] == "certificates.pruned"] == [
        {"count": 1, "ended_before": "2026-03-14"}
    ]
    assert len([found for found in store.events() if found["kind"] == "certificate.issued"]) == 3


async def test_what_revoked_a_forgotten_certificate_alone_goes_with_it(
    database: Database, store: Store
) -> None:
    await issue(database, NOW - timedelta(seconds=1), NOW + timedelta(seconds=1))
    revocations = RevocationQueries(database)
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
    assert await CertificateMaintenance(database).prune(NOW, pruned) == 1
    left = store.rows("SELECT id FROM revocation ORDER BY id")
    assert left == [(one.id,) for one in made[1:4]]
    [still] = await revocations.find(second.hex())
    assert still.revoked_at is not None


async def test_many_are_forgotten_in_small_transactions(database: Database, store: Store) -> None:
    await issue(database, NOW)
    columns = (
        "serial, epoch, cluster_id, project_id, ca_id, user_id, user_name, groups, not_before, not_after, key_type,"
        " key_origin, auth_method, source_address, request_id, issued_at, kind, der"
    )
    doubled = BATCH + 500
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {doubled})"
    name = f"CAST(CAST(i AS text) AS {'blob' if store.file is not None else 'bytea'})"
    insert = f"INSERT INTO certificate (fingerprint, credential_number, {columns})"
    select = f"SELECT {name}, CAST(i AS text), {columns} FROM certificate, n"
    store.execute(
        f"{numbers} {insert} {select}" if store.file is not None else f"{insert} {numbers} {select}"
    )
    rows, counts = CertificateMaintenance(database), []
    while count := await rows.prune(NOW + timedelta(seconds=1), pruned):
        counts.append(count)
    assert counts == [1000, 501]
    events = [found for found in store.events() if found["kind"] == "certificates.pruned"]
    assert [found["detail"]["count"] for found in events] == [1000, 501]  # type: ignore[index] # an object
