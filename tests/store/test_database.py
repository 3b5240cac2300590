"""The database: durability, the meaning of errors, and cleaning up after them."""

import asyncio
import contextlib
import gc
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import event as engine_events
from sqlalchemy import insert, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError, ProgrammingError

from clustercert.model import Actor
from clustercert.model.errors import Unavailable
from clustercert.model.events.administration import RoleChanged
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.engine.transaction import Transaction
from support.lock_waits import LockWaits
from support.stores import ORIGIN, Store, event, execute, rows, sqlite_url
from support.wait import SECONDS, eventually_async


async def add_domain(connection: Transaction, number: int = 1) -> None:
    row = {"id": f"{number:032x}", "name": f"domain {number}", "enabled": True}
    await connection.execute(insert(tables.domain).values(row))


@contextlib.asynccontextmanager
async def opened(store: Store | Path, busy_seconds: float = SECONDS) -> AsyncIterator[Database]:
    database = Database(store.url if isinstance(store, Store) else sqlite_url(store), busy_seconds, SECONDS)
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def on_sqlite(file: Path) -> AsyncIterator[Database]:
    async with opened(file) as database:
        yield database


async def test_only_the_owner_can_read_a_new_database(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        async with opened(tmp_path / "new.db") as database, database.transaction() as connection:
            await connection.execute(text("CREATE TABLE x (y)"))
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(umask)
    names = ("new.db", "new.db-wal", "new.db-shm")
    assert modes == dict.fromkeys(names, 0o600)


async def test_an_existing_file_keeps_its_mode(file: Path) -> None:
    file.chmod(0o640)
    async with opened(file) as database:
        await database.ping()
    assert file.stat().st_mode & 0o777 == 0o640


async def test_every_connection_is_durable_and_checks_foreign_keys(on_sqlite: Database) -> None:
    for door in (on_sqlite.read, on_sqlite.transaction):
        async with door() as connection:
            settings = [
                (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert settings == ["wal", 2, 1]


async def test_only_the_writer_can_write(on_sqlite: Database, file: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        async with on_sqlite.read() as connection:
            await connection.execute(insert(tables.domain).values(id="1", name="one", enabled=True))
    assert "readonly" in str(caught.value.__cause__)
    assert rows(file, "SELECT count(*) FROM domain") == [(0,)]


async def test_rows_and_events_are_there_when_the_block_is_left(database: Database, store: Store) -> None:
    async with database.transaction(
        event("domain.created", "one"), event("domain.created", "two")
    ) as connection:
        await add_domain(connection)
        assert store.rows("SELECT count(*) FROM domain") == [(0,)]
    assert store.rows("SELECT count(*) FROM domain") == [(1,)]
    assert store.rows("SELECT id, subject FROM audit_event") == [(1, "one"), (2, "two")]


async def test_a_block_that_fails_leaves_nothing(database: Database, store: Store) -> None:
    async def fail_half_way() -> None:
        async with database.transaction(event(), invalidate=True) as connection:
            await add_domain(connection)
            raise KeyError

    with pytest.raises(KeyError):
        await fail_half_way()
    for table in ("domain", "audit_event"):
        assert store.rows(f"SELECT count(*) FROM {table}") == [(0,)]
    assert store.rows("SELECT value FROM generation") == [(0,)]


async def test_only_a_change_raises_the_generation(database: Database, store: Store) -> None:
    async with database.transaction(event()) as connection:
        await add_domain(connection, 1)
    assert store.rows("SELECT value FROM generation") == [(0,)]
    async with database.transaction(event(), invalidate=True) as connection:
        await add_domain(connection, 2)
    assert store.rows("SELECT id, value FROM generation") == [(1, 1)]


async def test_an_event_is_committed_to_with_its_salt(database: Database, store: Store) -> None:
    happened = RoleChanged(
        at=event().at,
        kind="role.assigned",
        project_id="p" * 32,
        actor=Actor("ü", ORIGIN),
        subject="bob",
        role="admin",
        assignee="user",
        name="bob",
        project=None,
    )
    async with database.transaction(happened, happened):
        pass
    bodies = store.rows("SELECT body, salt, commitment FROM audit_event")
    for body, salt, commitment in bodies:
        assert isinstance(body, bytes)
        assert isinstance(salt, bytes)
        assert len(salt) == 16
        assert commitment == hashlib.sha256(salt + body).digest()
    assert bodies[0][0] == bodies[1][0] == (
        b'{"actor":"\\u00fc","at":"2026-03-14T15:09:26+00:00","detail":{"assignee":"user","name":"bob",'
        b'"project":null,"role":"admin"},"kind":"role.assigned","project_id":"pppppppppppppppppppppppppppppppp",'
        b'"request_id":"ffffffffffffffffffffffffffffffff","source":"192.0.2.1","subject":"bob","version":1}'
    )  # fmt: skip
    assert bodies[0][1] != bodies[1][1]


async def test_a_new_file_that_somebody_reads_is_waited_for(tmp_path: Path) -> None:
    """When several processes open a new file, SQLite does not wait for its switch to WAL."""
    new = tmp_path / "new.db"
    execute(new, "CREATE TABLE generation (value)")
    execute(new, "INSERT INTO generation VALUES (0)")
    async with opened(new) as database:

        async def write() -> None:
            async with database.transaction():
                pass

        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM generation")
            statements: list[str] = []
            engine_events.listen(
                database.writing_engine,
                "connect",
                lambda connection, _entry: connection.set_trace_callback(statements.append),
                insert=True,
            )
            writing = asyncio.create_task(write())
            # The second attempt comes after the first was rejected.
            await eventually_async(lambda: statements.count("PRAGMA journal_mode=WAL") >= 2)
            assert not writing.done()
            other.execute("COMMIT")
            await writing


async def test_a_reader_keeps_its_snapshot(database: Database) -> None:
    count = select(tables.domain.c.id)
    async with database.read() as reader:
        assert (await reader.execute(count)).all() == []
        async with database.transaction() as writer:
            await add_domain(writer)
        assert (await reader.execute(count)).all() == []
    async with database.read() as reader:
        assert len((await reader.execute(count)).all()) == 1


async def test_writers_queue(database: Database, store: Store) -> None:
    async def write(number: int) -> None:
        async with database.transaction() as connection:
            await add_domain(connection, number)

    await asyncio.gather(*(write(number) for number in range(40)))
    assert store.rows("SELECT count(*) FROM domain") == [(40,)]


async def test_a_broken_constraint_is_told_to_the_caller(database: Database) -> None:
    async with database.transaction() as connection:
        await add_domain(connection)
    with pytest.raises(IntegrityError):
        async with database.transaction() as connection:
            await add_domain(connection)


async def test_a_wrong_statement_is_not_called_a_failure_of_the_database(on_sqlite: Database) -> None:
    with pytest.raises(ProgrammingError):
        async with on_sqlite.read() as connection:
            await connection.exec_driver_sql("SELECT ?, ?", (1,))


async def test_a_locked_database_is_unavailable_for_writers_only(file: Path) -> None:
    async with opened(file, busy_seconds=0.05) as database:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable) as caught:
                async with database.transaction():
                    pytest.fail("the lock was not respected")
            assert "locked" in str(caught.value.__cause__)
            await database.ping()
            other.execute("COMMIT")
        async with database.transaction() as connection:
            await add_domain(connection)


async def test_waiting_writers_leave_connections_to_the_readers(file: Path) -> None:
    async with opened(file) as database:
        waits = LockWaits(database, Store(sqlite_url(file)))

        async def write(number: int) -> None:
            async with database.transaction() as connection:
                await add_domain(connection, number)

        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writers = [asyncio.create_task(write(number)) for number in range(30)]
            await waits.begun(*writers)
            await database.ping()
            assert not any(writer.done() for writer in writers)
            other.execute("COMMIT")
        await asyncio.gather(*writers)
    assert rows(file, "SELECT count(*) FROM domain") == [(30,)]


async def test_a_writer_waits_its_patience_for_one_of_its_own_process(file: Path) -> None:
    async with opened(file, busy_seconds=0.05) as database:
        async with database.transaction():
            with pytest.raises(Unavailable):
                async with database.transaction():
                    pytest.fail("there are two writers")
        async with database.transaction():
            pass


async def test_a_missing_folder_is_unavailable_until_it_is_there(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "folder"
    async with opened(folder / "store.db") as database:
        with pytest.raises(Unavailable):
            await database.ping()
        folder.mkdir()
        file.rename(folder / "store.db")
        await database.ping()


async def test_something_else_than_a_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database, " * 100)
    async with opened(tmp_path / "store.db") as database:
        with pytest.raises(Unavailable):
            await database.ping()


async def test_a_full_disk_is_unavailable_and_loses_nothing(on_sqlite: Database, file: Path) -> None:
    pages = 160
    limit = [pages]

    @engine_events.listens_for(on_sqlite.writing_engine, "checkout")
    def limit_size(connection: DBAPIConnection, *_others: object) -> None:
        connection.cursor().execute(f"PRAGMA max_page_count={limit[0]}")

    async def fill(number: int) -> None:
        async with on_sqlite.transaction(event()) as connection:
            await add_domain(connection, number)
            data_key = {"id": number, "active": False, "created_at": event().at}
            await connection.execute(insert(tables.data_key).values(data_key))
            wrapping = {"data_key_id": number, "kek_id": "0" * 16, "wrapped": bytes(20_000)}
            await connection.execute(insert(tables.data_key_wrapping).values(wrapping))

    async def fill_up() -> None:
        for number in range(pages):
            await fill(number)

    with pytest.raises(Unavailable) as caught:
        await fill_up()
    assert "full" in str(caught.value.__cause__)
    [(written,)] = rows(file, "SELECT count(*) FROM domain")
    assert isinstance(written, int)
    assert 0 < written < pages
    for table in ("domain", "data_key_wrapping", "audit_event"):
        assert rows(file, f"SELECT count(*) FROM {table}") == [(written,)]
    limit[0] = 10 * pages
    await fill(written)
    assert rows(file, "SELECT count(*) FROM domain") == [(written + 1,)]


async def test_no_free_connection_is_unavailable(file: Path) -> None:
    async with opened(file, busy_seconds=0.05) as database, contextlib.AsyncExitStack() as stack:

        async def take_all() -> None:
            for _ in range(100):
                await stack.enter_async_context(database.read())

        with pytest.raises(Unavailable):
            await take_all()


async def test_cancelled_writers_leave_no_lock_behind(store: Store) -> None:
    async with opened(store) as database:

        async def write(number: int) -> None:
            async with database.transaction(event()) as connection:
                await add_domain(connection, number)

        for number in range(60):
            writers = [asyncio.create_task(write(10 * number + n)) for n in range(3)]
            # Each round interrupts them at a different point.
            await asyncio.sleep(number * 0.0003)
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
        # A lock that was left behind would not end before the database's patience.
        await asyncio.wait_for(write(10_000), SECONDS / 2)
    gc.collect()
    counts = "SELECT (SELECT count(*) FROM domain), (SELECT count(*) FROM audit_event)"
    [(domains, events)] = store.rows(counts)
    assert domains == events


async def test_what_a_driver_raises_about_a_new_connection_is_unavailable(database: Database) -> None:
    """The server fails between the login and the first statement."""

    class DriverError(Exception):
        pass

    def fail(*_: object) -> None:
        raise DriverError("the connection was closed in the middle of operation")

    engine = database.engine.sync_engine
    engine_events.listen(engine, "connect", fail)
    with pytest.raises(Unavailable):
        await database.ping()
    engine_events.remove(engine, "connect", fail)
    await database.ping()
