"""Periodic tasks that only one process of a deployment runs: the leader, which holds a lease in the database."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from clustercert.background import running, wait_for_stop
from clustercert.model.errors import ClustercertError, StoreFault, Unavailable
from clustercert.observability import metrics, tracing
from clustercert.observability.tracing import Tracer
from clustercert.store.engine.leader import Leader

logger = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PeriodicWork:
    """A periodic task, which the leader runs.

    Attributes:
        run: does the work once, and returns the seconds until the next run.
        retry_seconds: seconds until the next run if `run` raised an exception.
        finish: called once when the process stops or is no longer the leader.
    """

    name: str
    run: Callable[[], Awaitable[float]]
    retry_seconds: float = 10.0
    finish: Callable[[], Awaitable[object]] | None = None


def every(seconds: float, name: str, action: Callable[[], Awaitable[object]]) -> PeriodicWork:
    """Create a periodic task that waits for `seconds` after each successful run."""

    async def run() -> float:
        await action()
        return seconds

    return PeriodicWork(name, run)


class LeaderJob:
    """Runs its tasks, one at a time, while this process is the leader.

    The lease makes duplicate work rare but not impossible: a suspended process may finish a task after another process
    took over. So every task must be safe to run twice at the same time.
    """

    def __init__(self, leader: Leader, work: Sequence[PeriodicWork], tracer: Tracer | None = None) -> None:
        self.name = f"elect the leader: {leader.name}"
        self._leader = leader
        self._work = work
        self._tracer = tracer

    async def run(self, stop: asyncio.Event) -> None:
        """Compete for the lease until `stop` is set. The lease is renewed while work runs."""
        async with contextlib.AsyncExitStack() as term:
            leads = False
            while not stop.is_set():
                # If the election fails with an error, this process keeps its role as leader or follower.
                elected = await self._attempt("leader election failed", self._leader.leads, leads)
                if elected and not leads:
                    await term.enter_async_context(
                        running(f"run periodic work: {self._leader.name}", self._do_work)
                    )
                elif leads and not elected:
                    await term.aclose()
                leads = elected
                await wait_for_stop(stop, self._leader.seconds / 3)
        with contextlib.suppress(Unavailable):
            await self._leader.resign()

    async def _do_work(self, stop: asyncio.Event) -> None:
        due_at = [float("-inf")] * len(self._work)
        failed = "periodic work failed"
        while not stop.is_set():
            for index, work in enumerate(self._work):
                if time.monotonic() >= due_at[index] and not stop.is_set():
                    run = functools.partial(self._run, work)
                    pause = await self._attempt(failed, run, work.retry_seconds, work=work.name)
                    due_at[index] = pause + time.monotonic()
            await wait_for_stop(stop, min(due_at) - time.monotonic())
        for work in self._work:
            if work.finish is not None:
                await self._attempt(failed, work.finish, None, work=work.name)

    async def _run(self, work: PeriodicWork) -> float:
        with tracing.job(self._tracer, work.name):
            return await work.run()

    async def _attempt(
        self, on_failure: str, action: Callable[[], Awaitable[T]], default: T, **fields: str
    ) -> T:
        """Run an action. If the action fails, log `on_failure` with the fields, and return the default."""
        try:
            return await action()
        except Exception as failure:  # noqa: BLE001 - a failure must not stop the loop or other work
            self._log(on_failure, failure, **fields)
            if "work" in fields:
                metrics.BACKGROUND_FAILURES.labels(fields["work"]).inc()
            return default

    def _log(self, event: str, failure: Exception, **fields: str) -> None:
        fields["lease"] = self._leader.name
        if isinstance(failure, Unavailable) and self._leader.is_database_away:
            logger.debug(event, error=failure.message, cause=repr(failure.__cause__), **fields)
        elif isinstance(failure, StoreFault):
            logger.error(event, error=failure.reason, **fields)
        elif isinstance(failure, Unavailable):
            logger.warning(event, error=failure.message, cause=repr(failure.__cause__), **fields)
        elif isinstance(failure, ClustercertError):
            logger.error(event, error=failure.message, **fields)
        else:
            logger.error(event, exc_info=failure, **fields)
