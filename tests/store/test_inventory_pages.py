"""Pages of a large inventory."""

import re
from dataclasses import replace
from datetime import timedelta

from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.lists import CertificateFilter, InventoryQueries
from clustercert.store.engine.database import Database
from support.large_inventory import COPIES, fill
from support.statements import QueryPlans
from support.stores import NOW, Store, blob, certificate_record, patient

HOUR = timedelta(hours=1)


async def test_a_list_of_one_project_does_not_walk_those_of_all(
    on_postgresql: Store,
) -> None:
    """The project's 2,000 rows lie in a range of ids with rows from all projects, which PostgreSQL underestimates."""
    database = patient(on_postgresql.url)
    record, issued = certificate_record()
    await Ledger(database).record(record, issued)
    fill(on_postgresql)
    rows, plans = InventoryQueries(database, max_scanned=1000), QueryPlans(database, of="certificate")
    with plans.noted():
        for before in (None, COPIES // 2):
            for number in range(8):
                await rows.page(
                    CertificateFilter(project=f"project-{number % 5}"), NOW, limit=20, before=before
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
    fill(store)
    filters = {
        "state": "live",
        "expires_after": NOW - 50 * HOUR,
        "key_origin": "csr",
        "never_seen": True,
    }
    walks: list[dict[str, str]] = [
        {},
        {"user": "user-7"},
        {"cluster": "cluster-7"},
        {"project": "project-2"},
        {"project": "project-2", "cluster": "cluster-7", "user": "user-7"},
    ]
    rows = InventoryQueries(database, max_scanned=100)
    plans = QueryPlans(database, of="certificate")
    with plans.noted():
        for walk in walks:
            for more in ({}, {"state": "revoked"}, filters):
                for before in (None, COPIES // 2):
                    await rows.page(CertificateFilter(**walk, **more), NOW, limit=20, before=before)  # type: ignore[arg-type] # names and values fit
        await rows.find("ab" * 32)
        await rows.find("abcdef01", abbreviated=True)
    found = await plans.all()
    # Two queries per page, but one without filters. Credential numbers are looked up before serials and prefixes.
    assert len(found) == 2 * len(walks) * 6 - 4 * 2 + 4
    for plan, (statement, _) in zip(found, plans.sent, strict=True):
        for word in ("SCAN certificate", "TEMP B-TREE", "Seq Scan on certificate"):
            assert word not in plan, f"{statement}\n{plan}"
        # PostgreSQL may sort if it expects one or two rows. The range of ids limits their number.
        assert "Sort" not in plan or re.search(r"\(id >= |, id\) >= ROW\([^)]*'\d{3,}'::bigint", plan), (
            f"{statement}\n{plan}"
        )
    # Lists of few certificates sort them, but read only their entries in an index.
    selective: list[dict[str, object]] = [
        {"state": "live", "expires_before": NOW + 50 * HOUR},
        {"revoked_use_after": NOW - HOUR},
        {"certificate": "abcdef01"},
        {"domain": "acme"},
    ]
    plans.sent.clear()
    with plans.noted():
        for each in selective:
            await rows.page(CertificateFilter(**each), NOW, limit=20)  # type: ignore[arg-type] # names and values fit
    found = await plans.all()
    assert len(found) >= len(selective)
    for plan, (statement, _) in zip(found, plans.sent, strict=True):
        for word in ("SCAN certificate", "Seq Scan on certificate"):
            assert word not in plan, f"{statement}\n{plan}"
    # The number of scanned rows is limited, however few match.
    page = await rows.page(CertificateFilter(expires_after=NOW + 5000 * HOUR), NOW, limit=100)
    assert page.next == COPIES - 100 + 1
    assert blob(store.rows("SELECT fingerprint FROM certificate WHERE id = 1")[0][0]) == record.fingerprint
