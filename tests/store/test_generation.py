"""Caches are out of date for at most one second after a change by another process."""

import asyncio
import time

import pytest
from sqlalchemy import insert, select

from clustercert.model.errors import StoreFault, Unavailable
from clustercert.observability import metrics
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Cache, Generation
from clustercert.store.engine.outage import Outage
from support.log_capture import captured_lines_of_new_loggers
from support.stores import Store, child, event, start
from support.wait import eventually_async


class Numbers:
    """A generation number and a clock that the test controls."""

    def __init__(self) -> None:
        self.value = 0
        self.away = False
        self.reads = 0
        self.time = 1000.0

    async def read(self) -> int:
        self.reads += 1
        if self.away:
            raise Unavailable("away") from OSError("gone")
        return self.value

    def clock(self) -> float:
        return self.time


class Loads:
    """Counts what a cache loads."""

    def __init__(self, value: str | None = "value") -> None:
        self.value = value
        self.count = 0

    async def __call__(self, key: str) -> str | None:
        self.count += 1
        return self.value


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def generation(numbers: Numbers) -> Generation:
    return Generation(numbers.read, numbers.clock)


async def test_a_change_by_another_process_holds_here_within_a_second(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.transaction() as connection:
        await connection.execute(insert(tables.domain).values(id="1" * 32, name="old", enabled=True))

    async def load(domain_id: str) -> str | None:
        async with database.read() as connection:
            query = select(tables.domain.c.name).where(tables.domain.c.id == domain_id)
            return (await connection.execute(query)).scalar()

    cache: Cache[str, str] = Cache(database.generation, 10)
    # It stands still until the other process begins, however long the preparation takes.
    stopped_at = time.monotonic()
    monkeypatch.setattr(database.generation, "_clock", lambda: stopped_at)
    with child("rename-domain", store) as process:
        async with database.generation.watching():
            await database.generation.refresh()
            assert await cache.get("1" * 32, load) == "old"
            # Changed without raising the generation, to prove that the values come from the caches.
            store.execute("UPDATE domain SET name = 'unnoticed'")
            assert await cache.get("1" * 32, load) == "old"
            last_old = stopped_at
            monkeypatch.setattr(database.generation, "_clock", time.monotonic)
            start(process)

            async def is_new() -> bool:
                nonlocal last_old
                asked_at = time.monotonic()
                if await cache.get("1" * 32, load) == "new":
                    return True
                last_old = asked_at
                return False

            await eventually_async(is_new)
        assert process.stdout is not None
        assert last_old - float(process.stdout.readline()) < Generation.STALE_AFTER


async def test_nothing_is_answered_from_memory_before_the_number_is_read(generation: Generation) -> None:
    cache, load = Cache[str, str](generation, 10), Loads()
    assert not generation.fresh()
    for count in (1, 2, 3):
        assert await cache.get("key", load) == "value"
        assert load.count == count
    await generation.refresh()
    for _ in range(3):
        assert await cache.get("key", load) == "value"
        assert load.count == 4


async def test_nothing_is_answered_from_memory_while_the_number_cant_be_read(
    generation: Generation, numbers: Numbers
) -> None:
    cache, load = Cache[str, str](generation, 10), Loads()
    await generation.refresh()
    await cache.get("key", load)
    numbers.away = True
    with pytest.raises(Unavailable):
        await generation.refresh()
    numbers.time += Generation.STALE_AFTER - 0.001
    await cache.get("key", load)
    assert load.count == 1
    numbers.time += 0.001
    await cache.get("key", load)
    assert load.count == 2
    numbers.away = False
    await generation.refresh()
    await cache.get("key", load)
    assert load.count == 3, "changes may have been lost, so the value is loaded once more"
    await cache.get("key", load)
    assert load.count == 3


@pytest.mark.parametrize("how", ["one read failed", "no read for too long"])
async def test_everything_is_forgotten_after_an_interruption(
    generation: Generation, numbers: Numbers, how: str
) -> None:
    """An asynchronous failover may lose a generation, and other changes may reach the same number again."""
    cache, load = Cache[str, str](generation, 10), Loads()
    await generation.refresh()
    await cache.get("key", load)
    if how == "one read failed":
        numbers.away = True
        with pytest.raises(Unavailable):
            await generation.refresh()
        numbers.away = False
    else:
        numbers.time += Generation.STALE_AFTER
    load.value = "from the new primary"
    await generation.refresh()
    assert await cache.get("key", load) == "from the new primary"
    numbers.time += Generation.INTERVAL
    await generation.refresh()
    await cache.get("key", load)
    assert load.count == 2, "reading without interruption keeps the cached values"


async def test_a_value_read_before_an_interruption_is_not_kept(
    generation: Generation, numbers: Numbers
) -> None:
    cache = Cache[str, str](generation, 10)
    await generation.refresh()

    async def load_during_failover(_key: str) -> str:
        numbers.time += Generation.STALE_AFTER
        await generation.refresh()
        return "old"

    assert await cache.get("key", load_during_failover) == "old"
    assert await cache.get("key", Loads("new")) == "new"


async def test_the_age_of_the_number_counts_from_the_asking(numbers: Numbers) -> None:
    async def slow_read() -> int:
        numbers.time += 0.8
        return 1

    generation = Generation(slow_read, numbers.clock)
    await generation.refresh()
    assert generation.fresh()
    numbers.time += 0.2
    assert not generation.fresh()


@pytest.mark.parametrize("moved_to", [1, -1], ids=["risen", "restored from a backup"])
async def test_everything_is_forgotten_when_the_number_moves(
    generation: Generation, numbers: Numbers, moved_to: int
) -> None:
    cache, load = Cache[str, str](generation, 10), Loads()
    await generation.refresh()
    await cache.get("key", load)
    numbers.value = moved_to
    await generation.refresh()
    load.value = "new"
    assert await cache.get("key", load) == "new"


async def test_a_value_read_before_the_number_moved_is_not_kept(
    generation: Generation, numbers: Numbers
) -> None:
    cache = Cache[str, str](generation, 10)
    await generation.refresh()
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def slow_load(_key: str) -> str:
        reading.set()
        await go_on.wait()
        return "old"

    slow = asyncio.create_task(cache.get("key", slow_load))
    await reading.wait()
    numbers.value += 1
    await generation.refresh()
    assert await cache.get("key", Loads("new")) == "new"
    go_on.set()
    assert await slow == "old"
    assert await cache.get("key", Loads("newest")) == "new"


async def test_absence_is_not_remembered(generation: Generation) -> None:
    cache, load = Cache[str, str](generation, 10), Loads(None)
    await generation.refresh()
    assert await cache.get("key", load) is None
    load.value = "created"
    assert await cache.get("key", load) == "created"


async def test_the_least_recently_used_goes_first(generation: Generation) -> None:
    cache, load = Cache[str, str](generation, 2), Loads()
    await generation.refresh()
    for key in ("a", "b", "a", "c"):
        await cache.get(key, load)
    assert load.count == 3
    await cache.get("a", load)
    assert load.count == 3
    await cache.get("b", load)
    assert load.count == 4


async def test_what_a_load_raises_passes_through_and_is_not_kept(generation: Generation) -> None:
    cache = Cache[str, str](generation, 10)
    await generation.refresh()

    async def broken(_key: str) -> str:
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        await cache.get("key", broken)
    assert await cache.get("key", Loads()) == "value"


async def test_the_watch_goes_on_through_failures_and_tells_of_each_once(numbers: Numbers) -> None:
    class Impatient(Generation):
        INTERVAL = 0.001

    generation = Impatient(numbers.read, numbers.clock)
    counter = metrics.BACKGROUND_FAILURES.labels("read the generation")._value
    counted = counter.get()
    numbers.away = True
    with captured_lines_of_new_loggers() as logs:
        async with generation.watching():
            await eventually_async(lambda: numbers.reads >= 3)
            assert generation.value == -1
            numbers.away, numbers.value = False, 5
            await eventually_async(lambda: generation.value == 5)
            numbers.away, numbers.reads = True, 0
            await eventually_async(lambda: numbers.reads >= 3)
    # The second failures came less than a second after the last read, so the caches stayed in use.
    assert [log["event"] for log in logs] == ["caches disabled", "caches enabled again"]
    assert (logs[0]["cause"], logs[0]["work"]) == ("OSError('gone')", "read the generation")
    assert logs[1]["work"] == "read the generation"
    # Each failed read is counted, and at least three failed each time.
    assert counter.get() >= counted + 6


async def test_an_outage_is_a_line_at_its_begin_one_a_minute_and_one_at_its_end(numbers: Numbers) -> None:
    class Impatient(Generation):
        INTERVAL = 0.001

    outage = Outage(numbers.clock)
    generation = Impatient(numbers.read, numbers.clock, outage)
    with captured_lines_of_new_loggers() as logs:
        async with generation.watching():
            await eventually_async(generation.fresh)
            numbers.away = True
            for _ in range(250):
                numbers.time += 0.5
                numbers.reads = 0
                await eventually_async(lambda: numbers.reads >= 2)
            assert outage.is_ongoing
            numbers.away = False
            await eventually_async(lambda: not outage.is_ongoing)
    begin, off, first, second, end, on = logs
    assert [log["event"] for log in (begin, first, second, end)] == [
        "database unavailable",
        *["database still unavailable"] * 2,
        "database available again",
    ]
    assert (begin["cause"], begin["seconds"]) == ("OSError('gone')", 0)
    assert (first["seconds"], second["seconds"]) == (60, 120)
    assert 124 <= end["seconds"] <= 125
    assert (off["event"], on["event"]) == ("caches disabled", "caches enabled again")
    assert {log["log_level"] for log in (begin, off, first, second)} == {"warning"}
    assert {log["log_level"] for log in (end, on)} == {"info"}


async def test_an_outage_that_needs_an_operator_says_what_to_do() -> None:
    outage = Outage()
    with captured_lines_of_new_loggers() as logs:
        outage.failed(StoreFault("The database server rejects the login."))
    [line] = logs
    assert line["reason"] == "The database server rejects the login."


async def test_a_store_without_its_number_turns_the_caches_off(database: Database, store: Store) -> None:
    store.execute("DROP TABLE generation")
    with pytest.raises(Unavailable):
        await database.generation.refresh()
    with captured_lines_of_new_loggers() as logs:
        async with database.generation.watching():
            await eventually_async(lambda: logs)
            assert not database.generation.fresh()


async def test_a_change_of_ones_own_is_seen_at_once_after_a_refresh(database: Database) -> None:
    await database.generation.refresh()
    before = database.generation.value
    async with database.transaction(event(), invalidate=True):
        pass
    await database.generation.refresh()
    assert database.generation.value == before + 1


async def test_a_store_that_is_being_restored_ends_no_watch(database: Database, store: Store) -> None:
    [(value,)] = store.rows("SELECT value FROM generation")
    store.execute("DELETE FROM generation")
    with captured_lines_of_new_loggers() as logs:
        async with database.generation.watching():
            await eventually_async(lambda: logs)
            store.execute("INSERT INTO generation (id, value) VALUES (1, ?)", value)
            await eventually_async(database.generation.fresh)


def test_a_change_applies_within_a_second_and_who_waits_for_it_waits_longer() -> None:
    """Other tests shorten these times."""
    assert Generation.STALE_AFTER == 1.0
    assert Generation.PROPAGATION == Generation.STALE_AFTER + Generation.INTERVAL > 1.0
