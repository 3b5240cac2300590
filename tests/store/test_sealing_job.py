"""Periodic sealing by one of several workers, also after an error or the end of a worker."""

from collections.abc import AsyncIterator, MutableMapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from clustercert.audit.sealer import MAX_BATCH
from clustercert.background import running
from clustercert.custody.keks import write_new_kek_file
from clustercert.jobs import leader_job
from clustercert.jobs.leader_job import LeaderJob
from clustercert.jobs.sealing import SEAL_SECONDS, sealing, until_next_seal
from clustercert.observability import metrics
from clustercert.store.engine.leader import Leader
from support.log_capture import captured_logs
from support.sealer_process import SealerProcess, check, opened
from support.stores import Store
from support.wait import eventually_async

Logs = tuple[SealerProcess, SealerProcess]


@pytest.fixture
def kek(tmp_path: Path) -> Path:
    path = tmp_path / "kek"
    write_new_kek_file(path)
    return path


@pytest.fixture
async def logs(store: Store, kek: Path) -> AsyncIterator[Logs]:
    async with opened(store, kek) as one, opened(store, kek) as other:
        yield one, other


@pytest.mark.parametrize("a_second", [0, 1, 50, 127, 200, 2000, 5000, 9000])
def test_batches_are_evenly_spread_and_large_enough(a_second: int) -> None:
    """With a steady stream of events, the backlog stays small: first one or two seconds of it, then less."""
    took, now, seconds, waiting = 0.003, 0.0, SEAL_SECONDS, 0.0
    seen: list[tuple[float, float, int]] = []
    while now < 30:
        now += seconds + took
        waiting += a_second * (seconds + took)
        sealed = int(min(waiting, MAX_BATCH))
        seen.append((now, waiting, sealed))
        waiting -= sealed
        seconds = until_next_seal(seconds, sealed)
    assert max(waited for _, waited, _ in seen) <= max(1.7 * a_second, MAX_BATCH)
    settled = [(waited, sealed) for at, waited, sealed in seen if at > 15]
    assert max(waited for waited, _ in settled) <= max(2 * MAX_BATCH, 1.1 * min(a_second, MAX_BATCH))
    # At most one seal of a second's events, or batches that are half full on average.
    assert sum(sealed for _, sealed in settled) / len(settled) >= min(MAX_BATCH / 2.5, a_second)


def job(log: SealerProcess) -> LeaderJob:
    # The other one takes over within a third of the lease, and not before, however busy the machine is.
    return LeaderJob(Leader(log.database, "seal", 30), sealing(log.sealer))


def failures(reason: str) -> float:
    return float(metrics.SEALING_FAILURES.labels(reason)._value.get())


def damaged(line: MutableMapping[str, Any]) -> bool:
    return "does not match its tree" in line.get("error", "")


def unsealed(store: Store) -> object:
    return store.rows("SELECT count(*) FROM audit_unsealed")[0][0]


@pytest.mark.full
@pytest.mark.slow
async def test_one_worker_seals_and_another_one_takes_over(logs: Logs, store: Store) -> None:
    one, other = logs
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(running("work", job(one).run))
        await eventually_async(lambda: bool(store.rows("SELECT 1 FROM lease WHERE name = 'seal'")))
        [(holder,)] = store.rows("SELECT holder FROM lease WHERE name = 'seal'")
        await second.enter_async_context(running("work", job(other).run))
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


async def test_a_failure_is_logged_and_sealing_goes_on_after_it(logs: Logs, store: Store) -> None:
    one, _ = logs
    await one.sealer.seal_all()
    before = failures("other")
    [(size,)] = store.rows("SELECT size FROM audit_log")
    with captured_logs(leader_job) as said:
        async with running("work", job(one).run):
            store.execute("UPDATE audit_log SET size = 1")
            await one.happen(1)
            await eventually_async(lambda: any(damaged(line) for line in said))
            store.execute("UPDATE audit_log SET size = ?", size)
            await eventually_async(lambda: unsealed(store) == 0)
    [line] = [line for line in said if damaged(line)][:1]
    assert (line["event"], line["lease"], line["work"]) == ("periodic work failed", "seal", "seal events")
    assert line["log_level"] == "error"
    assert failures("other") > before
    assert check(store) == 3


async def test_sealing_goes_on_after_a_database_failure(logs: Logs, store: Store) -> None:
    one, _ = logs
    await one.happen(1)
    temporary, other = failures("unavailable"), failures("other")
    store.execute("ALTER TABLE audit_tile RENAME TO audit_tile_away")
    with captured_logs(leader_job) as said:
        async with running("work", job(one).run):
            await eventually_async(lambda: any(line["event"] == "periodic work failed" for line in said))
            store.execute("ALTER TABLE audit_tile_away RENAME TO audit_tile")
            await eventually_async(lambda: unsealed(store) == 0)
    assert failures("unavailable") > temporary
    assert failures("other") == other
    assert check(store) == 3
