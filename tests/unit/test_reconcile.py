"""When clusters are brought up to date, by a clock that the test turns. The store is a list, and nothing is asked."""

import asyncio
import itertools
from dataclasses import dataclass, field, replace

import pytest

from clustercert.enforcement.reconcile import (
    LONGEST_RETRY_SECONDS,
    MAX_AT_ONCE,
    MAX_RETRIED_AT_ONCE,
    SWEEP_SECONDS,
    Reconciler,
)
from clustercert.errors import RemoteFailed, Unavailable
from clustercert.kubeapi import Refused
from clustercert.model import Cluster, ClusterOptions
from clustercert.store.enforcement import Touched
from nouns import NOW, cluster
from waiting import eventually_async

GUARDED = ClusterOptions(admission=True)


def named(number: int, options: ClusterOptions = GUARDED) -> Cluster:
    return replace(cluster(), id=f"{number:036x}", options=options)


@dataclass
class Leader:
    leading: bool = True
    resigned: bool = False
    asked: int = 0

    async def leads(self) -> bool:
        self.asked += 1
        return self.leading

    async def resign(self) -> None:
        self.resigned = True


@dataclass
class World:
    """What there is, and what was done.

    Attributes:
        failing: what bringing up to date comes to, by cluster.
        done: the clusters that it was tried for, in order.
        finished: those of them for which it came to its end.
        hold: where it is set, nothing is finished before it is released.
    """

    clusters: dict[str, Cluster] = field(default_factory=dict)
    changes: list[tuple[int, str]] = field(default_factory=list)
    generation: int = 0
    time: float = 1000.0
    failing: dict[str, Exception] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    hold: asyncio.Event | None = None
    too_many: bool = False
    away: bool = False

    async def newest(self) -> int:
        return self.generation

    async def touched(self, since: int, now: object) -> Touched:
        if self.away:
            raise Unavailable("The database is away.")
        if self.too_many:
            return Touched(None, self.generation)
        found = frozenset(cluster_id for changed, cluster_id in self.changes if changed > since)
        return Touched(found, max((changed for changed, _ in self.changes), default=since))

    async def guarded(self, after: str, limit: int) -> tuple[Cluster, ...]:
        wanted = (known for known in self.clusters.values() if known.options != ClusterOptions())
        return tuple(known for known in sorted(wanted, key=lambda known: known.id) if known.id > after)[
            :limit
        ]

    async def some(self, ids: frozenset[str]) -> tuple[Cluster, ...]:
        return tuple(known for known in self.clusters.values() if known.id in ids)

    async def sync(self, which: Cluster) -> None:
        self.done.append(which.id)
        if self.hold is not None:
            await self.hold.wait()
        if which.id in self.failing:
            raise self.failing[which.id]
        self.finished.append(which.id)

    def add(self, *known: Cluster) -> None:
        self.clusters |= {each.id: each for each in known}

    def revoke(self, where: Cluster) -> None:
        self.generation += 1
        self.changes.append((self.generation, where.id))


def reconciler(world: World, leader: Leader | None = None) -> Reconciler:
    return Reconciler(
        feed=world,
        clusters=world,
        leader=leader or Leader(),  # type: ignore[arg-type] # what is used of it
        sync=world.sync,
        generation=lambda: world.generation,
        now=lambda: NOW,
        clock=lambda: world.time,
    )


@pytest.fixture
def world() -> World:
    return World()


async def turn(one: Reconciler) -> None:
    await one.look()
    if one._running:
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_at_first_every_cluster_that_asks_for_it_is_looked_at(world: World) -> None:
    wanted = [named(number) for number in range(3)]
    world.add(*wanted, named(9, ClusterOptions()))
    await turn(reconciler(world))
    assert sorted(world.done) == [each.id for each in wanted]


async def test_a_revocation_has_its_cluster_looked_at_and_no_other(world: World) -> None:
    world.add(named(1), named(2))
    one = reconciler(world)
    await turn(one)
    world.done.clear()
    await turn(one)
    assert world.done == []
    world.revoke(named(2))
    await turn(one)
    assert world.done == [named(2).id]
    await turn(one)
    assert world.done == [named(2).id]


async def test_a_revocation_in_a_cluster_that_does_not_ask_for_it_costs_nothing(world: World) -> None:
    world.add(named(1, ClusterOptions()))
    one = reconciler(world)
    await turn(one)
    world.revoke(named(1))
    world.revoke(named(7))
    await turn(one)
    assert (world.done, one._due) == ([], {})


@pytest.mark.parametrize("options", [ClusterOptions(credential_roles={}), ClusterOptions(admission=True)])
async def test_a_cluster_that_binds_no_more_is_still_looked_after(
    world: World, options: ClusterOptions
) -> None:
    world.add(named(1, options))
    await turn(reconciler(world))
    assert world.done == [named(1).id]


async def test_all_are_looked_at_now_and_then(world: World) -> None:
    world.add(named(1))
    one = reconciler(world)
    await turn(one)
    world.time += SWEEP_SECONDS - 1
    await turn(one)
    assert len(world.done) == 1
    world.time += 1
    await turn(one)
    assert len(world.done) == 2


async def test_more_changes_than_can_be_told_apart_have_all_looked_at(world: World) -> None:
    world.add(named(1), named(2))
    one = reconciler(world)
    await turn(one)
    world.too_many, world.generation = True, 5000
    await turn(one)
    assert sorted(world.done) == sorted(2 * [named(1).id, named(2).id])


@pytest.mark.parametrize("failure", [Unavailable("No."), RemoteFailed("No."), Refused(403, "no")])
async def test_a_failure_is_tried_again_ever_less_often(world: World, failure: Exception) -> None:
    world.add(named(1))
    world.failing[named(1).id] = failure
    one = reconciler(world)
    tries = []
    for _ in range(250):
        before = len(world.done)
        one._swept_at = world.time  # so that nothing but the failure has it tried
        if before == 0:
            one._swept_at = float("-inf")
        await turn(one)
        if len(world.done) > before:
            tries.append(world.time)
        world.time += 1
    waits = [after - before for before, after in itertools.pairwise(tries)]
    assert waits[:6] == [1, 2, 4, 8, 16, 32]
    assert set(waits[6:]) == {LONGEST_RETRY_SECONDS}
    del world.failing[named(1).id]
    world.time += LONGEST_RETRY_SECONDS
    await turn(one)
    assert one._due == {}


async def test_a_bug_is_tried_again_like_any_failure(world: World) -> None:
    world.add(named(1), named(2))
    world.failing[named(1).id] = KeyError("bug")
    one = reconciler(world)
    await turn(one)
    world.time += 1
    await turn(one)
    assert world.done == [named(1).id, named(2).id, named(1).id]


async def test_a_revocation_makes_a_failing_cluster_due_at_once(world: World) -> None:
    world.add(named(1))
    world.failing[named(1).id] = Unavailable("No.")
    one = reconciler(world)
    for _ in range(5):
        await turn(one)
        world.time += 20
    tried = len(world.done)
    await turn(one)
    world.revoke(named(1))
    await turn(one)
    assert len(world.done) > tried


async def test_those_that_fail_hold_up_none_of_the_others(world: World) -> None:
    bad = [named(number) for number in range(100, 140)]
    world.add(*bad)
    world.failing = {each.id: Unavailable("No.") for each in bad}
    one = reconciler(world)
    for _ in range(5):
        await turn(one)
    world.time += 10
    world.hold = asyncio.Event()
    await turn(one)
    assert len(one._running) == MAX_RETRIED_AT_ONCE
    world.done.clear()
    world.add(named(1))
    world.revoke(named(1))
    await turn(one)
    assert world.done == [named(1).id]
    world.hold.set()
    await one.idle()


async def test_only_so_many_at_once(world: World) -> None:
    world.add(*(named(number) for number in range(3 * MAX_AT_ONCE)))
    world.hold = asyncio.Event()
    one = reconciler(world)
    for _ in range(3):
        await turn(one)
    assert len(world.done) == MAX_AT_ONCE
    world.hold.set()
    await one.idle()
    for _ in range(3):
        await turn(one)
    await one.idle()
    assert len(set(world.done)) == 3 * MAX_AT_ONCE == len(world.done)


async def test_what_comes_while_a_cluster_is_looked_at_has_it_looked_at_again(world: World) -> None:
    world.add(named(1))
    world.hold = asyncio.Event()
    one = reconciler(world)
    await turn(one)
    world.revoke(named(1))
    await turn(one)
    assert len(world.done) == 1
    world.hold.set()
    await one.idle()
    await turn(one)
    assert len(world.done) == 2


async def test_a_change_that_could_not_be_read_is_read_the_next_time(world: World) -> None:
    world.add(named(1))
    one = reconciler(world)
    await turn(one)
    world.revoke(named(1))
    world.away = True
    with pytest.raises(Unavailable):
        await one.look()
    world.away = False
    await turn(one)
    assert len(world.done) == 2


async def test_a_cluster_that_was_removed_is_forgotten(world: World) -> None:
    world.add(named(1))
    world.failing[named(1).id] = Unavailable("No.")
    one = reconciler(world)
    await turn(one)
    world.clusters.clear()
    world.time += 5
    await turn(one)
    assert one._due == {}


async def test_the_process_that_does_not_lead_does_nothing_and_takes_over_with_all(world: World) -> None:
    world.add(named(1))
    leader = Leader(leading=False)
    one = reconciler(world, leader)
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    await eventually_async(lambda: leader.asked == 1)
    world.time += 10
    await eventually_async(lambda: leader.asked == 2)
    world.time += 10
    # The first turn has ended by now.
    assert world.done == []
    leader.leading = True
    await eventually_async(lambda: world.done)
    assert world.done == [named(1).id]
    stop.set()
    await running
    assert leader.resigned


async def test_a_bug_ends_nothing_for_good(world: World) -> None:
    world.add(named(1))
    one = reconciler(world)
    failed = asyncio.Event()

    def failing() -> int:
        failed.set()
        raise KeyError

    one.generation = failing
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    await failed.wait()
    one.generation = lambda: world.generation
    await eventually_async(lambda: world.done)
    stop.set()
    await running
    assert world.done == [named(1).id]


async def test_the_end_waits_for_what_is_under_way(world: World) -> None:
    world.add(named(1))
    world.hold = asyncio.Event()
    one = reconciler(world)
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    await eventually_async(lambda: world.done)
    stop.set()
    asyncio.get_running_loop().call_later(0.05, world.hold.set)
    await running
    # It would have been cancelled.
    assert world.finished == [named(1).id]
    assert one._running == {}


async def test_the_end_does_not_wait_for_ever(world: World) -> None:
    world.add(named(1))
    world.hold = asyncio.Event()
    leader = Leader()
    one = reconciler(world, leader)
    one.patience = 0.1
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    await eventually_async(lambda: world.done)
    stop.set()
    async with asyncio.timeout(5):
        await running
    assert (one._running, leader.resigned) == ({}, True)
