"""The ledger: each certificate that a client received is in the database with one event, also after a crash."""

import asyncio
import json
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection
from sqlalchemy import event as engine_events
from sqlalchemy.exc import DBAPIError, IntegrityError

from clustercert.model.errors import Unavailable
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.database import Database
from support.stores import NOW, Store, certificate_record, child, event, execute, said, sqlite_url, start
from support.wait import SECONDS


class Commits:
    """Makes commits of a real engine fail, before or after they take effect, like a lost connection.

    On PostgreSQL, the INSERT statement commits by itself. If it fails before, the server never receives it. If it fails
    after, the rows are durable, but the driver finds a lost connection.

    Attributes:
        count: number of commits so far, including failed ones, but without rejected statements.
        fail: which commits fail, counted from 1, and whether before or after.
    """

    def __init__(self, database: Database, store: Store) -> None:
        self.count = 0
        self.fail: dict[int, str] = {}
        self._store = store
        engine = database.writing_engine
        if store.file is not None:
            engine_events.listen(engine, "commit", self._on_commit)
        else:
            engine_events.listen(engine, "before_cursor_execute", self._before_statement)
            engine_events.listen(engine, "after_cursor_execute", self._after_statement)

    def _on_commit(self, connection: Connection) -> None:
        self.count += 1
        when = self.fail.get(self.count)
        if when == "after":
            connection.exec_driver_sql("COMMIT")
        if when is not None:
            raise sqlite3.OperationalError("the connection is lost")

    def _before_statement(
        self, connection: Connection, _cursor: object, statement: str, *_others: object
    ) -> None:
        if _inserts(statement) and self.fail.get(self.count + 1) == "before":
            self.count += 1
            # The driver notices only when it sends the statement.
            self._terminate(connection)

    def _after_statement(
        self, connection: Connection, _cursor: object, statement: str, *_others: object
    ) -> None:
        if _inserts(statement):
            self.count += 1
            if self.fail.get(self.count) == "after":
                self._terminate(connection)
                connection.exec_driver_sql("SELECT 1")

    def _terminate(self, connection: Connection) -> None:
        """Close the connection on the server. The driver notices later."""
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        self._store.rows("SELECT pg_terminate_backend(?, 5000)", driver_connection.get_server_pid())


def _inserts(statement: str) -> bool:
    return "INSERT INTO audit_event" in statement.replace('"', "")


async def test_every_field_is_kept(database: Database, store: Store) -> None:
    record, issued = certificate_record()
    await Ledger(database).record(record, issued)
    columns = (
        "id, fingerprint, serial, epoch, cluster_id, project_id, ca_id, user_id, user_name, groups, not_before,"
        " not_after, key_type, key_origin, auth_method, source_address, request_id, reason, issued_at, revoked_at, der"
    )
    assert store.rows(f"SELECT {columns} FROM certificate") == [
        (
            1,
            record.fingerprint,
            record.serial,
            0,
            record.cluster_id,
            record.project_id,
            record.ca_id,
            record.user_id,
            "alice",
            '["clustercert:admins", "\\u00dc,+\\"\'"]',
            store.time(record.not_before),
            store.time(record.not_after),
            "ec-p256",
            "generated",
            "token",
            "192.0.2.1",
            "f" * 32,
            "a reason",
            store.time(NOW),
            None,
            record.der,
        )
    ]
    assert store.recorded() == {record.fingerprint.hex()}
    assert store.rows("SELECT kind FROM audit_event") == [("certificate.issued",)]


async def test_concurrent_records_of_one_process_are_all_there(database: Database, store: Store) -> None:
    ledger, certificates = Ledger(database), [certificate_record() for _ in range(50)]
    await asyncio.gather(*(ledger.record(*certificate) for certificate in certificates))
    assert store.recorded() == {record.fingerprint.hex() for record, _event in certificates}


@pytest.mark.slow
def test_concurrent_records_of_several_processes_are_all_there(store: Store) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(child("record-some", store)) for _ in range(3)]
        for process in processes:
            start(process)
        printed = {line for process in processes for line in said(process) if line}
        assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(printed) == 75
    assert store.recorded() == printed


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_connection_lost_at_the_commit_records_once(
    database: Database, store: Store, when: str
) -> None:
    commits = Commits(database, store)
    commits.fail = {1: when}
    record, issued = certificate_record()
    await Ledger(database).record(record, issued)
    assert commits.count == (2 if when == "before" else 1)
    assert store.recorded() == {record.fingerprint.hex()}


async def test_two_lost_connections_record_once_or_not_at_all(database: Database, store: Store) -> None:
    ledger, commits = Ledger(database), Commits(database, store)
    commits.fail = {1: "before", 2: "after", 3: "before", 4: "before"}
    kept, lost = certificate_record(), certificate_record()
    await ledger.record(*kept)
    with pytest.raises(Unavailable) as caught:
        await ledger.record(*lost)
    assert isinstance(caught.value.__cause__, (sqlite3.OperationalError, DBAPIError))
    assert commits.count == 4
    assert store.recorded() == {kept[0].fingerprint.hex()}


async def test_a_commit_that_arrives_after_the_look_is_no_second_event(
    database: Database, store: Store
) -> None:
    """The server finishes the first commit just after its fingerprint was looked up, so the second one conflicts."""
    record, issued = certificate_record()
    commits = Commits(database, store)
    commits.fail = {1: "before"}
    checkins: list[str] = []

    async def commit_elsewhere() -> None:
        other = Database(store.url, SECONDS, SECONDS)
        await Ledger(other).record(record, issued)
        await other.close()

    def arrive(*_connection: object) -> None:
        checkins.append("connection")
        if len(checkins) == 2:
            with ThreadPoolExecutor() as threads:
                threads.submit(asyncio.run, commit_elsewhere()).result()

    for engine in {database.writing_engine, database.engine.sync_engine}:
        engine_events.listen(engine, "checkin", arrive)
    await Ledger(database).record(record, issued)
    assert commits.count == 1, "the second try must not come to its commit"
    assert len(checkins) == 4, "two tries, each with a look"
    assert store.recorded() == {record.fingerprint.hex()}


async def test_recording_the_same_certificate_again_adds_nothing(database: Database, store: Store) -> None:
    record, issued = certificate_record()
    for _ in range(2):
        await Ledger(database).record(record, issued)
    assert store.recorded() == {record.fingerprint.hex()}


async def test_a_record_that_breaks_another_constraint_is_not_recorded(
    database: Database, store: Store
) -> None:
    store.execute("CREATE UNIQUE INDEX one_user ON certificate (user_id)")
    ledger = Ledger(database)
    await ledger.record(*certificate_record())
    with pytest.raises(IntegrityError):
        await ledger.record(*certificate_record())
    assert len(store.recorded()) == 1


async def test_no_two_certificates_have_one_credential_number(database: Database, store: Store) -> None:
    ledger = Ledger(database)
    first, issued = certificate_record()
    await ledger.record(first, issued)
    twin, twins_event = certificate_record()
    with pytest.raises(IntegrityError):
        await ledger.record(replace(twin, credential_number=first.credential_number), twins_event)
    assert store.recorded() == {first.fingerprint.hex()}
    # The others in the batch are recorded.
    others = [certificate_record() for _ in range(6)]
    batch = [
        *others[:3],
        (replace(twin, credential_number=first.credential_number), twins_event),
        *others[3:],
    ]
    failures = await asyncio.gather(*(ledger.record(*each) for each in batch), return_exceptions=True)
    assert [type(failure) for failure in failures if failure is not None] == [IntegrityError]
    assert store.recorded() == {first.fingerprint.hex(), *(record.fingerprint.hex() for record, _ in others)}


async def test_number_and_serial_are_kept_where_the_signer_chose_the_serial(
    database: Database, store: Store
) -> None:
    record, issued = certificate_record()
    await Ledger(database).record(replace(record, serial="7b" * 16), issued)
    query = "SELECT serial, credential_number, groups FROM certificate"
    ((serial, number, groups),) = store.rows(query)
    assert (serial, number) == ("7b" * 16, record.credential_number)
    # The credential group is not among the groups.
    assert json.loads(str(groups)) == list(record.groups)


async def test_a_busy_database_is_unavailable_after_one_patience(file: Path) -> None:
    database = Database(sqlite_url(file), busy_seconds=0.3)
    ledger = Ledger(database)
    execute(file, "PRAGMA wal_checkpoint")
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await ledger.record(*certificate_record())
        other.execute("ROLLBACK")
    other.close()
    await ledger.record(*certificate_record())
    await database.close()
    assert len(Store(sqlite_url(file)).recorded()) == 1


@pytest.fixture
def moments() -> Iterator[float]:
    """Return random times for kills. The seed is shown if the test fails."""
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    return iter(lambda: chance.uniform(0.0, 0.25), None)


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.slow
def test_what_was_recorded_survives_kill_9(store: Store, moments: Iterator[float]) -> None:
    printed: set[str] = set()
    begun = time.monotonic()
    # On a busy machine, the first processes may be killed before they have recorded anything.
    while (lasted := time.monotonic() - begun) < 2.5 or not printed:
        assert lasted < SECONDS
        with child("record-for-ever", store) as process:
            start(process)
            # SIGKILL at any time after the start, so the process can't clean up.
            # Later on a machine on which nothing was recorded until now.
            threading.Timer(next(moments) + (0 if printed else lasted / 20), process.kill).start()
            lines = said(process)
            assert process.wait() == -9
        # The last line may be incomplete. Its certificate is recorded, but its full fingerprint is unknown.
        printed |= set(lines[:-1])
        assert printed <= store.recorded()


async def test_requests_that_come_together_share_a_commit(database: Database, store: Store) -> None:
    commits, ledger = Commits(database, store), Ledger(database)
    certificates = [certificate_record() for _ in range(100)]
    await asyncio.gather(*(ledger.record(*certificate) for certificate in certificates))
    assert commits.count <= 2
    assert store.recorded() == {record.fingerprint.hex() for record, _event in certificates}


async def test_a_row_that_can_not_be_written_fails_alone(database: Database, store: Store) -> None:
    ledger = Ledger(database)
    good, (record, issued) = [certificate_record() for _ in range(9)], certificate_record()
    bad = (replace(record, user_name="\ud800"), issued)
    outcomes = await asyncio.gather(
        *(ledger.record(*certificate) for certificate in [*good[:4], bad, *good[4:]]), return_exceptions=True
    )
    refusal = outcomes.pop(4)
    assert isinstance(refusal, Exception)
    assert not isinstance(refusal, Unavailable)
    assert outcomes == [None] * 9
    assert store.recorded() == {record.fingerprint.hex() for record, _event in good}


async def test_as_many_as_were_committed_together_are_awaited(database: Database, store: Store) -> None:
    """Requests reach the ledger one after another."""
    ledger, commits = Ledger(database, gather_seconds=60), Commits(database, store)
    await asyncio.gather(*(ledger.record(*certificate_record()) for _ in range(40)))
    before = commits.count

    async def worked_on(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await ledger.record(*certificate_record())

    await asyncio.gather(*(worked_on(turns) for turns in range(40)))
    assert len(store.recorded()) == 80
    assert commits.count == before + 1


async def test_fewer_than_were_committed_together_wait_for_a_moment(database: Database, store: Store) -> None:
    ledger, commits = Ledger(database, gather_seconds=0.001), Commits(database, store)
    await asyncio.gather(*(ledger.record(*certificate_record()) for _ in range(40)))
    before = commits.count
    await asyncio.gather(*(ledger.record(*certificate_record()) for _ in range(3)))
    await ledger.record(*certificate_record())
    assert len(store.recorded()) == 44
    assert commits.count == before + 2


async def test_a_request_that_is_alone_does_not_wait_for_others(database: Database) -> None:
    ledger = Ledger(database, gather_seconds=2 * SECONDS)
    for _ in range(3):
        async with asyncio.timeout(SECONDS):
            await ledger.record(*certificate_record())


async def test_who_waits_is_not_kept_from_the_disk_by_those_who_come_and_come(
    database: Database, store: Store
) -> None:
    ledger, done = Ledger(database), asyncio.Event()

    async def first() -> None:
        await ledger.record(*certificate_record())
        done.set()

    waiting, tasks = asyncio.create_task(first()), []
    for _ in range(100_000):
        if done.is_set():
            break
        tasks.append(asyncio.create_task(ledger.record(*certificate_record())))
        await asyncio.sleep(0)
    assert done.is_set()
    await asyncio.gather(waiting, *tasks)
    assert len(store.recorded()) == len(tasks) + 1


async def test_a_lost_connection_under_a_batch_records_all_of_it_once(
    database: Database, store: Store
) -> None:
    commits, ledger = Commits(database, store), Ledger(database)
    commits.fail = {1: "after", 2: "before"}
    certificates = [certificate_record() for _ in range(200)]
    await asyncio.gather(*(ledger.record(*certificate) for certificate in certificates))
    assert store.recorded() == {record.fingerprint.hex() for record, _event in certificates}


# Events without a certificate


async def test_a_refusal_shares_a_transaction_with_certificates(database: Database, store: Store) -> None:
    ledger, certificates = Ledger(database), [certificate_record() for _ in range(5)]
    await asyncio.gather(
        *(ledger.record(*certificate) for certificate in certificates),
        *(ledger.record_event(event("certificate.refused", f"cluster {number}")) for number in range(5)),
    )
    kinds = [kind for (kind,) in store.rows("SELECT kind FROM audit_event ORDER BY kind")]
    assert kinds == ["certificate.issued"] * 5 + ["certificate.refused"] * 5
    assert store.rows("SELECT count(*) FROM certificate") == [(5,)]


@pytest.mark.parametrize(("when", "written"), [("before", 1), ("after", 2)])
async def test_a_refusal_is_never_lost_with_a_connection(
    database: Database, store: Store, when: str, written: int
) -> None:
    """If the outcome is unknown, the event is written again."""
    commits = Commits(database, store)
    commits.fail = {1: when}
    await Ledger(database).record_event(event("certificate.refused"))
    assert store.rows("SELECT kind FROM audit_event") == [("certificate.refused",)] * written


async def test_a_refusal_that_cannot_be_written_is_unavailable(database: Database, store: Store) -> None:
    commits = Commits(database, store)
    commits.fail = {1: "before", 2: "before"}
    with pytest.raises(Unavailable):
        await Ledger(database).record_event(event("certificate.refused"))
    assert store.rows("SELECT * FROM audit_event") == []
