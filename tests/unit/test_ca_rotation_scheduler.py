"""Which rotations are advanced when. The store and the steps are doubles, and the test sets the clock."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from clustercert.jobs.ca_rotation import (
    INTERVAL,
    MAX_AT_ONCE,
    MAX_WITH_PROBLEMS,
    RETRY_SECONDS,
    RotationScheduler,
)
from clustercert.model.errors import Unavailable
from clustercert.store.clusters.ca_rotations import RunningRotation
from support.wait import eventually_async

WAIT = 60.0


@dataclass
class World:
    """The running rotations, and the steps that began.

    Attributes:
        hanging: clusters whose steps never end.
        failure: raised by each step, if it is set.
    """

    rotations: dict[str, RunningRotation] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    hanging: set[str] = field(default_factory=set)
    failure: Exception | None = None
    time: float = 1000.0

    def add(self, cluster_id: str, version: int = 0, *, has_problem: bool = False) -> None:
        self.rotations[cluster_id] = RunningRotation(cluster_id, version, has_problem)

    async def running(self) -> tuple[RunningRotation, ...]:
        return tuple(self.rotations.values())

    async def advance(self, cluster_id: str) -> timedelta:
        self.begun.append(cluster_id)
        if cluster_id in self.hanging:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return timedelta(seconds=WAIT)


@pytest.fixture
def world() -> World:
    return World()


Steps = Callable[[], Awaitable[list[str]]]


@pytest.fixture
def steps(world: World) -> Steps:
    """Run the scheduler once. Returns the clusters whose steps began, once those that can end have ended."""
    scheduler = RotationScheduler(world, world.advance, lambda: world.time)

    async def run() -> list[str]:
        before = len(world.begun)
        assert await scheduler.step() == INTERVAL
        await eventually_async(lambda: scheduler._running.keys() <= world.hanging & set(world.begun))
        return world.begun[before:]

    return run


async def test_a_rotation_is_advanced_again_after_the_time_that_its_step_says(
    world: World, steps: Steps
) -> None:
    world.add("a")
    assert await steps() == ["a"]
    world.time += WAIT - 1
    assert await steps() == []
    world.time += 1
    assert await steps() == ["a"]


async def test_a_changed_rotation_is_advanced_soon(world: World, steps: Steps) -> None:
    world.add("a")
    await steps()
    world.add("a", version=1)
    assert await steps() == []
    world.time += INTERVAL
    assert await steps() == ["a"]


async def test_a_step_that_hangs_delays_no_other(world: World, steps: Steps) -> None:
    for number in range(MAX_AT_ONCE - 1):
        world.add(f"hangs-{number}")
    world.hanging = set(world.rotations)
    await steps()
    for name in ("a", "b"):
        world.add(name)
    assert sorted([*await steps(), *await steps()]) == ["a", "b"]
    assert len(world.begun) == MAX_AT_ONCE + 1


async def test_rotations_with_problems_leave_room_for_the_others(world: World, steps: Steps) -> None:
    for number in range(MAX_AT_ONCE):
        world.add(f"hangs-{number}", has_problem=True)
    world.hanging = set(world.rotations)
    assert len(await steps()) == MAX_WITH_PROBLEMS
    world.add("a")
    assert await steps() == ["a"]


@pytest.mark.parametrize("failure", [Unavailable("The database is away."), RuntimeError("a fault of ours")])
async def test_a_failed_step_is_repeated(world: World, steps: Steps, failure: Exception) -> None:
    world.add("a")
    world.failure = failure
    assert await steps() == ["a"]
    assert await steps() == []
    world.time += RETRY_SECONDS
    assert await steps() == ["a"]


async def test_the_end_of_the_leader_cancels_its_steps(world: World) -> None:
    scheduler = RotationScheduler(world, world.advance, lambda: world.time)
    world.add("a")
    world.hanging = {"a"}
    await scheduler.step()
    await eventually_async(lambda: world.begun)
    await scheduler.finish()
    world.hanging = set()
    await scheduler.step()
    await eventually_async(lambda: world.begun == ["a", "a"])
