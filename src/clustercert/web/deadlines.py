"""Bounds on how long requests may take: one timer for all of them, since one for each would cost as much as a hash."""

import asyncio
from types import TracebackType
from typing import Self


class Deadlines:
    """The deadlines of one event loop."""

    def __init__(self) -> None:
        self._pending: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float) -> "Deadline":
        """Bound a block, as `asyncio.timeout` does: it raises TimeoutError where it takes longer."""
        return Deadline(self, seconds)

    def add(self, deadline: "Deadline", loop: asyncio.AbstractEventLoop) -> None:
        """Give it up when its time has come."""
        self._pending.add(deadline)
        if self._timer is None or self._timer.when() > deadline.at:
            self._wake_at(deadline.at, loop)

    def remove(self, deadline: "Deadline") -> None:
        """Forget it. The timer stays: the next ones need it at nearly the same time."""
        self._pending.discard(deadline)

    def _wake_at(self, at: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for late in [each for each in self._pending if each.at <= now]:
            self._pending.discard(late)
            late.give_up()
        if self._pending:
            self._wake_at(min(each.at for each in self._pending), loop)


class Deadline:
    """A block of one task that is to end in time.

    Attributes:
        at: in the loop's time.
    """

    __slots__ = ("_among", "_cancelling", "_late", "_seconds", "_task", "at")

    def __init__(self, among: Deadlines, seconds: float) -> None:
        self._among = among
        self._seconds = seconds
        self._late = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self.at = 0.0

    def give_up(self) -> None:
        """Cancel the block."""
        self._late = True
        if self._task is not None:
            self._task.cancel()

    def renew(self) -> None:
        """Begin its time anew."""
        self.at = asyncio.get_running_loop().time() + self._seconds

    def __enter__(self) -> Self:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        self._task = task
        self._cancelling = task.cancelling() if task is not None else 0
        self.at = loop.time() + self._seconds
        self._among.add(self, loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._among.remove(self)
        if not self._late or self._task is None:
            return
        # Somebody else may have cancelled the task as well, and that goes on.
        ours_alone = self._task.uncancel() <= self._cancelling
        if ours_alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error
