"""Leader election: taking, renewing, giving up and taking over a lease."""

import asyncio

import pytest

from clustercert.model.errors import Unavailable
from clustercert.store.engine.database import Database
from clustercert.store.engine.leader import Leader
from support.stores import Store, patient


async def test_one_of_several_candidates_leads_and_goes_on_leading(store: Store) -> None:
    databases = [patient(store.url) for _ in range(4)]
    candidates = [Leader(database, "work") for database in databases]
    first = await asyncio.gather(*(candidate.leads() for candidate in candidates))
    assert sorted(first) == [False, False, False, True]
    assert await asyncio.gather(*(candidate.leads() for candidate in candidates)) == first
    for database in databases:
        await database.close()


async def test_each_work_has_its_own_leader(database: Database) -> None:
    one, other = Leader(database, "work"), Leader(database, "other work")
    assert await one.leads()
    assert await other.leads()


async def test_another_one_takes_over_at_once_from_a_leader_that_resigns(database: Database) -> None:
    one, other = Leader(database, "work"), Leader(database, "work")
    assert await one.leads()
    await other.resign()
    assert not await other.leads(), "only the leader can resign"
    await one.resign()
    assert await other.leads()
    assert not await one.leads()


async def test_another_one_takes_over_where_the_databases_clock_was_put_back(
    database: Database, store: Store
) -> None:
    one, other = Leader(database, "work"), Leader(database, "work")
    assert await one.leads()
    assert not await other.leads()
    store.execute("UPDATE lease SET expires_at = expires_at + 86400")
    assert await other.leads()
    assert not await one.leads()


async def test_an_expired_lease_is_taken_over_by_the_databases_clock(
    database: Database, store: Store
) -> None:
    one, other = Leader(database, "work", seconds=3600), Leader(database, "work", seconds=3600)
    assert await one.leads()
    [(expires_at,)] = store.rows("SELECT expires_at FROM lease")
    store.execute("UPDATE lease SET expires_at = expires_at - 1800")
    assert not await other.leads()
    store.execute("UPDATE lease SET expires_at = expires_at - 1801")
    assert await other.leads()
    assert not await one.leads(), "whoever comes back late has lost it"
    [(renewed_at,)] = store.rows("SELECT expires_at FROM lease")
    assert isinstance(expires_at, int)
    assert isinstance(renewed_at, int)
    assert 0 <= renewed_at - expires_at <= 600


async def test_without_a_database_nobody_leads(database: Database, store: Store) -> None:
    store.execute("DROP TABLE lease")
    with pytest.raises(Unavailable):
        await Leader(database, "work").leads()
