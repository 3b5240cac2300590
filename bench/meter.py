"""Measures the processor time of single functions and coroutines, without changing them."""

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Meter:
    """Processor time of this thread in seconds, by step."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def function(self, step: str, measured: Callable[P, T]) -> Callable[P, T]:
        """Wrap a function, so that its processor time is counted."""

        def metered(*args: P.args, **kwargs: P.kwargs) -> T:
            started = time.thread_time()
            try:
                return measured(*args, **kwargs)
            finally:
                self.seconds[step] += time.thread_time() - started

        return metered

    def coroutine(self, step: str, measured: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Wrap a coroutine function. Its own processor time is counted, without that of others while it waits."""

        def metered(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
            return _Metered(self, step, measured(*args, **kwargs))

        return metered


@dataclass(frozen=True, slots=True)
class _Metered(Awaitable[T]):
    meter: Meter
    step: str
    measured: Awaitable[T]

    def __await__(self) -> Generator[Any, Any, T]:
        """Pass on awaited values and results, as `yield from` does, and count the time between them."""
        running = self.measured.__await__()
        resume: Callable[[], Any] = lambda: next(running)  # noqa: E731 - replaced in each iteration
        while True:
            started = time.thread_time()
            try:
                awaited = resume()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return] # the coroutine's own type
            finally:
                self.meter.seconds[self.step] += time.thread_time() - started
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - cancellation must reach the coroutine, too
                resume = _thrower(running, error)
            else:
                resume = _sender(running, sent)


def _sender(running: Generator[Any, Any, Any], sent: object) -> Callable[[], Any]:
    return lambda: running.send(sent)


def _thrower(running: Generator[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: running.throw(error)
