"""Pages of a large inventory."""

import re
from dataclasses import replace
from datetime import timedelta

from clustercert.store.certificates import AccessQueries, CertificateFilter, InventoryQueries
from clustercert.store.engine.database import Database
from clustercert.store.ledger import Ledger
from support.statements import QueryPlans
from support.stores import NOW, Store, blob, certificate_record, patient

HOUR = timedelta(hours=1)


COPIES = 20_000


async def fill(database: Database, store: Store) -> None:
    """Insert many certificates, most expired, for 10 users in 10 clusters and 5 projects, and many revocations."""
    columns = (
        "epoch, groups, user_name, not_before, ca_id, key_type, key_origin, auth_method, source_address,"
        " request_id, issued_at, der"
    )
    later = "datetime(not_after, '-' || ({n} % 3000) || ' hours') || '.000000'"
    if store.file is None:
        later = "not_after - make_interval(hours => ({n} % 3000)::int)"
        fingerprint, number = "decode(lpad(to_hex({n}), 64, '0'), 'hex')", "n.i"
        named = "lpad(to_hex({n}), 40, '0')"
        numbers = f"generate_series(2, {COPIES}) AS n(i)"
    else:
        fingerprint, number = "CAST(printf('%032d', {n}) AS blob)", "n.i"
        named = "printf('%040x', {n})"
        numbers = (
            "(WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n"
            f" WHERE i < {COPIES}) SELECT i FROM n) AS n"
        )
    store.execute(
        "INSERT INTO certificate (fingerprint, serial, credential_number, cluster_id, user_id, project_id, not_after,"
        f" {columns}) SELECT {fingerprint}, 'serial-' || {{n}}, {named}, 'cluster-' || ({{n}} % 10),"
        " 'user-' || ({n} % 10), 'project-' || ({n} % 5),"
        f" {later}, {columns} FROM certificate, {numbers} ORDER BY {{n}}".replace("{n}", number)
    )
    store.execute(
        'INSERT INTO revocation (epoch, changed, user_id, cluster_id, at, "by", reason, proved)'
        " SELECT {n}, {n}, 'user-' || ({n} % 5000), '', not_before, 'cli:test', 'unspecified', false".replace(
            "{n}", number
        )
        + f" FROM certificate, {numbers} WHERE certificate.id = 1"
    )
    store.execute("ANALYZE")


async def test_a_list_of_one_project_does_not_walk_those_of_all(
    on_postgresql: Store,
) -> None:
    """The project's 2,000 rows lie in a range of ids with rows from all projects, which PostgreSQL underestimates."""
    database = patient(on_postgresql.url)
    record, issued = certificate_record()
    await Ledger(database).record(record, issued)
    await fill(database, on_postgresql)
    rows, plans = InventoryQueries(database, max_scanned=1000), QueryPlans(database, of="certificate")
    with plans.noted():
        for before in (None, COPIES // 2):
            for number in range(8):
                await rows.page(
                    CertificateFilter(project_id=f"project-{number % 5}"), NOW, limit=20, before=before
                )
    found = await plans.all()
    await database.close()
    assert len(found) == 16
    for plan in found:
        assert "ix_certificate_project_id_id" in plan, plan
        assert "pk_certificate" not in plan, plan


async def test_no_list_sorts_or_reads_the_whole_ledger(database: Database, store: Store) -> None:
    record, issued = certificate_record()
    await Ledger(database).record(replace(record, not_after=NOW + 100 * HOUR, der=b"der"), issued)
    await fill(database, store)
    filters = {
        "state": "live",
        "expires_before": NOW + 50 * HOUR,
        "expires_after": NOW - 50 * HOUR,
        "key_origin": "csr",
        "never_seen": True,
    }
    walks: list[dict[str, str]] = [
        {},
        {"user_id": "user-7"},
        {"cluster_id": "cluster-7"},
        {"project_id": "project-2"},
        {"project_id": "project-2", "cluster_id": "cluster-7", "user_id": "user-7"},
    ]
    rows, access = InventoryQueries(database, max_scanned=100), AccessQueries(database)
    plans = QueryPlans(database, of="certificate")
    with plans.noted():
        for walk in walks:
            for more in ({}, {"state": "revoked"}, filters):
                for before in (None, COPIES // 2):
                    await rows.page(CertificateFilter(**walk, **more), NOW, limit=20, before=before)  # type: ignore[arg-type] # names and values fit
        await rows.find("ab" * 32)
        await rows.find("abcdef01", abbreviated=True)
        await access.unexpired("cluster-7", NOW, limit=20)
    found = await plans.all()
    # Two queries per page, but one without filters. Credential numbers are looked up before serials and prefixes.
    assert len(found) == 2 * len(walks) * 6 - 4 * 2 + 5
    for plan, (statement, _) in zip(found, plans.sent, strict=True):
        for word in ("SCAN certificate", "TEMP B-TREE", "Seq Scan on certificate"):
            assert word not in plan, f"{statement}\n{plan}"
        # PostgreSQL may sort if it expects one or two rows. The range of ids limits their number.
        assert "Sort" not in plan or re.search(r"\(id >= |, id\) >= ROW\([^)]*'\d{3,}'::bigint", plan), (
            f"{statement}\n{plan}"
        )
    # The number of scanned rows is limited, however few match.
    page = await rows.page(CertificateFilter(expires_after=NOW + 5000 * HOUR), NOW, limit=100)
    assert page.next == COPIES - 100 + 1
    assert blob(store.rows("SELECT fingerprint FROM certificate WHERE id = 1")[0][0]) == record.fingerprint
