import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from bench import flame, processes, report, scaling, targets
from bench.meter import Meter
from bench.scaling import Cost, Place

T = TypeVar("T")


def test_the_documents_say_what_was_measured() -> None:
    measured = report.load()
    performance = report.DOCUMENT.read_text(encoding="utf-8")
    assert report.filled(performance, report.performance(measured)) == performance
    assert scaling.main([]) == 0


def test_scaling_multiplies_and_divides() -> None:
    each = Cost(worker_us=1000, cold_worker_us=3000, database_us=100, stored_bytes=2500, wal_bytes=4000)
    is_ = scaling.need(Place("a town", clusters=1, live=28_800_000), each)
    assert is_.rate == 1000
    assert is_.peak == 3000
    assert is_.worker_cores == 6
    assert is_.cold_worker_cores == 18
    assert is_.database_cores == 1
    assert is_.wal_megabytes == pytest.approx(12)
    assert is_.stored_terabytes == pytest.approx((1.512, 19.44))
    assert is_.cells == (1, 3)


def test_scaling_says_what_is_not_measured_yet() -> None:
    with pytest.raises(ValueError, match="run make bench"):
        scaling.cost({})


def test_tables_are_put_between_their_marks() -> None:
    document = "a\n<!-- bench:one -->\nold\n<!-- end -->\nz\n"
    assert report.filled(document, {"one": "new"}) == document.replace("old", "new")
    with pytest.raises(ValueError, match="no place for two"):
        report.filled(document, {"two": "new"})


def test_figures_have_three_digits_that_mean_something() -> None:
    table = report.markdown(("what", "figure"), [("a", 1234.5), ("b", 12.345), ("c", 1.2345)])
    assert table.splitlines()[1:] == ["| --- | ---: |", "| a | 1,234 |", "| b | 12.3 |", "| c | 1.23 |"]


def test_a_target_that_was_not_measured_is_neither_reached_nor_missed() -> None:
    assert {target.verdict for target in targets.judge({})} == {"not measured"}


def test_a_meter_counts_a_coroutine_s_own_time_alone() -> None:
    meter = Meter()

    def work(units: int) -> None:
        for _ in range(units):
            json.dumps(list(range(1000)))

    async def small() -> int:
        work(1)
        await asyncio.sleep(0)
        return 7

    async def both() -> int:
        metered = asyncio.create_task(_awaited(meter.coroutine("small", small)))
        await asyncio.sleep(0)
        work(2000)
        return await metered

    assert asyncio.run(both()) == 7
    assert 0 < meter.seconds["small"] < 0.02


async def _awaited(function: Callable[[], Awaitable[T]]) -> T:
    return await function()


def test_a_meter_hands_on_what_is_thrown() -> None:
    meter = Meter()

    async def failing() -> None:
        raise KeyError("it")

    async def endless() -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        async with asyncio.timeout(0.01):
            await meter.coroutine("endless", endless)()

    with pytest.raises(KeyError):
        asyncio.run(_awaited(meter.coroutine("failing", failing)))
    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())


def test_processor_time_of_this_process_rises() -> None:
    before = processes.cpu_seconds(os.getpid())
    while processes.cpu_seconds(os.getpid()) < before + 0.02:
        pass
    assert os.getpid() in processes.tree(os.getpid())


def test_the_flame_graph_folds_samples_into_frames() -> None:
    raw = (
        'process 1:"python";<module> (<string>:1);Edge.__call__ (clustercert/web/edge.py:48);a (x.py:1) 3\n'
        'process 1:"python";<module> (<string>:1);Edge.__call__ (clustercert/web/edge.py:50);b (x.py:2) 1\n'
        'process 1:"python";Thread.run (threading.py:1) 4\n'
    )
    root = flame.read(raw)
    assert root.samples == 8
    requests = root.calls["requests"]
    assert requests.samples == 4
    (edge,) = requests.calls.values()
    assert {name: frame.samples for name, frame in edge.calls.items()} == {"a (x.py)": 3, "b (x.py)": 1}
    drawn = flame.draw(root, "a <title>")
    assert "a &lt;title&gt;" in drawn
    assert "Edge.__call__ (clustercert/web/edge.py): 50.0 %" in drawn
