"""What is revoked and what is not, on each database, whoever comes at the same moment and wherever one is killed."""

import asyncio
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event as engine_events
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.errors import Conflict, NotFound
from clustercert.model import AuditEvent, CertificateRecord, Revocation
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.directory import DirectoryRows
from clustercert.store.ledger import Ledger
from clustercert.store.revocations import NO_END, Revocations, is_revoked
from stores import NOW, Store, certificate_record, event, revocation

# Long enough for the second one to come to where it waits.
A_MOMENT = 0.1
LATER = NOW + timedelta(minutes=1)


async def issue(database: Database, user_id: str, cluster_id: str) -> CertificateRecord:
    record, issued = certificate_record()
    record = replace(record, user_id=user_id, cluster_id=cluster_id)
    await Ledger(database).record(record, issued)
    return record


async def revoked(database: Database, record: CertificateRecord) -> bool:
    query = select(is_revoked()).where(tables.certificate.c.fingerprint == record.fingerprint)
    async with database.read() as connection:
        return bool((await connection.execute(query)).scalar_one())


async def undo(database: Database, made: Revocation) -> Revocation:
    return await Revocations(database).undo(
        made.id, by="cli:other", at=LATER, event=event("revocation.undone")
    )


def cluster_id() -> str:
    return str(uuid.uuid4())


def user_id() -> str:
    return uuid.uuid4().hex


async def new_user(database: Database) -> str:
    """A user in a domain of their own."""
    domain, user = uuid.uuid4().hex, user_id()
    async with database.write() as connection:
        await connection.execute(insert(tables.domain).values(id=domain, name=domain, enabled=True))
        row = {"id": user, "domain_id": domain, "name": user, "enabled": True, "created_at": NOW}
        await connection.execute(insert(tables.user).values(row))
    return user


async def test_a_revocation_covers_who_and_where_it_says_and_what_was_before_until_it_is_undone(
    database: Database,
) -> None:
    alice, bob, here, there = user_id(), user_id(), cluster_id(), cluster_id()
    places = [(user, cluster) for user in (alice, bob) for cluster in (here, there)]
    covered = {
        ("", here): [(alice, here), (bob, here)],
        (alice, ""): [(alice, here), (alice, there)],
        (bob, there): [(bob, there)],
    }
    for (user, cluster), expected in covered.items():
        before = {place: await issue(database, *place) for place in places}
        made = await Revocations(database).revoke(revocation(user_id=user, cluster_id=cluster), event())
        after = {place: await issue(database, *place) for place in places}
        assert [place for place in places if await revoked(database, before[place])] == expected
        assert [place for place in places if await revoked(database, after[place])] == []
        await undo(database, made)
        assert [place for place in places if await revoked(database, before[place])] == []


async def test_one_certificate_is_revoked_and_its_row_says_so(database: Database, store: Store) -> None:
    alice, here = user_id(), cluster_id()
    one, other = [await issue(database, alice, here) for _ in range(2)]
    wanted = revocation(fingerprint=one.fingerprint, user_id=alice, cluster_id=here)
    made = await Revocations(database).revoke(wanted, event("certificate.revoked", one.fingerprint.hex()))

    assert (await revoked(database, one), await revoked(database, other)) == (True, False)
    assert made == replace(wanted, id=made.id, epoch=1)
    query = "SELECT revoked_at, revoked_by, revoked_why FROM certificate WHERE fingerprint = ?"
    assert store.rows(query, one.fingerprint) == [(store.time(NOW), "cli:test", "superseded")]
    assert store.rows(query, other.fingerprint) == [(None, None, None)]
    assert [said["kind"] for said in store.events()][2:] == ["certificate.revoked"]
    assert store.rows("SELECT value FROM generation") == [(1,)]

    undone = await undo(database, made)
    assert undone == replace(made, undone_at=LATER, undone_by="cli:other")
    assert not await revoked(database, one)
    assert store.rows(query, one.fingerprint) == [(None, None, None)]
    assert store.rows("SELECT epoch, changed FROM revocation") == [(1, 2)]
    assert await Revocations(database).revocation(made.id) == undone


async def test_single_revocations_of_a_user_revoke_nothing_else_of_theirs(database: Database) -> None:
    """They stand in the same index as those of all that a user has."""
    alice, here = user_id(), cluster_id()
    first, second = [await issue(database, alice, here) for _ in range(2)]
    for place in ((alice, here), (alice, ""), ("", here)):
        wanted = revocation(fingerprint=first.fingerprint, user_id=place[0], cluster_id=place[1])
        await Revocations(database).revoke(wanted, event())
    assert not await revoked(database, second)


async def test_what_two_revocations_hold_stays_revoked_when_one_is_undone(
    database: Database, store: Store
) -> None:
    alice, here = user_id(), cluster_id()
    one = await issue(database, alice, here)
    single = revocation(fingerprint=one.fingerprint, user_id=alice, cluster_id=here)
    rows = Revocations(database)
    first = await rows.revoke(single, event())
    second = await rows.revoke(replace(single, reason="keyCompromise", by="holder", proved=True), event())
    assert [each.id for each in await rows.of_certificate(one.fingerprint)] == [second.id, first.id]
    await undo(database, first)
    assert await revoked(database, one)
    assert store.rows("SELECT revoked_by, revoked_why FROM certificate") == [("holder", "keyCompromise")]


async def test_an_undone_or_missing_one_can_not_be_undone(database: Database, store: Store) -> None:
    made = await Revocations(database).revoke(revocation(user_id=user_id()), event())
    await undo(database, made)
    kept = store.rows("SELECT * FROM revocation"), store.rows("SELECT * FROM audit_event")
    with pytest.raises(Conflict, match="already"):
        await undo(database, made)
    with pytest.raises(NotFound):
        await undo(database, replace(made, id=made.id + 1))
    assert (store.rows("SELECT * FROM revocation"), store.rows("SELECT * FROM audit_event")) == kept
    assert store.rows("SELECT value FROM generation") == [(2,)]


async def test_certificates_are_found_by_fingerprint_or_serial(database: Database) -> None:
    one, other = [await issue(database, user_id(), cluster_id()) for _ in range(2)]
    rows = Revocations(database)
    for wanted in (one.fingerprint.hex(), one.serial):
        [found] = await rows.find(wanted)
        assert (found.fingerprint, found.der, found.revoked) == (one.fingerprint, one.der, False)
        assert (found.user_id, found.cluster_id) == (one.user_id, one.cluster_id)
        assert await rows.find(wanted, cluster_id=one.cluster_id) == (found,)
        assert await rows.find(wanted, cluster_id=other.cluster_id) == ()
    await rows.revoke(revocation(user_id=one.user_id), event())
    [found] = await rows.find(one.serial)
    assert (found.revoked, found.revoked_at) == (True, None)


async def test_lists_are_pages_the_newest_first(database: Database) -> None:
    alice, here, project = user_id(), cluster_id(), uuid.uuid4().hex
    rows = Revocations(database)
    one = await issue(database, alice, here)
    in_project = replace(revocation(cluster_id=here), project_id=project)
    made = [
        await rows.revoke(wanted, event())
        for wanted in (
            replace(in_project, user_id=alice),
            in_project,
            replace(in_project, user_id=alice, fingerprint=one.fingerprint),
        )
    ]
    everywhere = await rows.revoke(revocation(user_id=alice), event())
    await rows.revoke(replace(in_project, cluster_id=cluster_id()), event())
    await rows.revoke(replace(in_project, project_id=uuid.uuid4().hex), event())
    assert await rows.of_cluster(project, here, limit=9) == tuple(reversed(made))
    assert await rows.of_cluster(project, here, limit=2) == (made[2], made[1])
    assert await rows.of_cluster(project, here, limit=2, before=made[1].id) == (made[0],)
    assert await rows.of_user(alice, limit=9) == (everywhere,)
    assert await rows.of_user(alice, limit=9, before=everywhere.id) == ()


@pytest.mark.parametrize("what", ["disabled", "removed", "disabled, then removed"])
async def test_a_user_who_goes_loses_what_they_have_and_what_is_issued_meanwhile(
    database: Database, store: Store, what: str
) -> None:
    """A worker may take the user for an enabled one for a second more."""
    alice, here = await new_user(database), cluster_id()
    bobs = await issue(database, user_id(), here)
    before = await issue(database, alice, here)
    directory = DirectoryRows(database)
    if "disabled" in what:
        await directory.enable_user(alice, False, event("user.disabled"), event("user.revoked"))
    if "removed" in what:
        await directory.remove_user(alice, event("user.removed"), event("user.revoked"))
    meanwhile = await issue(database, alice, here)
    assert [await revoked(database, each) for each in (before, meanwhile, bobs)] == [True, True, False]
    [standing] = await Revocations(database).of_user(alice, limit=9)
    assert (standing.epoch, standing.reason, standing.by) == (NO_END, "cessationOfOperation", "cli:test")
    with pytest.raises(Conflict, match="Enable the user"):
        await undo(database, standing)
    kinds = [said["kind"] for said in store.events()]
    assert kinds.count("user.revoked") == len(what.split(", "))


async def test_a_user_who_is_enabled_again_gets_good_ones_and_none_back(
    database: Database, store: Store
) -> None:
    alice, here, directory = await new_user(database), cluster_id(), DirectoryRows(database)
    lost = [await issue(database, alice, here)]
    for _ in range(2):
        await directory.enable_user(alice, False, event(), event())
        lost.append(await issue(database, alice, here))
        await directory.enable_user(alice, True, event())
        lost_now = await issue(database, alice, here)
        assert not await revoked(database, lost_now)
        assert [await revoked(database, each) for each in lost] == [True] * len(lost)
        lost.append(lost_now)
    assert store.rows("SELECT count(*) FROM revocation WHERE epoch < ? AND epoch = changed", NO_END) == [(2,)]


async def test_enabling_the_enabled_and_disabling_the_disabled_changes_nothing_more(
    database: Database,
) -> None:
    alice, here, directory = await new_user(database), cluster_id(), DirectoryRows(database)
    good = await issue(database, alice, here)
    await directory.enable_user(alice, True, event())
    assert not await revoked(database, good)
    for _ in range(2):
        await directory.enable_user(alice, False, event(), event())
    assert len(await Revocations(database).of_user(alice, limit=9)) == 1
    with pytest.raises(NotFound):
        await directory.enable_user(user_id(), False, event(), event())


# --- any history ---------------------------------------------------------------------------------------------------

USERS, CLUSTERS = 2, 2
FOREVER = float("inf")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("issue"), st.integers(0, USERS - 1), st.integers(0, CLUSTERS - 1)),
        st.tuples(st.just("revoke"), st.integers(-1, USERS - 1), st.integers(-1, CLUSTERS - 1)),
        st.tuples(st.just("single"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("undo"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("enable"), st.integers(0, USERS - 1), st.integers(0, 1)),
    ),
    min_size=8,
    max_size=24,
)


@dataclass
class History:
    """What happened, and by plain words what must be revoked: whatever is older than a standing revocation of it.

    Attributes:
        issued: user, cluster and moment of each certificate.
        standing: user or None, cluster or None, certificate or None, moment; infinite while the user is disabled.
    """

    issued: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    standing: dict[int, tuple[int | None, int | None, bytes | None, float]] = field(default_factory=dict)
    disabled: set[int] = field(default_factory=set)
    moment: int = 0

    def enable(self, user: int, enabled: bool, newest: int) -> None:
        """`newest`: the revocation that disabling the user made, if it did."""
        if enabled and user in self.disabled:
            for number, (who, where, single, until) in self.standing.items():
                if (who, until) == (user, FOREVER):
                    self.standing[number] = (who, where, single, self.moment)
            self.disabled.discard(user)
        elif not enabled and user not in self.disabled:
            self.standing[newest] = (user, None, None, FOREVER)
            self.disabled.add(user)

    def revoked(self) -> set[bytes]:
        return {
            fingerprint
            for fingerprint, (user, cluster, moment) in self.issued.items()
            for by_user, by_cluster, single, until in self.standing.values()
            if (
                fingerprint == single
                if single is not None
                else by_user in (None, user) and by_cluster in (None, cluster) and moment < until
            )
        }


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(steps=STEPS)
def test_any_history_revokes_what_is_older_than_a_standing_revocation(
    store: Store, steps: list[tuple[str, int, int]]
) -> None:
    asyncio.run(_lived_through(store, steps))


async def _lived_through(store: Store, steps: list[tuple[str, int, int]]) -> None:
    database = Database(store.url)
    users = [await new_user(database) for _ in range(USERS)]
    clusters = [cluster_id() for _ in range(CLUSTERS)]
    history = History()
    try:
        for step in steps:
            history.moment += 1
            await _one_step(database, users, clusters, history, step)
        found = {
            fingerprint
            for fingerprint in history.issued
            if (await Revocations(database).find(fingerprint.hex()))[0].revoked
        }
        assert found == history.revoked()
    finally:
        await database.close()


async def _one_step(
    database: Database, users: list[str], clusters: list[str], history: History, step: tuple[str, int, int]
) -> None:
    what, first, second = step
    rows, now = Revocations(database), history.moment
    if what == "issue":
        record = await issue(database, users[first], clusters[second])
        history.issued[record.fingerprint] = (first, second, now)
    elif what == "revoke" and (first, second) != (-1, -1):
        who, where = (first if first >= 0 else None), (second if second >= 0 else None)
        user, cluster = ("" if who is None else users[who]), ("" if where is None else clusters[where])
        made = await rows.revoke(revocation(user_id=user, cluster_id=cluster), event())
        history.standing[made.id] = (who, where, None, now)
    elif what == "single" and history.issued:
        fingerprint = list(history.issued)[first % len(history.issued)]
        who, where, _ = history.issued[fingerprint]
        wanted = revocation(fingerprint=fingerprint, user_id=users[who], cluster_id=clusters[where])
        made = await rows.revoke(wanted, event())
        history.standing[made.id] = (None, None, fingerprint, now)
    elif what == "undo" and history.standing:
        number = list(history.standing)[first % len(history.standing)]
        if history.standing[number][3] != FOREVER:
            await rows.undo(number, by="cli:test", at=NOW, event=event())
            del history.standing[number]
    elif what == "enable":
        await DirectoryRows(database).enable_user(users[first], bool(second), event())
        [*newest] = await rows.of_user(users[first], limit=1)
        history.enable(first, bool(second), newest[0].id if newest else 0)


# --- at the same moment --------------------------------------------------------------------------------------------


class Paused(Database):
    """One whose next transaction stays open, everything done, until it is told to go on."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.inside, self.go_on = asyncio.Event(), asyncio.Event()

    def let_go(self) -> None:
        self.go_on.set()

    @asynccontextmanager
    async def write(self, *events: AuditEvent) -> AsyncIterator[AsyncConnection]:
        async with super().write(*events) as connection:
            yield connection
            self.inside.set()
            await self.go_on.wait()


class PausedInserts(Database):
    """One whose next mass insert into an SQLite file stays open, everything done, until it is told to go on."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.inside, self._proceed = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()
        engine_events.listen(self.inserting_engine, "commit", self._wait)

    def let_go(self) -> None:
        self._proceed.set()

    def _wait(self, _connection: object) -> None:
        """Runs in the thread that inserts."""
        self._loop.call_soon_threadsafe(self.inside.set)
        assert self._proceed.wait(10)


async def test_what_is_being_recorded_when_a_revocation_comes_is_revoked(
    database: Database, store: Store
) -> None:
    """It may be answered after the revocation, but it was asked for before."""
    alice, here = user_id(), cluster_id()
    other = PausedInserts(store.url) if store.file is not None else Paused(store.url)
    issuing = asyncio.create_task(issue(other, alice, here))
    await other.inside.wait()
    revoking = asyncio.create_task(
        Revocations(database).revoke(revocation(user_id=alice, cluster_id=here), event())
    )
    await asyncio.sleep(A_MOMENT)
    # SQLite has one writer at a time; PostgreSQL revokes what it can't see yet.
    assert revoking.done() == (store.file is None)
    other.let_go()
    record = await issuing
    await revoking
    assert await revoked(database, record)
    assert not await revoked(database, await issue(database, alice, here))
    await other.close()


async def test_what_is_recorded_while_a_revocation_is_under_way_is_on_one_side_of_it(
    database: Database, store: Store
) -> None:
    alice, here = user_id(), cluster_id()
    other = Paused(store.url)
    revoking = asyncio.create_task(
        Revocations(other).revoke(revocation(user_id=alice, cluster_id=here), event())
    )
    await other.inside.wait()
    issuing = asyncio.create_task(issue(database, alice, here))
    await asyncio.sleep(A_MOMENT)
    was_first = issuing.done()
    assert was_first == (store.file is None)
    other.go_on.set()
    await revoking
    # PostgreSQL lets nobody wait: what was recorded before the revocation's commit is revoked by it.
    assert await revoked(database, await issuing) == was_first
    await other.close()


async def test_revocations_wait_for_one_another_and_each_makes_its_own_epoch(
    database: Database, store: Store
) -> None:
    other = Database(store.url)
    made = await asyncio.gather(
        *(
            Revocations(each).revoke(revocation(user_id=user_id()), event())
            for each in (database, other)
            for _ in range(10)
        )
    )
    assert sorted(each.epoch for each in made) == list(range(1, 21))
    assert store.rows("SELECT count(*) FROM revocation WHERE epoch = changed") == [(20,)]
    await other.close()


async def test_a_certificate_that_two_revoke_at_once_stays_revoked_when_one_of_them_is_undone(
    database: Database, store: Store
) -> None:
    record = await issue(database, user_id(), cluster_id())
    wanted = revocation(fingerprint=record.fingerprint, user_id=record.user_id, cluster_id=record.cluster_id)
    other = Paused(store.url)
    first = asyncio.create_task(Revocations(other).revoke(wanted, event()))
    await other.inside.wait()
    second = asyncio.create_task(Revocations(database).revoke(replace(wanted, by="cli:second"), event()))
    await asyncio.sleep(A_MOMENT)
    assert not second.done()
    other.go_on.set()
    await undo(database, await first)
    await second
    assert await revoked(database, record)
    assert store.rows("SELECT revoked_by FROM certificate") == [("cli:second",)]
    await other.close()


async def test_a_user_is_disabled_and_their_password_set_at_once_without_a_deadlock(
    database: Database, store: Store
) -> None:
    alice = await new_user(database)
    other = Paused(store.url)
    disabling = asyncio.create_task(DirectoryRows(other).enable_user(alice, False, event(), event()))
    await other.inside.wait()
    changing = asyncio.create_task(DirectoryRows(database).set_password(alice, "hash", event()))
    revoking = asyncio.create_task(Revocations(database).revoke(revocation(user_id=alice), event()))
    await asyncio.sleep(A_MOMENT)
    assert not changing.done()
    assert not revoking.done()
    other.go_on.set()
    await asyncio.gather(disabling, changing, revoking)
    assert store.rows("SELECT value FROM generation") == [(3,)]
    await other.close()


async def test_issuing_and_revoking_at_full_speed_agree_on_what_was_before(
    database: Database, store: Store
) -> None:
    """Answered before the revocation was asked for: revoked. Asked for after it was answered: good."""
    other = Database(store.url)
    alice, here = user_id(), cluster_id()
    ticks = iter(range(1_000_000))
    asked: dict[bytes, tuple[int, int]] = {}
    revocations: list[tuple[int, int]] = []
    stop = asyncio.Event()

    async def issue_once(by: Database) -> None:
        begun = next(ticks)
        record = await issue(by, alice, here)
        asked[record.fingerprint] = (begun, next(ticks))

    async def issue_on(by: Database) -> None:
        while not stop.is_set():
            await issue_once(by)
        await issue_once(by)

    async def revoke_some() -> None:
        for _ in range(8):
            await asyncio.sleep(0.01)
            begun = next(ticks)
            await Revocations(other).revoke(revocation(user_id=alice, cluster_id=here), event())
            revocations.append((begun, next(ticks)))
        stop.set()

    await asyncio.gather(*(issue_on(each) for each in (database, other) for _ in range(3)), revoke_some())
    query = select(tables.certificate.c.fingerprint, is_revoked())
    async with database.read() as connection:
        found = {fingerprint: bool(gone) for fingerprint, gone in await connection.execute(query)}
    last_asked, last_answered = revocations[-1]
    before = [found[each] for each, (_, answered) in asked.items() if answered < last_asked]
    after = [found[each] for each, (begun, _) in asked.items() if begun > last_answered]
    assert (set(before), set(after)) == ({True}, {False})
    await other.close()


# --- in the middle -------------------------------------------------------------------------------------------------


def trace(store: Store) -> tuple[object, ...]:
    """Everything that a revocation leaves."""
    return (
        store.rows("SELECT user_id, fingerprint FROM revocation"),
        store.rows("SELECT value FROM generation"),
        store.rows("SELECT revoked_by, revoked_why FROM certificate"),
        store.rows('SELECT enabled FROM "user"'),
        [said["kind"] for said in store.events()][1:],
    )


async def test_a_revocation_that_is_given_up_in_the_middle_leaves_nothing(
    database: Database, store: Store
) -> None:
    record = await issue(database, user_id(), cluster_id())
    before = trace(store)
    other = Paused(store.url)
    wanted = revocation(fingerprint=record.fingerprint)
    revoking = asyncio.create_task(Revocations(other).revoke(wanted, event("certificate.revoked")))
    await other.inside.wait()
    revoking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await revoking
    assert trace(store) == before
    await other.close()


@pytest.mark.parametrize("what", ["certificate", "disabled"])
async def test_a_revocation_that_is_killed_anywhere_is_all_there_or_not_at_all(
    store: Store, what: str
) -> None:
    database = Database(store.url)
    alice = await new_user(database)
    record = await issue(database, alice, cluster_id())
    await database.close()
    nothing = trace(store)
    program = Path(__file__).parents[1] / "revoking_killed.py"
    arguments = [what, store.url, record.fingerprint.hex(), alice]
    # The process forks, and a server's connections must not be shared.
    ended = await asyncio.to_thread(
        partial(
            subprocess.run, [sys.executable, program, *arguments], capture_output=True, text=True, timeout=60
        )
    )
    assert ended.returncode == 0, ended.stderr
    killed = int(ended.stdout)
    assert killed >= 5
    traces = [trace(copy_of(store, number)) for number in range(1, killed + 2)]
    everything = traces[-1]
    assert everything != nothing
    assert traces[:-1] == [nothing] * killed
    assert everything[-1] == [{"certificate": "certificate.revoked", "disabled": "user.disabled"}[what]]
    assert everything[1] == [(1,)]


def copy_of(store: Store, number: int) -> Store:
    return Store(f"{store.url}_{number}")


# --- speed ---------------------------------------------------------------------------------------------------------


async def test_whether_a_certificate_is_revoked_is_answered_by_indexes(
    database: Database, store: Store
) -> None:
    here, alice = cluster_id(), user_id()
    made = {"epoch": 1, "changed": 1, "at": NOW, "by": "cli:test", "reason": "superseded", "proved": False}
    singles = [
        made | {"fingerprint": number.to_bytes(32), "user_id": alice, "cluster_id": here}
        for number in range(2000)
    ]
    others = [made | {"fingerprint": None, "user_id": user_id(), "cluster_id": here} for _ in range(2000)]
    async with database.write() as connection:
        await connection.execute(insert(tables.revocation), singles + others)
    query = select(is_revoked()).where(tables.certificate.c.id == 1)
    compiled = str(query.compile(database.engine.sync_engine, compile_kwargs={"literal_binds": True}))
    if store.file is not None:
        plan = [str(row[-1]) for row in store.rows(f"EXPLAIN QUERY PLAN {compiled}")]
        conditions = [line for line in plan if "revocation" in line]
        used = "(user_id=? AND cluster_id=? AND fingerprint=? AND epoch>?)"
    else:
        store.execute("ANALYZE revocation")
        plan = [str(row[0]) for row in store.rows(f"EXPLAIN {compiled}")]
        conditions = [line for line in plan if "Index Cond" in line and "fingerprint IS NULL" in line]
        used = "epoch >"
    probes = [line for line in plan if "ix_revocation_user_id_cluster_id_fingerprint_epoch" in line]
    assert len(probes) == len(conditions) == 3
    assert all(used in line for line in conditions)
    assert not [line for line in plan if "SCAN revocation" in line or "Seq Scan on revocation" in line]
