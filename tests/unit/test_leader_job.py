"""When a leader's work runs, and how it reacts to failures and to the loss of the lease. The lease is a double."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from clustercert.background import running
from clustercert.jobs import leader_job
from clustercert.jobs.leader_job import LeaderJob, PeriodicWork
from clustercert.model.errors import LogDamaged, Unavailable
from clustercert.observability import metrics
from support.log_capture import captured_lines
from support.wait import eventually_async


@dataclass
class Leader:
    name: str = "work"
    seconds: float = 0.03
    leading: bool = True
    failing: Exception | None = None
    asked: int = 0
    resigned: bool = False
    is_database_away: bool = False

    async def leads(self) -> bool:
        self.asked += 1
        if self.failing is not None:
            raise self.failing
        return self.leading

    async def resign(self) -> None:
        self.resigned = True


@dataclass
class Work:
    """Counts its runs.

    Attributes:
        hold: a run waits for this event, if there is one.
    """

    due_after: float = 0.005
    failing: Exception | None = None
    hold: asyncio.Event | None = None
    begun: int = 0
    ended: int = 0
    finished: int = 0

    async def run(self) -> float:
        self.begun += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.failing is not None:
            raise self.failing
        self.ended += 1
        return self.due_after

    async def finish(self) -> None:
        self.finished += 1
        if self.failing is not None:
            raise self.failing

    def piece(self, name: str = "count") -> PeriodicWork:
        return PeriodicWork(name, self.run, retry_seconds=0.005, finish=self.finish)


@asynccontextmanager
async def job(one: Leader, *work: Work) -> AsyncIterator[None]:
    pieces = [each.piece(f"count {number}") for number, each in enumerate(work)]
    async with running("work", LeaderJob(one, pieces).run):  # type: ignore[arg-type] # the parts of a leader that it uses
        yield


async def next_election(one: Leader) -> None:
    """Wait for two elections: by the second one, the job has acted on the first one."""
    asked = one.asked
    await eventually_async(lambda: one.asked >= asked + 2)


async def test_work_repeats_and_is_finished_before_the_leader_resigns() -> None:
    one, work = Leader(), Work()
    async with job(one, work):
        await eventually_async(lambda: work.ended >= 3)
        assert (work.finished, one.resigned) == (0, False)
    assert (work.finished, one.resigned) == (1, True)


async def test_work_that_is_not_due_is_not_done() -> None:
    often, seldom = Work(), Work(due_after=3600)
    async with job(Leader(), seldom, often):
        await eventually_async(lambda: often.ended >= 5)
    assert seldom.ended == 1


async def test_without_the_lease_nothing_is_done() -> None:
    one, work = Leader(leading=False), Work()
    async with job(one, work):
        await next_election(one)
        assert work.begun == 0
        one.leading = True
        await eventually_async(lambda: work.ended)
    assert one.resigned


async def test_work_stops_with_the_lease_and_starts_again_with_it() -> None:
    one, work = Leader(), Work(due_after=3600)
    async with job(one, work):
        await eventually_async(lambda: work.ended == 1)
        one.leading = False
        await eventually_async(lambda: work.finished == 1)
        await next_election(one)
        assert work.begun == 1
        one.leading = True
        await eventually_async(lambda: work.ended == 2)


async def test_the_lease_is_kept_while_work_takes_long() -> None:
    one, work = Leader(), Work(hold=asyncio.Event())
    async with job(one, work):
        await eventually_async(lambda: work.begun)
        await next_election(one)
        assert (work.begun, work.ended) == (1, 0)
        assert work.hold is not None
        work.hold.set()


@pytest.mark.parametrize(
    ("failure", "level"),
    [(Unavailable("No."), "warning"), (LogDamaged("Bad."), "error"), (KeyError("bug"), "error")],
)
async def test_a_failure_is_logged_and_other_work_goes_on(failure: Exception, level: str) -> None:
    bad, good = Work(failing=failure), Work()
    counted = metrics.BACKGROUND_FAILURES.labels("count 0")._value
    before = counted.get()
    with captured_lines(leader_job) as said:
        async with job(Leader(), bad, good):
            await eventually_async(lambda: bad.begun >= 2 and good.ended >= 2)
    assert (bad.finished, good.finished) == (1, 1)
    for line in said:
        assert (line["event"], line["log_level"]) == ("periodic work failed", level)
        assert (line["lease"], line["work"]) == ("work", "count 0")
    assert counted.get() == before + len(said)


async def test_failures_during_an_outage_of_the_database_are_logged_only_at_debug() -> None:
    one, bad, good = Leader(is_database_away=True), Work(failing=Unavailable("No.")), Work()
    with captured_lines(leader_job) as said:
        async with job(one, bad, good):
            await eventually_async(lambda: bad.begun >= 2 and good.ended >= 2)
    assert {(line["event"], line["log_level"]) for line in said} == {("periodic work failed", "debug")}


@pytest.mark.parametrize("failure", [Unavailable("No."), KeyError("bug")])
async def test_a_failed_election_is_logged_and_changes_nothing(failure: Exception) -> None:
    one, work = Leader(failing=failure), Work()
    with captured_lines(leader_job) as said:
        async with job(one, work):
            await next_election(one)
            assert work.begun == 0
            one.failing = None
            await eventually_async(lambda: work.ended)
            one.failing = failure
            await next_election(one)
            ended = work.ended
            await eventually_async(lambda: work.ended > ended)
    assert {line["event"] for line in said} == {"leader election failed"}
