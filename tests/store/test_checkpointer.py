"""The checkpointer copies the write-ahead log into an SQLite file during transactions, and loses no rows."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.checkpointer import Checkpointer
from support.stores import Store, certificate_record, patient, sqlite_url
from support.wait import eventually


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A database in WAL mode whose rows are only in the log."""
    path = tmp_path / "some.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE some (blob BLOB)")
    connection.executemany("INSERT INTO some VALUES (?)", [(bytes(4000),)] * 100)
    # Not closed, because closing the last connection checkpoints the file.
    KEPT.append(connection)
    return path


KEPT: list[sqlite3.Connection] = []


def has_thread(checkpointer: Checkpointer) -> bool:
    """Whether this one has a thread. A service of other tests may have others in this process."""
    return checkpointer._thread is not None


def wait_until_larger(path: Path, before: int) -> None:
    """Wait until the file itself is larger."""
    eventually(lambda: path.stat().st_size > before)


def test_the_log_is_written_back_once_enough_has_changed(logged: Path) -> None:
    checkpointer = Checkpointer(str(logged), rows=100)
    before = logged.stat().st_size
    checkpointer.changed(99)
    # Only the checkpointer copies the log into the file.
    assert not has_thread(checkpointer)
    checkpointer.changed(100)
    assert has_thread(checkpointer)
    wait_until_larger(logged, before)
    checkpointer.close()


def test_a_new_connection_counts_from_the_beginning(logged: Path) -> None:
    checkpointer = Checkpointer(str(logged), rows=100)
    checkpointer.changed(250)
    # Without this wait, the first checkpoint may also copy the rows below.
    wait_until_larger(logged, 100 * 4000)
    KEPT[-1].executemany("INSERT INTO some VALUES (?)", [(bytes(4000),)] * 300)
    before = logged.stat().st_size
    checkpointer.changed(3)
    wait_until_larger(logged, before)
    checkpointer.close()


def test_it_ends_when_it_is_told_to_and_may_begin_again(logged: Path) -> None:
    checkpointer = Checkpointer(str(logged), rows=1)
    checkpointer.close()
    for rows in (1, 2):
        checkpointer.changed(rows)
        checkpointer.close()
    wait_until_larger(logged, 0)


def test_a_file_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    checkpointer = Checkpointer(str(tmp_path / "some.db"), rows=1)
    checkpointer.changed(1)
    checkpointer.changed(2)
    checkpointer.close()
    assert list(tmp_path.iterdir()) == []


async def test_what_is_recorded_meanwhile_is_there_afterwards(file: Path) -> None:
    store = Store(sqlite_url(file))
    database = patient(store.url)
    ledger, records = Ledger(database), [certificate_record() for _ in range(900)]
    try:
        for start in range(0, len(records), 30):
            await asyncio.gather(*(ledger.record(*each) for each in records[start : start + 30]))
    finally:
        await database.close()
    assert store.recorded() == {record.fingerprint.hex() for record, _event in records}
    assert store.rows("PRAGMA integrity_check") == [("ok",)]
