"""Lists of certificates equal a filter over all rows, at a cost that does not depend on their number."""

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from clustercert.certificates.access import AccessReports
from clustercert.certificates.list import Inventory
from clustercert.model import CertificateRecord, Cluster
from clustercert.model.kubernetes import CA_PROVER, VERIFIER
from clustercert.store.certificates.access_reports import AccessReportQueries
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.lists import MAX_SCANNED, CertificateFilter, InventoryQueries
from clustercert.store.certificates.revocations import CrlQueries, RevocationQueries
from clustercert.store.certificates.views import CertificateView
from clustercert.store.engine.database import Database
from support.samples import caller, client_ca, cluster
from support.stores import NOW, Store, certificate_record, event, revocation

HOUR = timedelta(hours=1)
REQUEST = "5" * 32
USERS = ("alice", "bob", "carol")
CLUSTERS = ("cluster-1", "cluster-2", "cluster-3")
PROJECTS = {"cluster-1": "project-1", "cluster-2": "project-1", "cluster-3": "project-2"}


async def issue(database: Database, chance: random.Random) -> CertificateRecord:
    record, issued = certificate_record()
    cluster = chance.choice(CLUSTERS)
    # Not random, because the filters by first digits must find some.
    fingerprint = chance.randbytes(32)
    record = replace(
        record,
        fingerprint=fingerprint,
        cluster_id=cluster,
        project_id=PROJECTS[cluster],
        user_id=chance.choice(USERS),
        key_origin=chance.choice(["generated", "csr"]),
        not_after=NOW + chance.randint(-3, 3) * HOUR,
        access_request_id=REQUEST if cluster == "cluster-2" else None,
    )
    await Ledger(database).record(record, replace(issued, subject=fingerprint.hex()))
    return record


@pytest.fixture
async def ledger(database: Database, store: Store) -> list[CertificateRecord]:
    """Record certificates of all kinds, oldest first. Some were used, and some revoked in each possible way."""
    chance = random.Random(7)
    records = [await issue(database, chance) for _ in range(30)]
    revoking = RevocationQueries(database)
    await revoking.revoke(
        revocation(user_id="alice", cluster_id="cluster-1", reason="keyCompromise"), event()
    )
    await revoking.revoke(revocation(cluster_id="cluster-3", reason="superseded"), event())
    records += [await issue(database, chance) for _ in range(30)]
    await revoking.revoke(revocation(user_id="bob", reason="affiliationChanged"), event())
    undone = await revoking.revoke(revocation(user_id="carol"), event())
    await revoking.undo(undone.id, by="cli:test", at=NOW, event=event())
    one = records[40]
    whose = {"user_id": one.user_id, "cluster_id": one.cluster_id}
    await revoking.revoke(
        revocation(fingerprint=one.fingerprint, reason="cessationOfOperation", **whose), event()
    )
    records += [await issue(database, chance) for _ in range(10)]
    for number, record in enumerate(records):
        if number % 3 == 0:
            store.execute(
                "UPDATE certificate SET first_seen_at = not_before, last_seen_at = not_after WHERE fingerprint = ?",
                record.fingerprint,
            )
        if number % 2 == 0:
            # Whether this was after the revocation depends on the certificate.
            store.execute(
                "UPDATE certificate SET revoked_used_at = not_after WHERE fingerprint = ?", record.fingerprint
            )
    return records


async def everything(database: Database) -> list[CertificateView]:
    page = await InventoryQueries(database).page(CertificateFilter(), NOW, limit=1000)
    assert page.next is None
    return list(page.items)


async def paged(queries: InventoryQueries, wanted: CertificateFilter, limit: int) -> list[CertificateView]:
    """Return all pages of a list."""
    found: list[CertificateView] = []
    before: int | None = None
    for _ in range(200):
        page = await queries.page(wanted, NOW, limit=limit, before=before)
        assert len(page.items) <= limit
        found += page.items
        if page.next is None:
            return found
        assert before is None or page.next < before
        before = page.next
    raise AssertionError("the list has no end")


async def test_a_list_has_what_was_recorded_newest_first(
    database: Database, ledger: list[CertificateRecord]
) -> None:
    listed = await everything(database)
    assert [each.fingerprint for each in listed] == [record.fingerprint for record in reversed(ledger)]
    newest, record = listed[0], ledger[-1]
    for name in CertificateRecord.__dataclass_fields__:
        if name != "der":
            assert getattr(newest, name) == getattr(record, name), name
    assert newest.der == b""


async def test_what_a_certificate_falls_under_is_said_of_it(
    database: Database, ledger: list[CertificateRecord]
) -> None:
    listed = {each.fingerprint: each for each in await everything(database)}
    for number, record in enumerate(ledger):
        found = listed[record.fingerprint]
        why = None
        if number == 40:
            why = "cessationOfOperation"
        elif number < 30 and (record.user_id, record.cluster_id) == ("alice", "cluster-1"):
            why = "keyCompromise"
        elif number < 60 and record.user_id == "bob":
            why = "affiliationChanged"
        elif number < 30 and record.cluster_id == "cluster-3":
            why = "superseded"
        assert found.revocation_reason == why
        assert (found.revoked_at, found.revoked_by) == ((NOW, "cli:test") if why else (None, None))
        expected = "revoked" if why else ("live" if record.not_after > NOW else "expired")
        assert found.state(NOW) == expected


FILTERS: dict[str, tuple[CertificateFilter, Callable[[CertificateView], bool]]] = {
    "nothing": (CertificateFilter(), lambda _: True),
    "user": (CertificateFilter(user="alice"), lambda it: it.user_id == "alice"),
    "cluster": (CertificateFilter(cluster="cluster-2"), lambda it: it.cluster_id == "cluster-2"),
    "project": (CertificateFilter(project="project-2"), lambda it: it.project_id == "project-2"),
    "user in a cluster": (
        CertificateFilter(user="bob", cluster="cluster-1"),
        lambda it: (it.user_id, it.cluster_id) == ("bob", "cluster-1"),
    ),
    "a cluster of another project": (
        CertificateFilter(project="project-1", cluster="cluster-3"),
        lambda _: False,
    ),
    "live": (CertificateFilter(state="live"), lambda it: it.state(NOW) == "live"),
    "revoked": (CertificateFilter(state="revoked"), lambda it: it.state(NOW) == "revoked"),
    "expired": (CertificateFilter(state="expired"), lambda it: it.state(NOW) == "expired"),
    "ends before": (CertificateFilter(expires_before=NOW + HOUR), lambda it: it.not_after < NOW + HOUR),
    "ends after": (CertificateFilter(expires_after=NOW + HOUR), lambda it: it.not_after >= NOW + HOUR),
    "key": (CertificateFilter(key_origin="csr"), lambda it: it.key_origin == "csr"),
    "access request": (
        CertificateFilter(access_request=REQUEST),
        lambda it: it.access_request_id == REQUEST,
    ),
    "never seen": (CertificateFilter(never_seen=True), lambda it: it.last_seen_at is None),
    "seen before": (
        CertificateFilter(seen_before=NOW),
        lambda it: it.last_seen_at is not None and it.last_seen_at < NOW,
    ),
    "seen after": (
        CertificateFilter(seen_after=NOW),
        lambda it: it.last_seen_at is not None and it.last_seen_at >= NOW,
    ),
    "first digits": (
        CertificateFilter(certificate="a"),
        lambda it: it.fingerprint.hex().startswith("a"),
    ),
    "first digits in a project": (
        CertificateFilter(certificate="a", project="project-2"),
        lambda it: it.fingerprint.hex().startswith("a") and it.project_id == "project-2",
    ),
    "used after revocation": (
        CertificateFilter(revoked_use_after=NOW - HOUR),
        lambda it: it.used_after_revocation_at is not None and it.used_after_revocation_at >= NOW - HOUR,
    ),
    "used after revocation by a user": (
        CertificateFilter(revoked_use_after=NOW - 9 * HOUR, user="bob"),
        lambda it: it.used_after_revocation_at is not None and it.user_id == "bob",
    ),
    "without the service's own": (
        CertificateFilter(without_own=True, project="project-1"),
        lambda it: it.project_id == "project-1",
    ),
    "live, ends before": (
        CertificateFilter(state="live", expires_before=NOW + 2 * HOUR),
        lambda it: it.state(NOW) == "live" and it.not_after < NOW + 2 * HOUR,
    ),
    "several": (
        CertificateFilter(
            project="project-1", state="live", key_origin="generated", expires_before=NOW + 3 * HOUR
        ),
        lambda it: (
            (it.project_id, it.state(NOW), it.key_origin) == ("project-1", "live", "generated")
            and it.not_after < NOW + 3 * HOUR
        ),
    ),
}


async def test_each_filter_gives_what_it_says_whatever_the_pages_are(
    database: Database, ledger: list[CertificateRecord]
) -> None:
    listed = await everything(database)
    assert len(listed) == len(ledger)
    for name, (wanted, fits) in FILTERS.items():
        expected = [each for each in listed if fits(each)]
        assert expected or name == "a cluster of another project"
        for max_scanned, limit in ((MAX_SCANNED, 500), (9, 4), (len(listed), 20)):
            found = await paged(InventoryQueries(database, max_scanned), wanted, limit)
            assert found == expected, (name, max_scanned, limit)


async def test_a_list_of_some_projects_has_only_their_certificates(
    database: Database, ledger: list[CertificateRecord]
) -> None:
    admin = caller(in_projects={"project-2": ("admin",), "project-1": ("member",)})
    own = [each for each in await everything(database) if each.project_id == "project-2"]
    for max_scanned in (MAX_SCANNED, 4):
        inventory = Inventory(
            InventoryQueries(database, max_scanned),
            Registered(),
            AccessReports(AccessReportQueries(database), lambda: NOW),
            lambda: NOW,
        )
        for wanted, fits in FILTERS.values():
            found, before, more = list[CertificateView](), None, True
            while more:
                page = await inventory.certificates_of_all_projects(admin, wanted, limit=3, before=before)
                found += page.items
                before, more = page.next, page.next is not None
                # The end of a page says nothing about certificates of other projects.
                assert not more or before in {each.id for each in own}
            assert found == [each for each in own if fits(each)]


async def test_a_page_that_looked_at_enough_ends_there_though_it_found_nothing(
    database: Database, ledger: list[CertificateRecord]
) -> None:
    page = await InventoryQueries(database, max_scanned=4).page(
        CertificateFilter(expires_after=NOW + 90 * HOUR), NOW, limit=9
    )
    assert (page.items, page.next) == ((), len(ledger) - 3)


class Registered:
    """The clusters of `PROJECTS`."""

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None:
        here = PROJECTS.get(cluster_id) == project_id
        return replace(cluster(), id=cluster_id, project_id=project_id) if here else None


async def test_where_a_projects_pages_end_says_nothing_of_others(
    database: Database, ledger: list[CertificateRecord]
) -> None:
    """A page that reached its limit of scanned rows ends at a certificate in the project, whatever the filter."""
    rows = InventoryQueries(database, max_scanned=2)
    inventory = Inventory(
        rows, Registered(), AccessReports(AccessReportQueries(database), lambda: NOW), lambda: NOW
    )
    admin = caller(in_projects={"project-1": ("admin",)})
    own = {each.id: each for each in await everything(database) if each.project_id == "project-1"}
    for wanted, fits in (
        (CertificateFilter(cluster="cluster-3"), lambda _: False),
        (CertificateFilter(cluster="cluster-2"), lambda it: it.cluster_id == "cluster-2"),
        (CertificateFilter(user="alice"), lambda it: it.user_id == "alice"),
        (CertificateFilter(user="nobody"), lambda _: False),
        (
            CertificateFilter(user="bob", cluster="cluster-1"),
            lambda it: (it.user_id, it.cluster_id) == ("bob", "cluster-1"),
        ),
    ):
        found, before, more = list[CertificateView](), None, True
        while more:
            page = await inventory.certificates_of_project(admin, "project-1", wanted, limit=3, before=before)
            found += page.items
            before, more = page.next, page.next is not None
            assert not more or before in own
        assert found == [each for each in own.values() if fits(each)]


async def test_one_is_found_by_fingerprint_number_serial_and_beginning(
    database: Database, ledger: list[CertificateRecord]
) -> None:
    rows, record = InventoryQueries(database), ledger[40]
    name = record.fingerprint.hex()
    for wanted in (name, record.credential_number, record.serial):
        (found,) = await rows.find(wanted)
        assert (found.fingerprint, found.der) == (record.fingerprint, record.der)
        assert found.revoked_at == NOW
        assert await rows.find(wanted, cluster_id=record.cluster_id) == (found,)
        assert await rows.find(wanted, cluster_id="another") == ()
    for digits in (8, 9, 63):
        (found,) = await rows.find(name[:digits], abbreviated=True)
        assert found.fingerprint == record.fingerprint
        assert await rows.find(name[:digits]) == ()
    assert await rows.find("0" * 64) == ()


async def test_a_number_names_its_certificate_before_another_ones_serial(database: Database) -> None:
    ledger, rows = Ledger(database), InventoryQueries(database)
    (record, issued), (other, other_issued) = certificate_record(), certificate_record()
    chosen = replace(other, serial=record.credential_number)
    await ledger.record(record, issued)
    await ledger.record(chosen, other_issued)
    (found,) = await rows.find(chosen.serial)
    assert found.fingerprint == record.fingerprint
    (found,) = await rows.find(chosen.serial, cluster_id=chosen.cluster_id)
    assert found.fingerprint == chosen.fingerprint


@pytest.mark.parametrize("groups", [("a", "b"), ()])
async def test_groups_are_those_without_the_credential_group(
    database: Database, groups: tuple[str, ...]
) -> None:
    record, issued = certificate_record()
    await Ledger(database).record(replace(record, groups=groups), issued)
    (listed,) = await InventoryQueries(database).find(record.fingerprint.hex())
    assert (listed.credential_number, listed.groups) == (record.credential_number, groups)
    assert listed.has_only_credential_group == (groups == ())


async def test_a_beginning_that_several_have_gives_two(database: Database, store: Store) -> None:
    for last in range(3):
        record, issued = certificate_record()
        fingerprint = bytes.fromhex("abcdef01") + bytes(27) + bytes([last])
        await Ledger(database).record(replace(record, fingerprint=fingerprint), issued)
    assert len(await InventoryQueries(database).find("abcdef01", abbreviated=True)) == 2


async def test_a_revocation_list_has_what_is_revoked_and_has_not_ended(
    database: Database, ledger: list[CertificateRecord], store: Store
) -> None:
    store.execute("UPDATE certificate SET ca_id = 'one' WHERE cluster_id = 'cluster-1'")
    store.execute("UPDATE certificate SET ca_id = 'two' WHERE id = 1 OR id = 3")
    ca = replace(client_ca(), id="one", cluster_id="cluster-1")
    rows, moment = CrlQueries(database), NOW - 9 * HOUR
    revoked = await rows.revoked(ca, moment, limit=100)
    expected = {
        (each.serial, NOW, each.revocation_reason)
        for each in await everything(database)
        if (each.cluster_id, each.ca_id) == ("cluster-1", "one")
        and each.state(moment) == "revoked"
        and each.not_after > moment
    }
    assert {(entry.serial, entry.revoked_at, entry.reason) for entry in revoked.entries} == expected
    assert len({why for _, _, why in expected}) > 1
    assert len((await rows.revoked(ca, moment, limit=2)).entries) == 2
    # Five revocations and an undoing.
    assert (revoked.generation, revoked.changed) == (6, 6)
    async with database.transaction(invalidate=True):
        pass
    later = await rows.revoked(ca, moment, limit=100)
    assert (later.generation, later.changed) == (7, await rows.last_change())
    assert await rows.authority("cluster-1", "one") is None


async def test_only_certificates_of_a_verification_are_left_out_of_access_reports(
    database: Database, store: Store
) -> None:
    """Neither the name alone, as a user of another identity system could have it, nor the method decides."""
    kinds = {
        (VERIFIER, "cli"): False,
        (CA_PROVER, "service"): False,
        (VERIFIER, "keystone"): True,
        (VERIFIER, "service"): True,
        ("alice", "cli"): True,
    }
    place, records = cluster(), {}
    for (user_id, method), is_shown in kinds.items():
        record, issued = certificate_record()
        record = replace(record, user_id=user_id, auth_method=method, user_name=VERIFIER, cluster_id=place.id)
        await Ledger(database).record(record, issued)
        records[record.fingerprint] = is_shown
    reports = AccessReports(AccessReportQueries(database), lambda: NOW)

    async def reported(*, with_verifications: bool = False) -> set[bytes]:
        report = await reports.report(place, with_verifications=with_verifications)
        assert report.totals.verifications == len(records) - sum(
            len(user.credentials) for user in report.users
        )
        return {each.certificate.fingerprint for user in report.users for each in user.credentials}

    assert await reported() == {each for each, is_shown in records.items() if is_shown}
    assert await reported(with_verifications=True) == set(records)
    found = await InventoryQueries(database).of_verifications(records.keys())
    assert found == {each for each, is_shown in records.items() if not is_shown}
    # A use after the revocation shows that revocations have no effect.
    hidden, _ = found
    store.execute(
        "UPDATE certificate SET revoked_at = '2026-03-14 15:00:00.000000',"
        " revoked_used_at = '2026-03-14 16:00:00.000000' WHERE fingerprint = ?",
        hidden,
    )
    assert await reported() == {each for each, is_shown in records.items() if is_shown} | {hidden}
