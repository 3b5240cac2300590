"""The process that writes into an SQLite file for all workers: what it answered is there once, whoever was killed."""

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sealing
from clustercert.custody import write_new_kek_file
from clustercert.errors import Unavailable
from clustercert.store import scribe
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from stores import Store, certificate_record, child, event, said, sqlite_url, start

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

A_MOMENT = 0.2


class Scribe:
    """A scribe that a test starts, stops and kills."""

    def __init__(self, url: str, path: Path) -> None:
        self.path = path
        self._url = url
        self._process: BaseProcess | None = None

    def start(self) -> None:
        """Return when it can be reached."""
        self.path.unlink(missing_ok=True)
        self._process = multiprocessing.get_context("spawn").Process(
            target=scribe.serve, args=(self._url, self.path), daemon=True
        )
        self._process.start()
        deadline = time.monotonic() + 20
        while not self.path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self, number: signal.Signals) -> int | None:
        """How it ended."""
        self.send(number)
        assert self._process is not None
        self._process.join(20)
        return self._process.exitcode


@pytest.fixture
def kept(file: Path) -> Store:
    return Store(sqlite_url(file))


@pytest.fixture
def the_scribe(kept: Store) -> Iterator[Scribe]:
    """One that isn't started."""
    # pytest's own folders have longer paths than a socket may have.
    with tempfile.TemporaryDirectory() as folder:
        one = Scribe(kept.url, Path(folder) / "scribe")
        yield one
        if one._process is not None and one._process.is_alive():
            one.send(signal.SIGKILL)


@pytest.fixture
def running(the_scribe: Scribe) -> Scribe:
    the_scribe.start()
    return the_scribe


@pytest.fixture
async def worker(kept: Store, the_scribe: Scribe) -> AsyncIterator[Database]:
    database = Database(kept.url, scribe=the_scribe.path)
    yield database
    await database.close()


def wrote_by_itself(database: Database) -> bool:
    """Whether a process has used its own thread."""
    assert database._writer_thread is not None
    return database._writer_thread._thread is not None


@contextmanager
def environment(one: Scribe) -> Iterator[None]:
    """For `store_child`."""
    os.environ["CLUSTERCERT_TEST_SCRIBE"] = str(one.path)
    try:
        yield
    finally:
        del os.environ["CLUSTERCERT_TEST_SCRIBE"]


async def test_it_writes_for_a_worker(worker: Database, kept: Store, running: Scribe) -> None:
    ledger, (record, issued) = Ledger(worker), certificate_record()
    await ledger.record(record, issued)
    await ledger.note(event("certificate.refused", "a cluster"))
    assert kept.rows("SELECT fingerprint, epoch, user_name, groups, der FROM certificate") == [
        (record.fingerprint, 0, "alice", '["clustercert:admins", "\\u00dc,+\\"\'"]', record.der)
    ]
    assert kept.rows("SELECT kind, subject FROM audit_event ORDER BY id") == [
        ("certificate.issued", record.fingerprint.hex()),
        ("certificate.refused", "a cluster"),
    ]
    assert not wrote_by_itself(worker)


async def test_what_was_answered_is_in_the_file_before_anybody_else_writes(
    worker: Database, kept: Store, running: Scribe
) -> None:
    """It holds nothing back: the very next moment it is killed."""
    record, issued = certificate_record()
    await Ledger(worker).record(record, issued)
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    assert kept.recorded() == {record.fingerprint.hex()}


def test_several_workers_and_it_is_all_there_once(kept: Store, running: Scribe) -> None:
    with environment(running), ExitStack() as stack:
        processes = [stack.enter_context(child("record-some", kept)) for _ in range(3)]
        for process in processes:
            start(process)
        printed = {line for process in processes for line in said(process) if line}
        assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(printed) == 75
    assert kept.recorded() == printed


async def test_a_job_that_is_refused_fails_alone_whoever_shares_its_transaction(
    kept: Store, running: Scribe
) -> None:
    kept.execute("CREATE UNIQUE INDEX one_serial ON certificate (serial)")
    workers = [Database(kept.url, scribe=running.path) for _ in range(4)]
    certificates = [certificate_record() for _ in workers]
    taken, issued = certificates[0]
    await Ledger(workers[0]).record(taken, issued)
    certificates[0] = replace(taken, fingerprint=os.urandom(32)), issued
    # They have come all when it goes on.
    running.send(signal.SIGSTOP)
    recording = [
        asyncio.create_task(Ledger(one).record(*each))
        for one, each in zip(workers, certificates, strict=True)
    ]
    await asyncio.sleep(A_MOMENT)
    running.send(signal.SIGCONT)
    refusal, *others = await asyncio.gather(*recording, return_exceptions=True)
    assert isinstance(refusal, sqlite3.IntegrityError)
    assert "serial" in str(refusal)
    assert others == [None] * 3
    assert kept.recorded() == {
        record.fingerprint.hex() for record, _event in ((taken, issued), *certificates[1:])
    }
    for one in workers:
        await one.close()


async def test_events_get_their_places_through_it_beside_certificates_whoever_was_faster(
    kept: Store, running: Scribe, tmp_path: Path
) -> None:
    write_new_kek_file(kek := tmp_path / "kek")
    async with (
        sealing.opened(kept, kek, scribe=running.path) as one,
        sealing.opened(kept, kek, scribe=running.path) as other,
    ):
        await one.sealer.begin()
        ledger = Ledger(one.database)
        for _ in range(20):
            # Of two who put the same events into the log one is refused, and nothing else in its transaction.
            await asyncio.gather(
                *(ledger.record(*certificate_record()) for _ in range(8)),
                one.sealer.seal(),
                other.sealer.seal(),
            )
        await one.sealer.seal_all()
        assert not wrote_by_itself(one.database)
        assert not wrote_by_itself(other.database)
    assert sealing.check(kept) == 2 + 20 * 8
    assert kept.rows("SELECT count(DISTINCT fingerprint) FROM certificate") == [(20 * 8,)]


async def test_what_comes_while_it_is_busy_shares_a_transaction(kept: Store, running: Scribe) -> None:
    workers = [Database(kept.url, scribe=running.path) for _ in range(8)]
    for one in workers:
        await Ledger(one).note(event())
    await asyncio.sleep(A_MOMENT)
    frames = Path(f"{kept.file}-wal").stat().st_size
    running.send(signal.SIGSTOP)
    noting = [asyncio.create_task(Ledger(one).note(event())) for one in workers]
    await asyncio.sleep(A_MOMENT)
    running.send(signal.SIGCONT)
    await asyncio.gather(*noting)
    # One transaction writes each page that it changes once: the table's, an index's, the row ids' and perhaps new ones.
    assert Path(f"{kept.file}-wal").stat().st_size - frames < 8 * 4096 * 2
    assert kept.rows("SELECT count(*) FROM audit_event") == [(16,)]
    for one in workers:
        await one.close()


async def test_without_it_a_worker_writes_by_itself_and_with_it_again_later(
    worker: Database, kept: Store, the_scribe: Scribe
) -> None:
    ledger, certificates = Ledger(worker), [certificate_record() for _ in range(3)]
    await ledger.record(*certificates[0])
    assert wrote_by_itself(worker)
    the_scribe.start()
    # It isn't looked for with each request.
    await asyncio.sleep(1.1)
    await ledger.record(*certificates[1])
    the_scribe.send(signal.SIGSTOP)
    waiting = asyncio.create_task(ledger.record(*certificates[2]))
    await asyncio.sleep(A_MOMENT)
    assert not waiting.done(), "it goes through the scribe"
    the_scribe.send(signal.SIGCONT)
    await waiting
    assert kept.recorded() == {record.fingerprint.hex() for record, _event in certificates}


async def test_killed_under_a_job_it_is_recorded_once_all_the_same(
    worker: Database, kept: Store, running: Scribe
) -> None:
    certificates = [certificate_record() for _ in range(20)]
    running.send(signal.SIGSTOP)
    recording = [asyncio.create_task(Ledger(worker).record(*each)) for each in certificates]
    await asyncio.sleep(A_MOMENT)
    running.end(signal.SIGKILL)
    await asyncio.gather(*recording)
    assert kept.recorded() == {record.fingerprint.hex() for record, _event in certificates}


@pytest.mark.slow
async def test_killed_again_and_again_nothing_is_lost_and_nothing_doubled(
    worker: Database, kept: Store, running: Scribe
) -> None:
    """Issuing goes on all the while: nobody is told that it can't."""
    recorded: set[str] = set()
    ended = asyncio.Event()
    ledger = Ledger(worker)

    async def client() -> None:
        while not ended.is_set():
            record, issued = certificate_record()
            await ledger.record(record, issued)
            recorded.add(record.fingerprint.hex())

    async with asyncio.TaskGroup() as clients:
        for _ in range(8):
            clients.create_task(client())
        for number in range(4):
            await asyncio.sleep(0.05 + 0.11 * number)
            await asyncio.to_thread(running.end, signal.SIGKILL)
            await asyncio.to_thread(running.start)
            await asyncio.sleep(1)
        ended.set()
    assert recorded == kept.recorded()
    assert len(recorded) > 100


@pytest.mark.slow
def test_what_was_recorded_through_it_survives_the_workers(kept: Store, running: Scribe) -> None:
    """A worker that is killed leaves half a frame, or jobs that are done for nobody."""
    printed: set[str] = set()
    with environment(running):
        for number in range(8):
            with child("record-for-ever", kept) as process:
                start(process)
                time.sleep(0.1 + 0.03 * number)
                process.kill()
                printed |= set(said(process)[:-1])
    deadline = time.monotonic() + 5
    while not printed <= kept.recorded() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert printed <= kept.recorded()
    assert len(printed) > 100


async def test_one_that_stands_still_is_not_waited_for_and_does_not_begin_what_was_given_up(
    kept: Store, running: Scribe
) -> None:
    worker = Database(kept.url, busy_seconds=0.3, scribe=running.path)
    ledger = Ledger(worker)
    await ledger.note(event("before"))
    running.send(signal.SIGSTOP)
    began, certificates = time.monotonic(), [certificate_record() for _ in range(3)]
    await asyncio.gather(*(ledger.record(*each) for each in certificates))
    assert time.monotonic() - began < 2
    assert wrote_by_itself(worker)
    running.send(signal.SIGCONT)
    await ledger.note(event("after"))
    subjects = [subject for (subject,) in kept.rows("SELECT subject FROM audit_event ORDER BY id")]
    assert subjects[1:-1] == [record.fingerprint.hex() for record, _ in certificates]
    assert kept.rows("SELECT count(*) FROM certificate") == [(len(certificates),)]
    await worker.close()


async def test_what_one_that_stood_still_commits_late_is_recorded_once(kept: Store, running: Scribe) -> None:
    """It had begun in time, and was kept from going on by who else writes into the file."""
    worker = Database(kept.url, busy_seconds=1.0, scribe=running.path)
    ledger, first, late = Ledger(worker), certificate_record(), certificate_record()
    await ledger.record(*first)
    assert kept.file is not None
    with closing(sqlite3.connect(kept.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        recording = asyncio.create_task(ledger.record(*late))
        await asyncio.sleep(2.3)
        other.execute("ROLLBACK")
    await recording
    await asyncio.sleep(A_MOMENT)
    assert kept.recorded() == {first[0].fingerprint.hex(), late[0].fingerprint.hex()}
    await worker.close()


async def test_a_damaged_file_is_unavailable_and_it_recovers(worker: Database, running: Scribe) -> None:
    file = Store(str(worker.url)).file
    assert file is not None
    ledger = Ledger(worker)
    with sqlite3.connect(file) as connection:
        connection.execute("ALTER TABLE audit_event RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await ledger.note(event())
    with sqlite3.connect(file) as connection:
        connection.execute("ALTER TABLE elsewhere RENAME TO audit_event")
    await ledger.note(event())


def test_it_ends_when_it_is_told_to_and_leaves_the_file_whole(kept: Store, running: Scribe) -> None:
    with environment(running), child("record-some", kept) as process:
        start(process)
        assert process.wait() == 0
    assert running.end(signal.SIGTERM) == 0
    file = kept.file
    assert file is not None
    assert not Path(f"{file}-wal").exists(), "the last to close it writes the log back"
    assert len(kept.recorded()) == 25


def test_it_ends_with_the_process_that_started_it(kept: Store, the_scribe: Scribe) -> None:
    def start_and_stay() -> None:
        os.setsid()
        the_scribe.start()
        time.sleep(60)

    parent = os.fork()
    if parent == 0:
        with suppress(BaseException):
            start_and_stay()
        os._exit(1)
    try:
        deadline = time.monotonic() + 20
        while not the_scribe.path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        while _running_in(parent):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent, signal.SIGKILL)


def _running_in(session: int) -> list[str]:
    """The processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(folder.name)
    return found
