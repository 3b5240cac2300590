"""The SQLite writer thread: errors, cancelled calls, and other processes that write."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, text
from sqlalchemy import event as engine_events
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError

from clustercert.model.errors import Unavailable
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.bulk_insert import BulkInsert
from clustercert.store.engine.database import Database
from clustercert.store.engine.writer import NothingBegun
from support.stores import Store, certificate_record, child, event, patient, rows, sqlite_url, start
from support.wait import SECONDS, suspend


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    database = patient(sqlite_url(file))
    yield database
    await database.close()


@pytest.fixture
async def impatient(file: Path) -> AsyncIterator[Database]:
    """A database that other processes keep waiting."""
    database = Database(sqlite_url(file), busy_seconds=0.3)
    yield database
    await database.close()


def add(connection: Connection, number: int) -> str:
    connection.execute(insert(tables.progress).values(name=f"{number}", value=""))
    return threading.current_thread().name


def names(file: Path) -> list[str]:
    return [str(name) for (name,) in rows(file, "SELECT name FROM progress ORDER BY name")]


async def test_every_way_to_write_takes_the_one_thread(database: Database) -> None:
    threads: set[str] = set()

    @engine_events.listens_for(database.writing_engine, "commit")
    def note(_connection: object) -> None:
        threads.add(threading.current_thread().name)

    await database.insert((BulkInsert(tables.progress), [{"name": "0", "value": ""}]))
    assert await database.run(add, 1) == "sqlite-writer_0"
    async with database.transaction(event(), invalidate=True) as transaction:
        await transaction.run_sync(add, 2)
    assert threads == {"sqlite-writer_0"}


async def test_a_function_that_fails_leaves_nothing(database: Database, file: Path) -> None:
    def add_and_fail(connection: Connection) -> None:
        add(connection, 1)
        raise KeyError

    with pytest.raises(KeyError):
        await database.run(add_and_fail)
    await database.run(add, 2)
    with pytest.raises(IntegrityError):
        await database.run(add, 2)
    assert names(file) == ["2"]


async def test_a_function_does_not_get_into_another_ones_transaction(database: Database, file: Path) -> None:
    async with database.transaction() as transaction:
        running = asyncio.create_task(database.run(add, 1))
        await asyncio.sleep(0)
        await transaction.run_sync(add, 2)
        assert names(file) == []
        assert not running.done()
    await running
    assert names(file) == ["1", "2"]


async def test_rows_of_a_transaction_are_read_before_it_goes_on(database: Database) -> None:
    async with database.transaction() as transaction:
        result = await transaction.execute(text("SELECT value FROM json_each('[1, 2, 3]')"))
        await transaction.run_sync(add, 1)
    assert result.scalars().all() == [1, 2, 3]


async def test_what_runs_goes_on_where_its_caller_gives_up(database: Database, file: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def add_slowly(connection: Connection) -> None:
        inside.set()
        assert go_on.wait(SECONDS)
        add(connection, 1)

    running = asyncio.create_task(database.run(add_slowly))
    await asyncio.to_thread(inside.wait, SECONDS)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    await database.run(add, 2)
    assert names(file) == ["1", "2"]


async def test_a_transaction_that_is_given_up_under_a_statement_leaves_nothing(
    database: Database, file: Path
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def add_slowly(connection: Connection) -> None:
        inside.set()
        assert go_on.wait(SECONDS)
        add(connection, 1)

    async def write() -> None:
        async with database.transaction() as transaction:
            await transaction.run_sync(add_slowly)

    running = asyncio.create_task(write())
    await asyncio.to_thread(inside.wait, SECONDS)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    await database.run(add, 2)
    assert names(file) == ["2"]


async def test_a_missing_table_is_unavailable_until_it_is_there(database: Database, file: Path) -> None:
    """As during the restore of a backup."""
    ledger = Ledger(database)
    with sqlite3.connect(file) as connection:
        connection.execute("ALTER TABLE audit_event RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await ledger.record_event(event())
    with sqlite3.connect(file) as connection:
        connection.execute("ALTER TABLE elsewhere RENAME TO audit_event")
    await ledger.record_event(event())
    assert rows(file, "SELECT count(*) FROM audit_event") == [(1,)]


async def test_a_full_disk_is_unavailable_and_what_was_recorded_stays(database: Database, file: Path) -> None:
    pages = [int(str(rows(file, "PRAGMA page_count")[0][0])) + 20]

    @engine_events.listens_for(database.writing_engine, "checkout")
    def limit(connection: DBAPIConnection, *_others: object) -> None:
        connection.cursor().execute(f"PRAGMA max_page_count={pages[0]}")

    ledger = Ledger(database)
    recorded: set[str] = set()

    async def record(count: int) -> None:
        batch = [certificate_record() for _ in range(count)]
        await asyncio.gather(*(ledger.record(*each) for each in batch))
        recorded.update(record.fingerprint.hex() for record, _event in batch)

    async def fill_up() -> None:
        for _ in range(100):
            await record(10)

    with pytest.raises(Unavailable) as caught:
        await fill_up()
    assert "full" in str(caught.value.__cause__)
    assert recorded
    assert Store(sqlite_url(file)).recorded() == recorded
    pages[0] = 10_000
    await record(10)
    assert Store(sqlite_url(file)).recorded() == recorded


@pytest.mark.slow
@pytest.mark.parametrize("way", ["run", "write", "insert"])
async def test_nothing_begins_while_another_process_holds_the_lock(
    impatient: Database, file: Path, way: str
) -> None:
    async def write() -> None:
        if way == "run":
            await impatient.run(add, 1)
        elif way == "insert":
            await impatient.insert((BulkInsert(tables.progress), [{"name": "1", "value": ""}]))
        else:
            async with impatient.transaction() as transaction:
                await transaction.run_sync(add, 1)

    with child("write-and-wait", Store(sqlite_url(file))) as other:
        start(other)
        assert other.stdout is not None
        assert other.stdout.readline() == "inside\n"
        suspend(other.pid)
        with pytest.raises(NothingBegun):
            await write()
        assert names(file) == []
        other.kill()
        other.wait()
    await write()
    assert names(file) == ["1"]


async def test_the_log_is_written_back_when_the_last_one_closes(file: Path) -> None:
    database = patient(sqlite_url(file))
    await database.run(add, 1)
    await database.close()
    assert not Path(f"{file}-wal").exists()
    assert names(file) == ["1"]


async def test_those_who_wait_for_another_process_give_up_together(impatient: Database, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outcomes = await asyncio.gather(
            *(impatient.run(add, number) for number in range(3)), return_exceptions=True
        )
    for outcome in outcomes:
        assert isinstance(outcome, NothingBegun)
        assert "locked" in str(outcome.__cause__)
    assert names(file) == []
