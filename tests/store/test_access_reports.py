"""Access reports: the database's counts and pages equal what follows from the certificates one by one."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from clustercert.certificates.access import AccessReport, AccessReports, CertificateAccess
from clustercert.model import Cluster, ClusterOptions
from clustercert.model.errors import InvalidRequest
from clustercert.model.kubernetes import AUTHENTICATED, MASTERS, VERIFIER
from clustercert.store.certificates.access_reports import MAX_GROUPS, AccessReportQueries, GroupTotals
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.lists import CertificateFilter, InventoryQueries
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.certificates.views import CertificateView
from clustercert.store.engine.database import Database
from support.large_inventory import fill
from support.samples import cluster
from support.statements import QueryPlans
from support.stores import NOW, Store, certificate_record, event, revocation

HOUR = timedelta(hours=1)
# Two people with one name, and one person with two.
PEOPLE = (("1", "anna"), ("2", "anna"), ("3", "Bob"), ("4", "carol_%"), ("4", "carol-new"), ("5", "Élodie"))
GROUPS = ((), ("edit",), ("edit", "view"), (MASTERS,), (AUTHENTICATED, 'a "quoted" group'), ("grün",))


@dataclass(frozen=True)
class Place:
    """A cluster whose API server calls the webhook, or does not, and its reports."""

    cluster: Cluster
    reports: AccessReports
    database: Database

    async def whole(
        self, *, user_id: str | None = None, group: str | None = None, search: str | None = None
    ) -> list[AccessReport]:
        """All pages, of at most two users each."""
        pages, after, more = list[AccessReport](), None, True
        while more:
            page = await self.reports.report(
                self.cluster, user_id=user_id, group=group, search=search, after=after, limit=2
            )
            assert len(page.users) <= 2
            pages.append(page)
            after, more = page.next, page.next is not None
        return pages


@pytest.fixture(params=["webhook", "binding", "nothing"])
async def place(database: Database, store: Store, request: pytest.FixtureRequest) -> Place:
    """Record certificates of all kinds in two clusters. Some are revoked, and some of these were used afterwards."""
    chance = random.Random(11)
    here = replace(
        cluster(), options=ClusterOptions(credential_roles={} if request.param == "binding" else None)
    )
    for number in range(60):
        record, issued = certificate_record()
        user_id, name = chance.choice(PEOPLE)
        is_verification = number % 15 == 0
        record = replace(
            record,
            cluster_id=here.id if number % 4 else "another",
            user_id=VERIFIER if is_verification else user_id,
            user_name=VERIFIER if is_verification else name,
            auth_method="cli" if is_verification else "oidc",
            groups=chance.choice(GROUPS),
            not_after=NOW + chance.randint(-2, 9) * HOUR,
        )
        await Ledger(database).record(record, issued)
        if number == 30:
            await RevocationQueries(database).revoke(revocation(user_id="3", cluster_id=here.id), event())
        if number % 3 == 0:
            await RevocationQueries(database).revoke(
                revocation(fingerprint=record.fingerprint, user_id=user_id, cluster_id=here.id), event()
            )
    for hours_ago, rest in ((1, 1), (30, 4)):
        store.execute(
            "UPDATE certificate SET revoked_at = ?, revoked_used_at = ? WHERE revoked_at IS NOT NULL AND id % 9 = ?",
            *(store.time(NOW - 40 * HOUR), store.time(NOW - hours_ago * HOUR), rest),
        )
    if request.param == "webhook":
        store.execute(
            "INSERT INTO webhook_token (id, cluster_id, hash, created_at, last_asked_at) VALUES ('t', ?, ?, ?, ?)",
            *(here.id, bytes(32), store.time(NOW), store.time(NOW)),
        )
    return Place(here, AccessReports(AccessReportQueries(database), lambda: NOW), database)


async def expected(place: Place) -> list[CertificateView]:
    """The cluster's unexpired certificates, without those of verifications."""
    found = await InventoryQueries(place.database).page(
        CertificateFilter(cluster=place.cluster.id), NOW, limit=1000
    )
    return [
        each
        for each in found.items
        if each.not_after > NOW and (not each.is_verification or each.used_after_revocation_at is not None)
    ]


def credentials(pages: Iterable[AccessReport]) -> list[CertificateAccess]:
    return [each for page in pages for user in page.users for each in user.credentials]


def groups_of(accesses: Iterable[CertificateAccess]) -> tuple[GroupTotals, ...]:
    """Count the groups of certificates that give access."""
    found: dict[str, list[CertificateView]] = {}
    for each in accesses:
        for group in {*each.groups} if each.end.has_access else ():
            found.setdefault(group, []).append(each.certificate)
    return tuple(
        GroupTotals(
            name,
            users=len({each.user_id for each in own}),
            credentials=len(own),
            last_seen_at=max((each.last_seen_at for each in own if each.last_seen_at), default=None),
        )
        for name, own in sorted(found.items())
    )


async def test_pages_and_counts_equal_the_certificates_one_by_one(place: Place) -> None:
    pages = await place.whole()
    accesses = credentials(pages)
    assert {each.certificate for each in accesses} == {*await expected(place)}
    users = [user for page in pages for user in page.users]
    assert len({user.totals.key for user in users}) == len(users) > 4
    for user in users:
        own = [each.certificate for each in user.credentials]
        assert {(each.user_name, each.user_id) for each in own} == {user.totals.key}
        assert [each.not_after for each in own] == sorted((each.not_after for each in own), reverse=True)
        open_to = [each.certificate.not_after for each in user.credentials if each.end.has_access]
        counted = user.totals.certificates, user.totals.with_access, user.totals.until
        assert counted == (len(own), len(open_to), max(open_to, default=None))
        assert user.groups == tuple(sorted({group for each in user.credentials for group in each.groups}))
    with_access = [each.certificate for each in accesses if each.end.has_access]
    assert {each.end.state for each in accesses} == {"live", "revoked"}
    # All pages have the same counts.
    for page in pages:
        totals = page.totals
        assert (totals.certificates, totals.with_access) == (len(accesses), len(with_access))
        assert totals.revoked == sum(each.end.state == "revoked" for each in accesses)
        assert totals.users == len({each.certificate.user_id for each in accesses})
        assert totals.users_with_access == len({each.user_id for each in with_access})
        assert page.groups == groups_of(accesses)
        assert page.complete
        assert {each.certificate.id for each in page.used_after_revocation} == {
            each.certificate.id for each in accesses if each.certificate.used_after_revocation_at is not None
        }
    assert pages[0].used_after_revocation


async def test_the_group_system_masters_is_reported_however_many_groups_there_are(database: Database) -> None:
    here = cluster()
    many = tuple(f"group-{number:03}" for number in range(MAX_GROUPS))
    for groups in (many, many, (MASTERS,)):
        record, issued = certificate_record()
        await Ledger(database).record(
            replace(record, cluster_id=here.id, groups=groups, not_after=NOW + HOUR), issued
        )
    reports = AccessReports(AccessReportQueries(database), lambda: NOW)
    found = {each.name: each.credentials for each in (await reports.report(here)).groups}
    assert len(found) == MAX_GROUPS + 1
    assert (found[MASTERS], found[AUTHENTICATED], found[many[0]]) == (1, 3, 2)


async def test_a_search_finds_parts_of_names_and_groups(place: Place) -> None:
    everything = await expected(place)
    for search in ("ANNA", "bob", "_%", "vie", '"quoted"', "system:", "nobody", "n", "Élo"):
        pages = await place.whole(search=search)
        wanted = {
            each
            for each in everything
            if any(search.lower() in name.lower() for name in (each.user_name, *each.groups))
        }
        assert {each.certificate for each in credentials(pages)} == wanted, search
        assert pages[0].totals.certificates == len(wanted), search


async def test_a_report_is_limited_to_a_user_or_a_group(place: Place) -> None:
    everything = await expected(place)
    for user_id in ("4", "nobody"):
        found = credentials(await place.whole(user_id=user_id))
        assert {each.certificate for each in found} == {
            each for each in everything if each.user_id == user_id
        }
    for group in ("edit", MASTERS, "edi", AUTHENTICATED):
        found = credentials(await place.whole(group=group))
        wanted = {each for each in everything if group in (*each.groups, AUTHENTICATED)}
        assert {each.certificate for each in found} == wanted


async def test_a_page_lists_ten_certificates_of_each_user_and_counts_all(
    database: Database, store: Store
) -> None:
    here = cluster()
    for number in range(12):
        record, issued = certificate_record()
        record = replace(record, cluster_id=here.id, user_id="robot", not_after=NOW + (number + 1) * HOUR)
        await Ledger(database).record(record, issued)
    reports = AccessReports(AccessReportQueries(database), lambda: NOW)
    report = await reports.report(here)
    (robot,) = report.users
    assert [each.certificate.not_after - NOW for each in robot.credentials] == [
        hours * HOUR for hours in range(12, 2, -1)
    ]
    assert (robot.totals.certificates, report.complete) == (12, False)
    report = await reports.report(here, user_id="robot")
    assert (len(report.users[0].credentials), report.complete) == (12, True)


async def test_a_cursor_of_a_deleted_certificate_is_refused(place: Place, store: Store) -> None:
    page = await place.reports.report(place.cluster, limit=1)
    store.execute("DELETE FROM certificate WHERE id = ?", page.next)
    with pytest.raises(InvalidRequest, match="Begin with the first page"):
        await place.reports.report(place.cluster, after=page.next)


async def test_a_report_reads_only_certificates_of_its_cluster(database: Database, store: Store) -> None:
    record, issued = certificate_record()
    await Ledger(database).record(replace(record, not_after=NOW + 100 * HOUR), issued)
    fill(store)
    plans = QueryPlans(database, of="certificate")
    reports = AccessReports(AccessReportQueries(database), lambda: NOW)
    with plans.noted():
        for search, group in ((None, None), (record.user_name, None), (None, record.groups[0])):
            report = await reports.report(replace(cluster(), id="cluster-7"), search=search, group=group)
            assert report.totals.certificates > 0
    found = await plans.all()
    assert len(found) == 3 * 6
    for plan, (statement, _) in zip(found, plans.sent, strict=True):
        for word in ("SCAN certificate", "Seq Scan on certificate"):
            assert word not in plan, f"{statement}\n{plan}"
