"""When clusters are synced. The test sets the clock; the store and the API servers are doubles."""

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import cast

import pytest

from clustercert.kube_api import ApiServerRefused
from clustercert.kubernetes.reconcile import (
    EXPIRY_SECONDS,
    LONGEST_RETRY_SECONDS,
    MAX_AT_ONCE,
    MAX_RETRIED_AT_ONCE,
    SWEEP_SECONDS,
    Reconciler,
)
from clustercert.model import Cluster, ClusterOptions
from clustercert.model.errors import RemoteFailed, Unavailable
from clustercert.observability import metrics
from clustercert.store.kubernetes.enforcement import AffectedClusters
from support.own_gauge import OwnGauge
from support.samples import NOW, cluster
from support.wait import SECONDS

GUARDED = ClusterOptions(admission=True)


def named(number: int, options: ClusterOptions = GUARDED) -> Cluster:
    return replace(cluster(), id=f"{number:036x}", options=options)


@dataclass
class World:
    """Store and API servers.

    Attributes:
        failing: cluster id -> error of its syncs.
        done: ids of the clusters that were synced or failed, in order.
        finished: ids of the clusters with successful syncs.
        hold: syncs wait for this event, if there is one.
        remembered: the clusters that were not forgotten, each time.
        ends: clusters with the time when a token's validity ends.
    """

    clusters: dict[str, Cluster] = field(default_factory=dict)
    changes: list[tuple[int, str]] = field(default_factory=list)
    generation: int = 0
    time: float = 1000.0
    failing: dict[str, Exception] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    hold: asyncio.Event | None = None
    remembered: list[frozenset[str]] = field(default_factory=list)
    too_many: bool = False
    away: bool = False
    ends: list[tuple[Cluster, datetime]] = field(default_factory=list)
    now: datetime = NOW

    async def newest(self) -> int:
        return self.generation

    async def affected_clusters(self, since: int, now: object) -> AffectedClusters:
        if self.away:
            raise Unavailable("The database is away.")
        if self.too_many:
            return AffectedClusters(None, self.generation)
        found = frozenset(cluster_id for changed, cluster_id in self.changes if changed > since)
        return AffectedClusters(found, max((changed for changed, _ in self.changes), default=since))

    async def expired_clusters(self, since: datetime, now: datetime) -> frozenset[str]:
        return frozenset(where.id for where, at in self.ends if since < at <= now)

    async def enforced(self, after: str, limit: int) -> tuple[Cluster, ...]:
        wanted = (
            known
            for known in self.clusters.values()
            if known.options != ClusterOptions() or known.credential_kind == "token"
        )
        return tuple(known for known in sorted(wanted, key=lambda known: known.id) if known.id > after)[
            :limit
        ]

    async def clusters_with_ids(self, ids: frozenset[str]) -> tuple[Cluster, ...]:
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


def reconciler(world: World) -> Reconciler:
    return Reconciler(
        feed=world,
        clusters=world,
        sync=world.sync,
        forget_others=world.remembered.append,
        generation=lambda: world.generation,
        now=lambda: world.now,
        clock=lambda: world.time,
    )


@pytest.fixture
def world() -> World:
    return World()


async def turn(one: Reconciler) -> None:
    await one.step()
    if one._running:
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def idle(one: Reconciler) -> None:
    while one._running:
        await asyncio.wait([task for _, task in one._running.values()])


async def test_the_first_step_syncs_every_cluster_with_enforcement(world: World) -> None:
    wanted = [named(number) for number in range(3)]
    world.add(*wanted, named(9, ClusterOptions()))
    await turn(reconciler(world))
    assert sorted(world.done) == [each.id for each in wanted]


async def test_a_revocation_syncs_only_its_own_cluster(world: World) -> None:
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


async def test_a_revocation_in_a_cluster_without_enforcement_does_nothing(world: World) -> None:
    world.add(named(1, ClusterOptions()))
    one = reconciler(world)
    await turn(one)
    world.revoke(named(1))
    world.revoke(named(7))
    await turn(one)
    assert (world.done, one._due) == ([], {})


@pytest.mark.parametrize("options", [ClusterOptions(credential_roles={}), ClusterOptions(admission=True)])
async def test_a_cluster_without_bindings_is_still_synced(world: World, options: ClusterOptions) -> None:
    world.add(named(1, options))
    await turn(reconciler(world))
    assert world.done == [named(1).id]


async def test_all_clusters_are_synced_periodically(world: World) -> None:
    world.add(named(1))
    one = reconciler(world)
    await turn(one)
    world.time += SWEEP_SECONDS - 1
    await turn(one)
    assert len(world.done) == 1
    world.time += 1
    await turn(one)
    assert len(world.done) == 2


async def test_too_many_changes_sync_every_cluster(world: World) -> None:
    world.add(named(1), named(2))
    one = reconciler(world)
    await turn(one)
    world.too_many, world.generation = True, 5000
    await turn(one)
    assert sorted(world.done) == sorted(2 * [named(1).id, named(2).id])


@pytest.mark.parametrize("failure", [Unavailable("No."), RemoteFailed("No."), ApiServerRefused(403, "no")])
async def test_a_failure_is_retried_with_exponential_back_off(world: World, failure: Exception) -> None:
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


async def test_an_unexpected_error_is_retried_like_any_failure(world: World) -> None:
    world.add(named(1), named(2))
    world.failing[named(1).id] = KeyError("bug")
    one = reconciler(world)
    await turn(one)
    world.time += 1
    await turn(one)
    assert world.done == [named(1).id, named(2).id, named(1).id]


@pytest.fixture(autouse=True)
def gauge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ENFORCEMENT_FAILING", OwnGauge())


def failing() -> object:
    return cast("OwnGauge", metrics.ENFORCEMENT_FAILING).value


async def fail(world: World, *numbers: int) -> Reconciler:
    """Let the sync of these clusters fail once."""
    world.add(*map(named, numbers))
    world.failing = {each: Unavailable("No.") for each in world.clusters}
    one = reconciler(world)
    await turn(one)
    await idle(one)
    assert failing() == len(numbers)
    return one


@pytest.mark.parametrize("removed", [True, False])
async def test_a_removed_cluster_does_not_fail_any_longer(world: World, removed: bool) -> None:
    one = await fail(world, 1, 2)
    if removed:
        del world.clusters[named(1).id]
    else:
        world.add(named(1, ClusterOptions()))
    del world.failing[named(2).id]
    world.time += LONGEST_RETRY_SECONDS
    await turn(one)
    await idle(one)
    assert failing() == 0


async def test_the_only_failing_cluster_is_removed(world: World) -> None:
    one = await fail(world, 1)
    del world.clusters[named(1).id]
    world.time += LONGEST_RETRY_SECONDS
    await turn(one)
    assert failing() == 0


async def test_a_cluster_that_is_retried_still_fails(world: World) -> None:
    one = await fail(world, 1)
    world.hold = asyncio.Event()
    world.time += LONGEST_RETRY_SECONDS
    await turn(one)
    assert one._running.keys() == {named(1).id}
    assert failing() == 1
    world.hold.set()
    await idle(one)
    assert failing() == 1


async def test_a_former_leader_counts_no_cluster(world: World) -> None:
    one = await fail(world, 1)
    await one.finish()
    assert failing() == 0
    assert world.remembered == [frozenset({named(1).id}), frozenset()]


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


async def test_failing_clusters_do_not_delay_the_others(world: World) -> None:
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
    await idle(one)


async def test_the_number_of_concurrent_syncs_is_limited(world: World) -> None:
    world.add(*(named(number) for number in range(3 * MAX_AT_ONCE)))
    world.hold = asyncio.Event()
    one = reconciler(world)
    for _ in range(3):
        await turn(one)
    assert len(world.done) == MAX_AT_ONCE
    world.hold.set()
    await idle(one)
    for _ in range(3):
        await turn(one)
    await idle(one)
    assert len(set(world.done)) == 3 * MAX_AT_ONCE == len(world.done)


async def test_a_revocation_during_a_sync_causes_another_sync(world: World) -> None:
    world.add(named(1))
    world.hold = asyncio.Event()
    one = reconciler(world)
    await turn(one)
    world.revoke(named(1))
    await turn(one)
    assert len(world.done) == 1
    world.hold.set()
    await idle(one)
    await turn(one)
    assert len(world.done) == 2


async def test_a_revocation_during_a_sync_that_fails_does_not_wait_for_the_next_try(world: World) -> None:
    one = await fail(world, 1)
    world.time += LONGEST_RETRY_SECONDS
    world.hold = asyncio.Event()
    await turn(one)
    tried = len(world.done)
    world.revoke(named(1))
    await turn(one)
    world.hold.set()
    await idle(one)
    await turn(one)
    assert len(world.done) == tried + 1


async def test_a_change_that_could_not_be_read_is_read_in_the_next_step(world: World) -> None:
    world.add(named(1))
    one = reconciler(world)
    await turn(one)
    world.revoke(named(1))
    world.away = True
    with pytest.raises(Unavailable):
        await one.step()
    world.away = False
    await turn(one)
    assert len(world.done) == 2


async def test_a_removed_cluster_is_no_longer_due(world: World) -> None:
    world.add(named(1))
    world.failing[named(1).id] = Unavailable("No.")
    one = reconciler(world)
    await turn(one)
    world.clusters.clear()
    world.time += 5
    await turn(one)
    assert one._due == {}


async def test_after_finishing_it_starts_again_with_every_cluster(world: World) -> None:
    world.add(named(1), named(2))
    world.failing[named(1).id] = Unavailable("No.")
    one = reconciler(world)
    await turn(one)
    await one.finish()
    await turn(one)
    assert sorted(world.done) == sorted(2 * [named(1).id, named(2).id])


async def test_finishing_waits_for_running_syncs(world: World) -> None:
    world.add(named(1))
    world.hold = asyncio.Event()
    one = reconciler(world)
    await turn(one)
    asyncio.get_running_loop().call_later(0.05, world.hold.set)
    await one.finish()
    # It would have been cancelled.
    assert world.finished == [named(1).id]
    assert one._running == {}


async def test_finishing_cancels_syncs_that_take_too_long(world: World) -> None:
    world.add(named(1))
    world.hold = asyncio.Event()
    one = reconciler(world)
    one.patience = 0.1
    await turn(one)
    async with asyncio.timeout(SECONDS):
        await one.finish()
    assert (world.finished, one._running) == ([], {})


# Tokens


async def test_a_cluster_is_synced_within_a_second_after_a_token_has_ended(world: World) -> None:
    tokens = replace(named(1, ClusterOptions()), signer="token")
    world.add(tokens, named(2))
    one = reconciler(world)
    await turn(one)
    # Issued after the sweep.
    world.ends.append((tokens, NOW + timedelta(seconds=7)))
    world.done.clear()
    world.time, world.now = world.time + 6.5, NOW + timedelta(seconds=6.5)
    await turn(one)
    assert world.done == []
    world.time, world.now = world.time + EXPIRY_SECONDS, NOW + timedelta(seconds=7.5)
    await turn(one)
    assert world.done == [tokens.id]


async def test_without_clusters_of_tokens_nobody_asks_for_the_ends_of_tokens(world: World) -> None:
    world.add(named(1))
    one = reconciler(world)
    await turn(one)
    world.ends.append((named(1), NOW + timedelta(seconds=7)))
    world.done.clear()
    world.time, world.now = world.time + 8, NOW + timedelta(seconds=8)
    await turn(one)
    assert world.done == []
