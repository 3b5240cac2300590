"""Access requests, on each database: many decisions at once, the end while certificates are issued, and kills."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from clustercert.model import Actor, CertificateRecord
from clustercert.model.access_requests import AccessDecision, AccessRequest
from clustercert.model.errors import Conflict, TooManyRequests
from clustercert.model.ids import new_id
from clustercert.requests import steps
from clustercert.store import access_requests, tables
from clustercert.store.access_requests import AccessRequestQueries, RequestFilter, Step
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.engine.database import Database
from support import programs
from support.access_requests import HOUR, ONE, access_request, store_request
from support.lock_waits import LockWaits
from support.paused_database import PausedDatabase
from support.samples import caller
from support.store_records import revoked
from support.stores import NOW, ORIGIN, Store, certificate_record, event, patient, revocation

ANY = RequestFilter()
END = steps.end(caller(), NOW, "over")


@pytest.fixture
async def queries(database: Database) -> AccessRequestQueries:
    return AccessRequestQueries(database)


@asynccontextmanager
async def paused(store: Store) -> AsyncIterator[PausedDatabase]:
    database = PausedDatabase(store.url)
    yield database
    await database.close()


def decide(by: str, *conditions: str, approves: bool = True) -> Step:
    decision = AccessDecision("access", by, by, NOW, approves, frozenset(conditions), "a reason")
    return steps.decide(decision, (ONE,), Actor(by, ORIGIN))


async def in_use(
    queries: AccessRequestQueries, certificates: int = 1
) -> tuple[AccessRequest, list[CertificateRecord]]:
    """An approved request with certificates."""
    request = await store_request(
        queries,
        access_request(state="approved", approved_at=NOW, claim_by=NOW + HOUR, conditions=()),
    )
    return request, [await issue(queries, request) for _ in range(certificates)]


async def issue(queries: AccessRequestQueries, request: AccessRequest) -> CertificateRecord:
    record, issued = certificate_record()
    record = replace(
        record,
        user_id=request.user_id,
        cluster_id=request.cluster_id,
        project_id=request.project_id,
        access_request_id=request.id,
        issued_at=NOW,
        not_after=NOW + timedelta(minutes=30),
    )
    claim = steps.claim(NOW, Actor(request.user_id, ORIGIN), lambda _: 2)
    await queries.record(record, replace(issued, subject=record.fingerprint.hex()), claim)
    return record


def kinds(store: Store) -> list[str]:
    return [str(each["kind"]) for each in store.events()]


async def test_a_hundred_decisions_at_once_give_one(
    queries: AccessRequestQueries, database: Database, store: Store
) -> None:
    other = AccessRequestQueries(patient(store.url))
    request = await store_request(queries, access_request(conditions=(ONE,)))
    each = [(number % 2, f"approver-{number // 4}", number % 8 < 6) for number in range(100)]
    outcomes = await asyncio.gather(
        *(
            (queries, other)[process].change(request.id, decide(by, ONE, approves=approves))
            for process, by, approves in each
        ),
        return_exceptions=True,
    )
    await other._database.close()
    done = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome not in done)
    assert [is_changed for _, is_changed in done].count(True) == 1
    stored = await queries.find(request.id, ANY)
    assert stored is not None
    assert len(stored.decisions) == 1
    assert {after for after, _ in done} == {stored}
    [decided] = kinds(store)[1:]
    assert decided == f"access_request.{stored.state}"


async def test_many_requests_at_once_are_used_before_their_approval_only_as_often_as_allowed(
    queries: AccessRequestQueries, store: Store
) -> None:
    other = AccessRequestQueries(patient(store.url))
    first = access_request(before_approval=True)

    async def use_and_end(by: AccessRequestQueries) -> None:
        for _ in range(4):
            with contextlib.suppress(Conflict):
                request = await store_request(by, replace(first, id=new_id()))
                try:
                    await issue(by, request)
                finally:
                    await by.change(request.id, END)

    await asyncio.gather(*(use_and_end((queries, other)[number % 2]) for number in range(6)))
    await other._database.close()
    used = [each for each in await queries.page(ANY, limit=100) if each.started_at is not None]
    assert len(used) == 2
    assert (await queries.counts(NOW)).most_early_uses == 2
    assert (await queries.counts(NOW + timedelta(days=1))).most_early_uses == 0


async def test_the_most_uses_of_one_user_are_counted_over_all_clusters(queries: AccessRequestQueries) -> None:
    assert (await queries.counts(NOW)).most_early_uses == 0
    for user, uses in (("anna", 3), ("ben", 2)):
        for _ in range(uses):
            await issue(
                queries, await store_request(queries, access_request(user_id=user, before_approval=True))
            )
    assert (await queries.counts(NOW)).most_early_uses == 3
    [newest] = [each for each in await queries.page(ANY, limit=9) if each.user_id == "anna"][:1]
    await queries.change(newest.id, decide("carla", ONE))
    assert (await queries.counts(NOW)).most_early_uses == 2


async def test_a_late_denial_forbids_early_use_although_old_requests_are_pruned(
    queries: AccessRequestQueries,
) -> None:
    """Approvers may deny long after the end, and the denial counts from then on."""
    request = await store_request(queries, access_request(before_approval=True))
    await issue(queries, request)
    await queries.change(request.id, END)
    at = NOW + timedelta(days=90)
    denial = AccessDecision("access", "carla", "carla", at, False, frozenset({ONE}), "a reason")
    await queries.change(request.id, steps.decide(denial, (ONE,), Actor("carla", ORIGIN)))
    for closed_before, count in ((at, 0), (at + timedelta(seconds=1), 1)):
        assert await queries.count_closed(closed_before) == count
        assert await queries.prune(closed_before, lambda _: event()) == count


async def test_equal_requests_at_the_same_time_give_one(queries: AccessRequestQueries, store: Store) -> None:
    other = AccessRequestQueries(patient(store.url))
    first = access_request()

    async def create(by: AccessRequestQueries, number: int) -> tuple[str, bool]:
        asked = replace(first, id=f"{number:032x}")
        while True:
            try:
                made, is_new = await by.create(asked, event(), since=NOW - HOUR, most=100)
            except Conflict:
                # As the use case does.
                continue
            return made.id, is_new

    made = await asyncio.gather(*(create((queries, other)[number % 2], number) for number in range(20)))
    await other._database.close()
    assert len({request_id for request_id, _ in made}) == 1
    assert Counter(is_new for _, is_new in made) == {True: 1, False: 19}
    assert store.rows("SELECT count(*) FROM access_request") == [(1,)]
    assert len(store.events()) == 1


async def test_a_user_creates_a_limited_number_of_requests(queries: AccessRequestQueries) -> None:
    request = access_request()
    for number in range(4):
        asked = replace(request, id=f"{number:032x}", cluster_id=f"cluster-{number}")
        if number == 3:
            with pytest.raises(TooManyRequests, match="3 access requests since"):
                await queries.create(asked, event(), since=NOW - HOUR, most=3)
        else:
            await queries.create(asked, event(), since=NOW - HOUR, most=3)
    await queries.create(replace(request, id="f" * 32, cluster_id="x"), event(), since=NOW, most=3)


async def test_the_end_revokes_what_was_recorded_before_it(
    queries: AccessRequestQueries, database: Database, store: Store
) -> None:
    """A certificate is about to be committed when somebody ends the request."""
    request, [earlier] = await in_use(queries)
    waits = LockWaits(database, store)
    async with paused(store) as other:
        issuing = asyncio.create_task(issue(AccessRequestQueries(other), request))
        await other.inside.wait()
        ending = asyncio.create_task(queries.change(request.id, END))
        await waits.begun(ending)
        other.go_on.set()
        record = await issuing
        ended, _ = await ending
    assert ended.state == "ended"
    assert [await revoked(database, each) for each in (earlier, record)] == [True, True]
    [*_, last] = store.events()
    assert (last["kind"], last["detail"]["certificates"]) == ("access_request.ended", 2)  # type: ignore[index] # JSON


async def test_no_certificate_is_recorded_after_the_end(
    queries: AccessRequestQueries, database: Database, store: Store
) -> None:
    """The request ends while a certificate is being recorded."""
    request, [earlier] = await in_use(queries)
    waits = LockWaits(database, store)
    async with paused(store) as other:
        ending = asyncio.create_task(AccessRequestQueries(other).change(request.id, END))
        await other.inside.wait()
        issuing = asyncio.create_task(issue(queries, request))
        await waits.begun(issuing)
        other.go_on.set()
        await ending
        with pytest.raises(Conflict, match="it is ended"):
            await issuing
    assert store.rows("SELECT count(*) FROM certificate") == [(1,)]
    assert await revoked(database, earlier)


async def test_the_end_and_reports_of_use_lock_certificates_in_one_order(on_postgresql: Store) -> None:
    database, other = patient(on_postgresql.url), patient(on_postgresql.url)
    queries = AccessRequestQueries(database)
    request, _ = await in_use(queries, 2)
    # Neither the table nor the index of fingerprints has the rows in the order of their ids.
    for row, fingerprint in ((2, bytes(32)), (1, b"x" * 32)):
        on_postgresql.execute("UPDATE certificate SET fingerprint = ? WHERE id = ?", fingerprint, row)
    waits = LockWaits(database, on_postgresql)
    seen = update(tables.certificate).values(last_seen_at=NOW)
    async with other.transaction() as connection:
        await connection.execute(seen.where(tables.certificate.c.id == 1))
        ending = asyncio.create_task(queries.change(request.id, END))
        await waits.begun(ending)
        await connection.execute(seen.where(tables.certificate.c.id == 2))
    await ending
    query = "SELECT count(*) FROM certificate WHERE revoked_at IS NOT NULL AND last_seen_at IS NOT NULL"
    assert on_postgresql.rows(query) == [(2,)]
    for each in (database, other):
        await each.close()


@pytest.mark.parametrize("is_undone_first", [True, False])
async def test_an_undone_revocation_does_not_revive_a_certificate_of_an_ended_request(
    queries: AccessRequestQueries, database: Database, store: Store, *, is_undone_first: bool
) -> None:
    """Somebody undoes the certificate's own revocation at the moment of the end."""
    request, [record] = await in_use(queries)
    made = await RevocationQueries(database).revoke(revocation(fingerprint=record.fingerprint), event())
    waits = LockWaits(database, store)

    async def undo(by: Database) -> object:
        return await RevocationQueries(by).undo(made.id, by="cli:test", at=NOW, event=event())

    async def end(by: Database) -> object:
        return await AccessRequestQueries(by).change(request.id, END)

    first, second = (undo, end) if is_undone_first else (end, undo)
    async with paused(store) as other:
        earlier = asyncio.create_task(first(other))
        await other.inside.wait()
        later = asyncio.create_task(second(database))
        await waits.begun(later)
        other.go_on.set()
        await earlier
        if is_undone_first:
            await later
        else:
            with pytest.raises(Conflict, match="access request that has ended"):
                await later
    assert await revoked(database, record)


async def test_a_deleted_request_does_not_let_its_certificates_be_revived(
    queries: AccessRequestQueries, database: Database
) -> None:
    """`db prune` deletes requests by their end, which can be long before the end of a revoked certificate."""
    request, [record] = await in_use(queries)
    await queries.change(request.id, END)
    assert await queries.prune(NOW + timedelta(minutes=1), lambda _: event()) == 1
    [own] = await RevocationQueries(database).revocations_of_certificate(record.fingerprint)
    with pytest.raises(Conflict, match="access request that has ended"):
        await RevocationQueries(database).undo(own.id, by="cli:test", at=NOW, event=event())
    assert await revoked(database, record)


async def test_a_revocation_of_the_user_that_is_undone_revives_nothing(
    queries: AccessRequestQueries, database: Database
) -> None:
    request, [record] = await in_use(queries)
    everywhere = await RevocationQueries(database).revoke(revocation(user_id=request.user_id), event())
    await queries.change(request.id, END)
    await RevocationQueries(database).undo(everywhere.id, by="cli:test", at=NOW, event=event())
    assert await revoked(database, record)
    own = await RevocationQueries(database).revocations_of_certificate(record.fingerprint)
    assert [(each.reason, each.by) for each in own] == [("cessationOfOperation", caller().user.id)]
    with pytest.raises(Conflict, match="access request that has ended"):
        await RevocationQueries(database).undo(own[0].id, by="cli:test", at=NOW, event=event())


async def test_issuing_and_ending_at_full_speed_leave_no_live_certificate(
    queries: AccessRequestQueries, store: Store
) -> None:
    """Two processes issue with ten requests while both end these requests."""
    other = AccessRequestQueries(patient(store.url))
    requests = [(await in_use(queries))[0] for _ in range(10)]

    async def issue_until_refused(by: AccessRequestQueries, request: AccessRequest) -> None:
        with contextlib.suppress(Conflict):
            while True:
                await issue(by, request)

    async def end(request: AccessRequest, number: int) -> None:
        await asyncio.sleep(0.01 * number)
        await asyncio.gather(*(each.change(request.id, END) for each in (queries, other)))

    both: Sequence[Callable[[], AccessRequestQueries]] = (lambda: queries, lambda: other)
    await asyncio.gather(
        *(issue_until_refused(each(), request) for each in both for request in requests),
        *(end(request, number) for number, request in enumerate(requests)),
    )
    await other._database.close()
    assert store.rows("SELECT count(*) FROM certificate WHERE revoked_at IS NULL") == [(0,)]
    assert Counter(kinds(store))["access_request.ended"] == 10
    revocations = store.rows("SELECT count(*), count(DISTINCT fingerprint) FROM revocation")
    assert revocations == store.rows("SELECT count(*), count(*) FROM certificate")


async def test_a_request_has_a_limited_number_of_valid_certificates(
    queries: AccessRequestQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_requests, "MAX_LIVE", 2)
    request, [first, _] = await in_use(queries, 2)
    with pytest.raises(Conflict, match="has 2 valid certificates"):
        await issue(queries, request)
    await RevocationQueries(queries._database).revoke(revocation(fingerprint=first.fingerprint), event())
    await issue(queries, request)


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("step", ["create", "approve", "issue", "end"])
async def test_a_step_that_is_killed_anywhere_is_all_there_or_not_at_all(store: Store, step: str) -> None:
    database = patient(store.url)
    queries = AccessRequestQueries(database)
    if step == "end":
        request, _ = await in_use(queries, 2)
    else:
        request = access_request(user_id="5" * 32)
        if step != "create":
            await store_request(queries, request)
        if step == "issue":
            await queries.change(request.id, decide("anna", ONE))
    await database.close()
    before = trace(store)
    # The process forks, and the forks must not share connections to a server.
    ended = await asyncio.to_thread(programs.run, "killed_access_requests", step, store.url, request.id)
    assert ended.returncode == 0, ended.stderr
    killed = int(ended.stdout)
    assert killed >= 3
    *interrupted, after = [trace(Store(f"{store.url}_{number}")) for number in range(1, killed + 2)]
    assert interrupted == [before] * killed
    assert after != before
    new_events = after[-1][len(before[-1]) :]
    assert (
        new_events
        == {
            "create": ["access_request.created"],
            "approve": ["access_request.approved"],
            "issue": ["access_request.started", "certificate.issued"],
            "end": ["certificate.revoked", "certificate.revoked", "access_request.ended"],
        }[step]
    )


def trace(store: Store) -> tuple[list[tuple[object, ...]] | list[str], ...]:
    """Return all data that steps write."""
    return (
        store.rows("SELECT state, approved_at, started_at, ends_at, closed_at FROM access_request"),
        store.rows('SELECT "by", approves FROM access_decision'),
        store.rows("SELECT access_request_id, revoked_why FROM certificate"),
        store.rows("SELECT user_id FROM revocation"),
        kinds(store),
    )
