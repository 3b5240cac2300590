"""PgBouncer in front of PostgreSQL: session pooling works, and pooling that shares sessions is refused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from clustercert.model.errors import StoreFault
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine import migrate
from clustercert.store.engine.connections import POOL_SIZE
from clustercert.store.engine.database import Database
from clustercert.store.engine.leader import Leader
from support import pgbouncer, postgres
from support.stores import Store, certificate_record, patient

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="pgbouncer is not installed"),
]


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = patient(url)
    try:
        yield database
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def busy(url: str) -> AsyncIterator[None]:
    """Clients of the pooler whose statements end in any order."""
    database = patient(url)
    stop = asyncio.Event()

    async def use(number: int) -> None:
        while not stop.is_set():
            async with database.read() as connection:
                await connection.execute(text(f"SELECT pg_sleep({number / 5000})"))

    async with asyncio.TaskGroup() as tasks:
        for number in range(POOL_SIZE):
            tasks.create_task(use(number))
        yield
        stop.set()
    await database.close()


async def assert_refused(url: str) -> None:
    async with opened(url) as database:
        for refused in (migrate.check, migrate.upgrade):
            with pytest.raises(StoreFault) as caught:
                await refused(database)
            assert "pool_mode = session" in caught.value.reason


# Without support for prepared statements, the driver's statements fail; with it, only settings are mixed up.
@pytest.mark.parametrize("prepared", ["0", "200"])
async def test_pooling_of_transactions_is_refused(
    server: postgres.Server, on_postgresql: Store, prepared: str
) -> None:
    with pgbouncer.pooled(server, "transaction", max_prepared_statements=prepared) as through:
        for _ in range(3):
            await assert_refused(through(on_postgresql.url))


async def test_pooling_of_transactions_is_refused_while_others_use_the_pooler(
    server: postgres.Server, on_postgresql: Store
) -> None:
    with pgbouncer.pooled(server, "transaction") as through:
        url = through(on_postgresql.url)
        async with busy(url):
            for _ in range(20):
                await assert_refused(url)


async def test_with_session_pooling_the_store_works_as_without(server: postgres.Server) -> None:
    store = Store(server.create())
    with pgbouncer.pooled(server, "session") as through:
        url = through(store.url)
        async with opened(url) as one, opened(url) as other:
            await asyncio.gather(*(migrate.upgrade(database) for database in (one, other, one)))
            assert await migrate.current(one) == migrate.head()
            records = [certificate_record() for _ in range(50)]
            ledgers = (Ledger(one), Ledger(other))
            await asyncio.gather(*(ledgers[n % 2].record(*each) for n, each in enumerate(records)))
            assert store.recorded() == {record.fingerprint.hex() for record, _ in records}
            candidates = Leader(one, "work"), Leader(other, "work")
            assert [await each.leads() for each in candidates] == [True, False]
            await candidates[0].resign()
            assert [await each.leads() for each in reversed(candidates)] == [True, False]
            async with other.transaction(invalidate=True):
                pass
            assert await one.read_generation() == 1
            for _ in range(POOL_SIZE):
                async with one.transaction() as connection:
                    shown = (await connection.execute(text("SHOW synchronous_commit"))).scalar_one()
                    assert shown == "on"
    store.remove()
