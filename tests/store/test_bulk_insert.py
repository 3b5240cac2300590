"""Bulk inserts into several tables: all rows or none, and on PostgreSQL in one statement."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

from clustercert.model.errors import Unavailable
from clustercert.store import tables
from clustercert.store.audit.events import event_row
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.bulk_insert import BulkInsert
from clustercert.store.engine.connections import POOL_SIZE
from clustercert.store.engine.database import Database
from clustercert.store.engine.writer import NothingBegun
from support.lock_waits import LockWaits
from support.stores import Store, certificate_record, event, patient

INSERT_PROGRESS = BulkInsert(tables.progress)
INSERT_EVENT = BulkInsert(tables.audit_event)


@pytest.fixture
async def on_server(on_postgresql: Store) -> AsyncIterator[Database]:
    database = patient(on_postgresql.url)
    yield database
    await database.close()


def progress(number: int) -> dict[str, object]:
    return {"name": f"progress {number}", "value": f"{number}"}


async def test_rows_of_several_tables_are_there_in_their_order(database: Database, store: Store) -> None:
    subjects = [f"subject {number}" for number in range(40)]
    await database.insert(
        (INSERT_PROGRESS, [progress(1), progress(2)]),
        (INSERT_EVENT, [event_row(event(subject=subject)) for subject in subjects]),
    )
    assert store.rows("SELECT name, value FROM progress ORDER BY name") == [
        ("progress 1", "1"),
        ("progress 2", "2"),
    ]
    assert store.rows("SELECT subject FROM audit_event ORDER BY id") == [(each,) for each in subjects]


@pytest.mark.parametrize("refused", [0, 1])
async def test_what_is_refused_in_one_table_leaves_nothing_in_the_other(
    database: Database, store: Store, refused: int
) -> None:
    rows = [progress(1), event_row(event())]
    rows[refused][["value", "body"][refused]] = None
    with pytest.raises(IntegrityError):
        await database.insert((INSERT_PROGRESS, rows[:1]), (INSERT_EVENT, rows[1:]))
    for table in ("progress", "audit_event"):
        assert store.rows(f"SELECT count(*) FROM {table}") == [(0,)]


async def test_where_there_are_no_rows_nothing_is_done(database: Database, store: Store) -> None:
    await database.insert()
    await database.insert((INSERT_PROGRESS, []), (INSERT_EVENT, []))
    await database.insert((INSERT_PROGRESS, [progress(1)]), (INSERT_EVENT, []))
    assert store.rows("SELECT name FROM progress") == [("progress 1",)]


async def test_the_statement_is_prepared_once_for_any_number_of_rows(
    on_server: Database, on_postgresql: Store
) -> None:
    for count in (1, 2, 30, 128):
        rows = [event_row(event()) for _ in range(count)]
        values = [progress(1000 * count + number) for number in range(count)]
        await on_server.insert((INSERT_PROGRESS, values), (INSERT_EVENT, rows))
    prepared = text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'WITH part%'")
    async with on_server.read() as connection:
        assert (await connection.execute(prepared)).scalar_one() == 1
    assert on_postgresql.rows("SELECT count(*) FROM audit_event") == [(161,)]


async def test_what_is_too_long_is_refused_and_not_cut_off(on_server: Database, on_postgresql: Store) -> None:
    record, issued = certificate_record()
    with pytest.raises(DBAPIError, match="too long"):
        await Ledger(on_server).record(replace(record, serial="1" * 41), issued)
    assert on_postgresql.recorded() == set()


async def test_a_time_without_a_zone_is_refused(on_server: Database, on_postgresql: Store) -> None:
    naive = event_row(event()) | {"at": datetime(2026, 3, 14)}  # noqa: DTZ001 - tests a naive time
    with pytest.raises(ValueError, match="naive"):
        await on_server.insert((INSERT_EVENT, [naive]))


REFUSES_OTHER_LEVELS = """
    CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN ASSERT current_setting(''transaction_isolation'') = ''read committed''; RETURN NULL; END'
"""
TRIGGER = "CREATE TRIGGER looks AFTER INSERT ON audit_event FOR EACH STATEMENT EXECUTE FUNCTION look()"


async def test_the_statement_is_read_committed_whatever_the_server_says(
    on_server: Database, on_postgresql: Store
) -> None:
    """In a stricter isolation level, the server could reject it because of other transactions."""
    name = make_url(on_postgresql.url).database
    on_postgresql.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    for statement in (REFUSES_OTHER_LEVELS, TRIGGER):
        on_postgresql.execute(statement)
    await on_server.insert((INSERT_EVENT, [event_row(event())]))
    assert on_postgresql.rows("SELECT count(*) FROM audit_event") == [(1,)]


async def test_where_there_is_no_server_nothing_was_begun() -> None:
    away = Database("postgresql+asyncpg://nobody@127.0.0.1:9/nothing", busy_seconds=1)
    with pytest.raises(NothingBegun):
        await away.insert((INSERT_EVENT, [event_row(event())]))
    await away.close()


async def test_a_connection_that_was_lost_is_not_used_again(
    on_server: Database, on_postgresql: Store
) -> None:
    """The outcome of the statement on the lost connection is unknown."""
    async with on_server.read() as connection:
        pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    on_postgresql.rows("SELECT pg_terminate_backend(?, 5000)", pid)
    with pytest.raises(Unavailable) as caught:
        await on_server.insert((INSERT_EVENT, [event_row(event())]))
    assert not isinstance(caught.value, NothingBegun)
    await on_server.insert((INSERT_EVENT, [event_row(event())]))
    assert on_postgresql.rows("SELECT count(*) FROM audit_event") == [(1,)]


async def test_those_who_insert_leave_connections_to_the_readers(
    on_server: Database, on_postgresql: Store
) -> None:
    other = patient(on_postgresql.url)
    waits = LockWaits(on_server, on_postgresql)
    async with other.transaction() as connection:
        await connection.execute(text("LOCK TABLE audit_event IN EXCLUSIVE MODE"))
        inserting = [
            asyncio.create_task(on_server.insert((INSERT_EVENT, [event_row(event())])))
            for _ in range(POOL_SIZE)
        ]
        await waits.begun(*inserting, count=POOL_SIZE // 2)
        await on_server.ping()
        assert not any(task.done() for task in inserting)
    await asyncio.gather(*inserting)
    await other.close()
    assert on_postgresql.rows("SELECT count(*) FROM audit_event") == [(POOL_SIZE,)]
