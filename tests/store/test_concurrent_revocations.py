"""Revocations, on each database: concurrent with other changes, and in processes that are killed."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from sqlalchemy import event as engine_events
from sqlalchemy import select, text

from clustercert.model import CertificateRecord, Domain, KnownUser, Revocation, User
from clustercert.model.errors import UnknownUser
from clustercert.store import tables
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.certificates.views import is_revoked
from clustercert.store.engine.database import Database
from clustercert.store.identity.directory import DirectoryQueries
from clustercert.store.identity.known_users import KnownUserQueries, UsernameQueries
from support import programs
from support.lock_waits import LockWaits
from support.paused_database import PausedDatabase
from support.samples import grant
from support.store_records import cluster_id, issue, new_user, revoked, undo, user_id
from support.stores import NOW, Store, event, patient, revocation
from support.wait import SECONDS, eventually_async

# --- at the same moment --------------------------------------------------------------------------------------------


class PausedInserts(Database):
    """A database whose next bulk insert into an SQLite file waits before its commit until it is released."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.inside, self._proceed = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()
        engine_events.listen(self.writing_engine, "commit", self._wait)

    def let_go(self) -> None:
        self._proceed.set()

    def _wait(self, _connection: object) -> None:
        """Wait in the writer thread."""
        self._loop.call_soon_threadsafe(self.inside.set)
        assert self._proceed.wait(SECONDS)


@asynccontextmanager
async def paused_by_the_thread(
    store: Store, user: str, cluster: str
) -> AsyncIterator[asyncio.Task[CertificateRecord]]:
    other = PausedInserts(store.url)
    issuing = asyncio.create_task(issue(other, user, cluster))
    await other.inside.wait()
    try:
        yield issuing
    finally:
        other.let_go()
        await issuing
        await other.close()


# A statement reads the snapshot from its start, and this trigger runs at its end.
FUNCTION = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'
"""
TRIGGER = "CREATE TRIGGER waits AFTER INSERT ON certificate FOR EACH STATEMENT EXECUTE FUNCTION wait()"
WAITING = """
    SELECT 1 FROM pg_locks JOIN pg_database ON pg_locks.database = pg_database.oid
    WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
"""


@asynccontextmanager
async def paused_by_the_server(
    store: Store, user: str, cluster: str
) -> AsyncIterator[asyncio.Task[CertificateRecord]]:
    """The INSERT is a transaction by itself, so only the server can delay its commit."""
    for statement in (FUNCTION, TRIGGER):
        store.execute(statement)
    other, holder = patient(store.url), patient(store.url)
    async with holder.read() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(1)"))
        issuing = asyncio.create_task(issue(other, user, cluster))
        await eventually_async(lambda: issuing.done() or store.rows(WAITING))
        assert not issuing.done()
        yield issuing
    await issuing
    await other.close()
    await holder.close()


async def test_what_is_being_recorded_when_a_revocation_comes_is_revoked(
    database: Database, store: Store
) -> None:
    """The response may come after the revocation, but the request came before it."""
    alice, here = user_id(), cluster_id()
    paused = paused_by_the_thread if store.file is not None else paused_by_the_server
    waits = LockWaits(database, store)
    async with paused(store, alice, here) as issuing:
        revoking = asyncio.create_task(
            RevocationQueries(database).revoke(revocation(user_id=alice, cluster_id=here), event())
        )
        # SQLite has one writer at a time. On PostgreSQL, the revocation does not see the row, but still covers it.
        if store.file is not None:
            await waits.begun(revoking)
        else:
            await revoking
        assert not issuing.done()
    record = await issuing
    await revoking
    assert await revoked(database, record)
    assert not await revoked(database, await issue(database, alice, here))


NAME = "anna@example.com"


async def become_known(database: Database, how: str, user: str) -> None:
    """Let the service see a user for the first time, as a request does before its certificate is signed."""
    if how == "login":
        await KnownUserQueries(database).record_user(KnownUser(user, "anna", "sso", "https://sso.example"))
    elif how == "name":
        await UsernameQueries(database).claim(grant(username=NAME), user)
    else:
        domain = Domain(f"{1:032x}", "tests", enabled=True)
        account = User(user, "anna", domain, enabled=True, labels={})
        await DirectoryQueries(database).add(account, event(), password_hash=None, created_at=NOW)


async def revoke_known(database: Database, how: str, user: str, cluster: str) -> Revocation:
    """Revoke a user's certificates for a cluster, like an admin of its project."""
    scope = revocation(user_id=NAME if how == "name" else user, cluster_id=cluster)
    return await RevocationQueries(database).revoke_user(scope, lambda _: event(), only_known=True)


@pytest.fixture
def domain(store: Store) -> None:
    store.execute(f"INSERT INTO domain (id, name, enabled) VALUES ('{1:032x}', 'tests', true)")


WAYS = ["login", "name", "account"]


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("how", WAYS)
async def test_the_first_certificate_of_a_new_user_does_not_escape_a_revocation(
    database: Database, store: Store, how: str
) -> None:
    """The certificate isn't recorded yet when the revocation looks, but its user is known."""
    anna, here = user_id(), cluster_id()
    with pytest.raises(UnknownUser):
        await revoke_known(database, how, anna, here)
    assert store.rows("SELECT id FROM revocation") == store.rows("SELECT id FROM audit_event") == []
    assert store.rows("SELECT value FROM generation") == [(0,)]
    await become_known(database, how, anna)
    paused = paused_by_the_thread if store.file is not None else paused_by_the_server
    waits = LockWaits(database, store)
    async with paused(store, anna, here) as issuing:
        revoking = asyncio.create_task(revoke_known(database, how, anna, here))
        if store.file is not None:
            await waits.begun(revoking)
        else:
            await revoking
        assert not issuing.done()
    assert (await revoking).user_id == anna
    assert await revoked(database, await issuing)


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("how", WAYS)
async def test_a_revocation_waits_for_a_user_who_becomes_known(
    database: Database, store: Store, how: str
) -> None:
    anna, here = user_id(), cluster_id()
    other = PausedDatabase(store.url)
    becoming = asyncio.create_task(become_known(other, how, anna))
    await other.inside.wait()
    waits = LockWaits(database, store)
    revoking = asyncio.create_task(revoke_known(database, how, anna, here))
    await waits.begun(revoking)
    other.go_on.set()
    await becoming
    assert (await revoking).user_id == anna
    await other.close()


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("how", WAYS)
async def test_a_user_who_becomes_known_waits_for_revocations(
    database: Database, store: Store, how: str
) -> None:
    """So a certificate of a user whom a revocation did not see is recorded after this revocation."""
    other = PausedDatabase(store.url)
    revoking = asyncio.create_task(
        RevocationQueries(other).revoke_user(
            revocation(user_id=user_id()), lambda _: event(), only_known=False
        )
    )
    await other.inside.wait()
    waits = LockWaits(database, store)
    becoming = asyncio.create_task(become_known(database, how, user_id()))
    await waits.begun(becoming)
    other.go_on.set()
    await asyncio.gather(revoking, becoming)
    await other.close()


async def test_a_record_during_a_revocation_is_on_one_side_of_it(database: Database, store: Store) -> None:
    alice, here = user_id(), cluster_id()
    other = PausedDatabase(store.url)
    revoking = asyncio.create_task(
        RevocationQueries(other).revoke(revocation(user_id=alice, cluster_id=here), event())
    )
    await other.inside.wait()
    waits = LockWaits(database, store)
    issuing = asyncio.create_task(issue(database, alice, here))
    was_first = store.file is None
    if was_first:
        await asyncio.wait({issuing})
    else:
        await waits.begun(issuing)
    other.go_on.set()
    await revoking
    # On PostgreSQL nobody waits, and the revocation covers what was recorded before its commit.
    assert await revoked(database, await issuing) == was_first
    await other.close()


async def test_revocations_wait_for_one_another_and_each_makes_its_own_epoch(
    database: Database, store: Store
) -> None:
    other = patient(store.url)
    made = await asyncio.gather(
        *(
            RevocationQueries(each).revoke(revocation(user_id=user_id()), event())
            for each in (database, other)
            for _ in range(10)
        )
    )
    assert sorted(each.epoch for each in made) == list(range(1, 21))
    assert store.rows("SELECT count(*) FROM revocation WHERE epoch = changed") == [(20,)]
    await other.close()


async def test_undoing_one_of_two_concurrent_revocations_keeps_the_other(
    database: Database, store: Store
) -> None:
    record = await issue(database, user_id(), cluster_id())
    wanted = revocation(fingerprint=record.fingerprint, user_id=record.user_id, cluster_id=record.cluster_id)
    other = PausedDatabase(store.url)
    first = asyncio.create_task(RevocationQueries(other).revoke(wanted, event()))
    await other.inside.wait()
    waits = LockWaits(database, store)
    second = asyncio.create_task(
        RevocationQueries(database).revoke(replace(wanted, by="cli:second"), event())
    )
    await waits.begun(second)
    other.go_on.set()
    await undo(database, await first)
    await second
    assert await revoked(database, record)
    assert store.rows("SELECT revoked_by FROM certificate") == [("cli:second",)]
    await other.close()


async def test_disabling_a_user_while_setting_a_password_does_not_deadlock(
    database: Database, store: Store
) -> None:
    alice = await new_user(database)
    other = PausedDatabase(store.url)
    disabling = asyncio.create_task(DirectoryQueries(other).enable_user(alice, False, event(), event()))
    await other.inside.wait()
    waits = LockWaits(database, store)
    changing = asyncio.create_task(DirectoryQueries(database).set_password(alice, "hash", event()))
    revoking = asyncio.create_task(RevocationQueries(database).revoke(revocation(user_id=alice), event()))
    await waits.begun(changing, revoking, count=2)
    other.go_on.set()
    await asyncio.gather(disabling, changing, revoking)
    assert store.rows("SELECT value FROM generation") == [(3,)]
    await other.close()


async def test_issuing_and_revoking_at_full_speed_agree_on_what_was_before(
    database: Database, store: Store
) -> None:
    """Certificates returned before the revocation was requested are revoked. Later requests get valid ones."""
    other = patient(store.url)
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
            enough = len(asked) + 3
            await eventually_async(lambda enough=enough: len(asked) >= enough)  # type: ignore[misc] # the lambda has no types
            begun = next(ticks)
            await RevocationQueries(other).revoke(revocation(user_id=alice, cluster_id=here), event())
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
    """Return all data that a revocation writes."""
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
    other = PausedDatabase(store.url)
    wanted = revocation(fingerprint=record.fingerprint)
    revoking = asyncio.create_task(RevocationQueries(other).revoke(wanted, event("certificate.revoked")))
    await other.inside.wait()
    revoking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await revoking
    assert trace(store) == before
    await other.close()


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("what", ["certificate", "disabled"])
async def test_a_revocation_that_is_killed_anywhere_is_all_there_or_not_at_all(
    store: Store, what: str
) -> None:
    database = patient(store.url)
    alice = await new_user(database)
    record = await issue(database, alice, cluster_id())
    await database.close()
    nothing = trace(store)
    # The process forks, and the forks must not share connections to a server.
    ended = await asyncio.to_thread(
        programs.run, "killed_revocations", what, store.url, record.fingerprint.hex(), alice
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
