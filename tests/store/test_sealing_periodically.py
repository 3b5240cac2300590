"""What a worker does each second: one of several seals, another one goes on where it ends, and failures end nothing."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import sealing
from capturing import captured_logs
from clustercert.app import periodic
from clustercert.audit.sealer import MAX_BATCH
from clustercert.background import running
from clustercert.custody import write_new_kek_file
from sealing import Log, check
from stores import Store
from waiting import eventually_async


@pytest.fixture
def kek(tmp_path: Path) -> Path:
    path = tmp_path / "kek"
    write_new_kek_file(path)
    return path


@pytest.fixture
async def logs(store: Store, kek: Path) -> AsyncIterator[tuple[Log, Log]]:
    async with sealing.opened(store, kek) as one, sealing.opened(store, kek) as other:
        yield one, other


@pytest.mark.parametrize("a_second", [0, 1, 50, 127, 200, 2000, 5000, 9000])
def test_batches_are_spread_over_the_time_and_large_enough(a_second: int) -> None:
    """Of a steady stream, after an idle time: what waits stays what a second or two brings, then little."""
    took, now, seconds, waiting = 0.003, 0.0, periodic.SEAL_SECONDS, 0.0
    seen: list[tuple[float, float, int]] = []
    while now < 30:
        now += seconds + took
        waiting += a_second * (seconds + took)
        sealed = int(min(waiting, MAX_BATCH))
        seen.append((now, waiting, sealed))
        waiting -= sealed
        seconds = periodic.until_next_seal(seconds, sealed)
    assert max(waited for _, waited, _ in seen) <= max(1.7 * a_second, MAX_BATCH)
    settled = [(waited, sealed) for at, waited, sealed in seen if at > 15]
    assert max(waited for waited, _ in settled) <= max(2 * MAX_BATCH, 1.1 * min(a_second, MAX_BATCH))
    # At most one seal of a second's events, or batches that are half full on average.
    assert sum(sealed for _, sealed in settled) / len(settled) >= min(MAX_BATCH / 2.5, a_second)


def unsealed(store: Store) -> object:
    return store.rows("SELECT count(*) FROM audit_unsealed")[0][0]


@pytest.mark.slow
async def test_one_worker_seals_and_another_goes_on_when_it_ends(logs: tuple[Log, Log], store: Store) -> None:
    one, other = logs
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(running(periodic.sealing(one.database, one.sealer)))
        await eventually_async(lambda: bool(store.rows("SELECT 1 FROM lease WHERE name = 'seal'")))
        [(holder,)] = store.rows("SELECT holder FROM lease WHERE name = 'seal'")
        await second.enter_async_context(running(periodic.sealing(other.database, other.sealer)))
        await one.happen(3)
        await eventually_async(lambda: unsealed(store) == 0)
        assert store.rows("SELECT holder FROM lease WHERE name = 'seal'") == [(holder,)]
        await one.happen(2)
        await first.aclose()
        assert unsealed(store) == 0, "what happened last was sealed at the end"
        await other.happen(2)
        await eventually_async(lambda: unsealed(store) == 0)
    assert store.rows("SELECT * FROM lease WHERE name = 'seal'") == []
    assert check(store) == 9


async def test_a_failure_is_said_and_sealing_goes_on_after_it(logs: tuple[Log, Log], store: Store) -> None:
    one, _ = logs
    await one.sealer.seal_all()
    [(size,)] = store.rows("SELECT size FROM audit_log")
    with captured_logs(periodic) as said:
        async with running(periodic.sealing(one.database, one.sealer)):
            store.execute("UPDATE audit_log SET size = 1")
            await one.happen(1)
            await eventually_async(lambda: any("can't be sealed" in line["event"] for line in said))
            store.execute("UPDATE audit_log SET size = ?", size)
            await eventually_async(lambda: unsealed(store) == 0)
    [line] = [line for line in said if "can't be sealed" in line["event"]][:1]
    assert line["log_level"] == "error"
    assert "another tree" in line["problem"]
    assert check(store) == 3


async def test_a_database_that_is_away_ends_nothing(logs: tuple[Log, Log], store: Store) -> None:
    one, _ = logs
    await one.happen(1)
    store.execute("ALTER TABLE audit_tile RENAME TO audit_tile_away")
    with captured_logs(periodic) as said:
        async with running(periodic.sealing(one.database, one.sealer)):
            await eventually_async(lambda: any("were not sealed" in line["event"] for line in said))
            store.execute("ALTER TABLE audit_tile_away RENAME TO audit_tile")
            await eventually_async(lambda: unsealed(store) == 0)
    assert check(store) == 3
