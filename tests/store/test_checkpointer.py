"""An SQLite file's log is written back beside the transactions, and nothing of what is in it is lost."""

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from clustercert.store.checkpointer import Checkpointer
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger
from stores import Store, certificate_record, sqlite_url


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A database in WAL mode whose rows are in the log alone."""
    path = tmp_path / "some.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE some (blob BLOB)")
    connection.executemany("INSERT INTO some VALUES (?)", [(bytes(4000),)] * 100)
    # Not closed: the last one to close a file writes it back.
    KEPT.append(connection)
    return path


KEPT: list[sqlite3.Connection] = []


def grows(path: Path, before: int, seconds: float = 10) -> bool:
    """Whether the file itself gets larger within a time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.stat().st_size > before:
            return True
        time.sleep(0.01)
    return False


def test_the_log_is_written_back_once_enough_has_changed(logged: Path) -> None:
    checkpointer = Checkpointer(str(logged), rows=100)
    before = logged.stat().st_size
    checkpointer.changed(99)
    assert not grows(logged, before, 0.2)
    checkpointer.changed(100)
    assert grows(logged, before)
    checkpointer.close()


def test_a_new_connection_counts_from_the_beginning(logged: Path) -> None:
    checkpointer = Checkpointer(str(logged), rows=100)
    checkpointer.changed(250)
    before = logged.stat().st_size
    assert grows(logged, before - 1)
    KEPT[-1].executemany("INSERT INTO some VALUES (?)", [(bytes(4000),)] * 300)
    before = logged.stat().st_size
    checkpointer.changed(3)
    assert grows(logged, before)
    checkpointer.close()


def test_it_ends_when_it_is_told_to_and_may_begin_again(logged: Path) -> None:
    checkpointer = Checkpointer(str(logged), rows=1)
    checkpointer.close()
    for rows in (1, 2):
        checkpointer.changed(rows)
        checkpointer.close()
    assert grows(logged, 0)


def test_a_file_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    checkpointer = Checkpointer(str(tmp_path / "some.db"), rows=1)
    checkpointer.changed(1)
    checkpointer.changed(2)
    checkpointer.close()
    assert list(tmp_path.iterdir()) == []


async def test_what_is_recorded_meanwhile_is_there_afterwards(file: Path) -> None:
    store = Store(sqlite_url(file))
    database = Database(store.url)
    ledger, records = Ledger(database), [certificate_record() for _ in range(900)]
    try:
        for start in range(0, len(records), 30):
            await asyncio.gather(*(ledger.record(*each) for each in records[start : start + 30]))
    finally:
        await database.close()
    assert store.recorded() == {record.fingerprint.hex() for record, _event in records}
    assert store.rows("PRAGMA integrity_check") == [("ok",)]
