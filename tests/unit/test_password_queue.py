"""The order of password checks."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clustercert.identity.passwords import COUNTED_SECONDS, KNOWN_FAILURES, Contender, PasswordQueue
from clustercert.model.errors import Unavailable

GENUINE = Contender("192.0.2.1", "alice")


@dataclass
class Checks:
    """Attempts at a queue with one turn, which `advance` hands on. `order`: the attempts that got a turn."""

    seconds: float = 0
    max_waiting: int = 1000
    order: list[str] = field(default_factory=list)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = PasswordQueue(1, self.max_waiting, lambda: self.seconds)
        self.end = asyncio.Semaphore(0)

    async def attempt(self, contender: Contender | None, name: str, *, succeeds: bool = False) -> None:
        async with self.queue.turn(contender):
            self.order.append(name)
            await self.end.acquire()
        if succeeds:
            self.queue.forget(contender)

    async def add(
        self, contender: Contender | None, name: str, *, succeeds: bool = False
    ) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.attempt(contender, name, succeeds=succeeds))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def advance(self, checks: int) -> None:
        for _ in range(checks):
            self.end.release()
            for _ in range(5):
                await asyncio.sleep(0)

    async def finish(self) -> Sequence[BaseException | None]:
        for _ in self.tasks:
            self.end.release()
        return await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def checks() -> AsyncIterator[Checks]:
    checks = Checks()
    yield checks
    await checks.finish()


async def test_equal_attempts_are_first_come_first_served(checks: Checks) -> None:
    for number in range(5):
        await checks.add(Contender(f"192.0.2.{number}", "alice"), str(number))
    await checks.finish()
    assert checks.order == ["0", "1", "2", "3", "4"]


async def test_a_source_with_many_attempts_waits_behind_others(checks: Checks) -> None:
    for number in range(60):
        await checks.add(Contender("203.0.113.9", f"user {number}"), "attack")
    await checks.add(GENUINE, "genuine")
    await checks.finish()
    # One attack runs, and one was there first without earlier attempts.
    assert checks.order.index("genuine") <= 2


@pytest.mark.parametrize("new_names", [False, True])
async def test_sixty_attackers_who_have_failed_before_wait_behind_a_genuine_login(
    checks: Checks, new_names: bool
) -> None:
    def attack(number: int, round_: int) -> Contender:
        return Contender(f"203.0.113.{number}", f"user {round_}" if new_names else "alice")

    for number in range(60):
        await checks.add(attack(number, 1), "attack")
    await checks.advance(60)
    for number in range(60):
        await checks.add(attack(number, 2), "attack")
    await checks.add(GENUINE, "genuine")
    await checks.finish()
    assert checks.order.index("genuine") == 61


async def test_a_user_name_under_attack_waits_behind_others_at_the_same_source(checks: Checks) -> None:
    for _ in range(60):
        await checks.add(Contender(GENUINE.source, "mallory"), "attack")
    await checks.add(GENUINE, "genuine")
    await checks.finish()
    assert checks.order.index("genuine") == 1


async def test_successful_logins_do_not_count(checks: Checks) -> None:
    office = "198.51.100.1"
    for number in range(20):
        await checks.add(Contender(office, f"user {number}"), "right", succeeds=True)
        await checks.advance(1)
    await checks.add(None, "running")
    await checks.add(Contender("203.0.113.9", "mallory"), "once")
    await checks.add(Contender("203.0.113.9", "eve"), "twice")
    await checks.add(Contender(office, "alice"), "office")
    await checks.finish()
    assert checks.order[-4:] == ["running", "once", "office", "twice"]


async def test_failures_are_forgotten_after_a_minute(checks: Checks) -> None:
    attacker = Contender("203.0.113.9", "mallory")
    await checks.add(attacker, "failed")
    await checks.advance(1)
    checks.seconds += COUNTED_SECONDS
    await checks.add(None, "running")
    await checks.add(attacker, "attacker")
    await checks.add(GENUINE, "genuine")
    await checks.finish()
    assert checks.order == ["failed", "running", "attacker", "genuine"]


@pytest.mark.parametrize("network", ["2001:db8:5:{:x}::/64", "2001:db8:{:x}:1::/64", "203.0.113.{}"])
async def test_attackers_with_a_new_address_for_each_attempt_wait_behind_a_new_user(
    checks: Checks, network: str
) -> None:
    for number in range(140):
        await checks.add(Contender(network.format(number), f"user {number}"), "attack")
    await checks.add(GENUINE, "genuine")
    await checks.finish()
    # Sixteen attempts are allowed in the widest network, and one is running.
    assert checks.order.index("genuine") <= 17


async def test_a_user_who_logged_in_from_the_network_before_comes_first(checks: Checks) -> None:
    for number in range(140):
        await checks.add(Contender(f"{number}.0.2.1", "alice"), "attack")
    await checks.add(replace(GENUINE, is_known=True), "genuine")
    await checks.finish()
    assert checks.order.index("genuine") == 1


async def test_a_known_pair_loses_its_precedence_after_ten_failures(checks: Checks) -> None:
    known = replace(GENUINE, is_known=True)
    for number in range(KNOWN_FAILURES):
        await checks.add(known, f"failure {number}")
        await checks.advance(1)
    await checks.add(None, "running")
    await checks.add(Contender("198.51.100.1", "bob"), "new user")
    await checks.add(known, "known")
    await checks.add(None, "hashing")
    await checks.finish()
    assert checks.order[-4:] == ["running", "hashing", "new user", "known"]


async def test_a_full_queue_rejects_the_last_of_the_largest_network() -> None:
    checks = Checks(max_waiting=20)
    await checks.add(None, "running")
    genuine = [await checks.add(Contender(f"{n}.0.2.1", "a"), "genuine") for n in range(4)]
    # All are in one /24, in which four attempts are allowed.
    attacks = [await checks.add(Contender(f"203.0.113.{n}", "a"), "attack") for n in range(16)]
    genuine += [await checks.add(Contender(f"{n}.0.2.1", "a"), "genuine") for n in range(4, 8)]
    await checks.add(Contender("192.0.2.1", "known", is_known=True), "known")
    await checks.finish()
    assert [each.exception() for each in genuine] == [None] * 8
    assert [isinstance(each.exception(), Unavailable) for each in attacks] == [False] * 11 + [True] * 5
    assert checks.order[1] == "known"


async def test_a_full_queue_rejects_the_last_in_it_not_the_latest() -> None:
    checks = Checks(max_waiting=10)
    for number in range(11):
        await checks.add(Contender("203.0.113.9", f"user {number}"), "attack")
    genuine = await checks.add(GENUINE, "genuine")
    results = await checks.finish()
    assert genuine.exception() is None
    rejected = [result for result in results if isinstance(result, Unavailable)]
    assert [failure.retry_after for failure in rejected] == [2]
    assert isinstance(results[10], Unavailable)
    assert len(checks.order) == 11


async def test_a_rejected_attempt_does_not_count() -> None:
    checks = Checks(max_waiting=0)
    await checks.add(None, "running")
    for _ in range(10):
        await checks.add(GENUINE, "rejected")
    await checks.finish()
    await checks.add(None, "running")
    await checks.add(Contender("198.51.100.1", "bob"), "without failures")
    await checks.add(GENUINE, "genuine")
    await checks.add(Contender(GENUINE.source, "bob"), "same source")
    await checks.finish()
    assert checks.order[-3:] == ["without failures", "genuine", "same source"]


@pytest.mark.parametrize("position", [0, 1, 2, 3])
async def test_a_cancelled_attempt_passes_its_turn_on(position: int) -> None:
    checks = Checks()
    tasks = [await checks.add(Contender(f"192.0.2.{n}", "a"), str(n)) for n in range(4)]
    # The next one gets the turn, but has not run yet.
    checks.end.release()
    tasks[position].cancel()
    await checks.advance(4)
    await asyncio.gather(*tasks, return_exceptions=True)
    later = await checks.add(GENUINE, "later")
    await checks.advance(1)
    await later
    assert checks.order[-1] == "later"
    assert checks.queue._free == 1


CONTENDERS = st.builds(
    Contender,
    source=st.sampled_from(
        [
            "192.0.2.1",
            "192.0.2.2",
            "198.51.100.1",
            "2001:db8:1:1::/64",
            "2001:db8:1:2::/64",
            "2001:db8:2:1::/64",
        ]
    ),
    user=st.sampled_from(["alice", "bob", "carol", "dave"]),
    is_known=st.booleans(),
)


@given(contenders=st.lists(CONTENDERS, max_size=40), max_waiting=st.integers(0, 40))
def test_known_pairs_never_wait_behind_others_and_are_rejected_last(
    contenders: list[Contender], max_waiting: int
) -> None:
    pairs = Counter((each.source, each.user) for each in contenders)
    assume(all(count <= KNOWN_FAILURES for count in pairs.values()))

    async def run() -> Checks:
        checks = Checks(max_waiting=max_waiting)
        await checks.add(None, "running")
        for number, contender in enumerate(contenders):
            await checks.add(contender, str(number))
        await checks.finish()
        return checks

    checks = asyncio.run(run())
    rejected = [number for number, task in enumerate(checks.tasks[1:]) if task.exception() is not None]
    served = [int(name) for name in checks.order[1:]]
    assert sorted(served + rejected) == list(range(len(contenders)))
    assert len(rejected) == max(0, len(contenders) - max_waiting)
    were_known = [contenders[number].is_known for number in served]
    assert were_known == sorted(were_known, reverse=True)
    known = sum(each.is_known for each in contenders)
    assert sum(were_known) == min(known, max_waiting)
