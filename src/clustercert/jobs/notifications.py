"""Sends the steps of access requests to another system, so that a slow or failing receiver delays nothing else.

The messages about one access request are sent in the order of the audit log; a message waits until the receiver has
confirmed the one before, or the service has given up on it. Messages about different requests may arrive in any order.
Each message is sent at least once: after a crash, the messages of the last second are sent again.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from clustercert.jobs.leader_job import PeriodicWork
from clustercert.observability import metrics
from clustercert.requests.receiver import MAX_CONNECTIONS, Message, NotDelivered, message
from clustercert.store.audit.log import EventFilter, EventPages, StoredEvent
from clustercert.store.job_cursors import JobCursor

logger = structlog.get_logger()

CURSOR = "notifications"
INTERVAL = 1.0
READ_AT_ONCE = 100
# While this many messages wait, no further events are read.
MAX_WAITING = 1000
# The limit for messages that failed before is lower, so that they leave connections for new messages.
MAX_RETRIES_AT_ONCE = MAX_CONNECTIONS // 2
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 300.0
GIVE_UP_AFTER = timedelta(days=1)
# After this many events that are not about access requests, the position in the log is stored.
STORED_EVERY = 10_000
# How long a message that is being sent may take when the process stops.
FINISH_SECONDS = 1.0


class Receiver(Protocol):
    """The system that gets the messages; implemented by `requests.receiver`."""

    async def send(self, sent: Message) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Waiting:
    """A message that waits to be sent.

    Attributes:
        failures: the number of failed attempts.
        due: when to send the message, in monotonic seconds.
        reason: why the last attempt failed.
    """

    message: Message
    failures: int = 0
    due: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class Notifier:
    """Sends messages about the sealed events of access requests. Runs only in the elected leader.

    The cursor stores the position in the audit log, and the leaf indexes before it whose messages wait.

    Attributes:
        clock: returns monotonic seconds.
    """

    pages: EventPages
    cursor: JobCursor
    receiver: Receiver
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    _next: int | None = None
    _stored_next: int = 0
    _is_changed: bool = False
    _is_stopping: bool = False
    # By access request.
    _waiting: dict[str, deque[_Waiting]] = field(default_factory=dict)
    _sending: dict[str, tuple[_Waiting, asyncio.Task[None]]] = field(default_factory=dict)

    async def step(self) -> float:
        """Read new events, and start to send the messages that are due.

        Returns the seconds until the next call. Raises Unavailable.
        """
        position = await self._loaded() if self._next is None else self._next
        has_more = False
        if sum(map(len, self._waiting.values())) < MAX_WAITING:
            has_more = await self._read(position)
        self._send_due()
        await self._store()
        return 0.0 if has_more else INTERVAL

    async def finish(self) -> None:
        """Let the messages that are being sent arrive, and store what is left."""
        self._is_stopping = True
        try:
            if tasks := {task for _, task in self._sending.values()}:
                _, late = await asyncio.wait(tasks, timeout=FINISH_SECONDS)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            self._is_changed = self._next is not None
            await self._store()
        finally:
            await self.receiver.close()
            self._waiting.clear()
            self._next, self._is_changed, self._is_stopping = None, False, False

    async def _loaded(self) -> int:
        """Load the position and the waiting messages. The first time, the position is the present end of the log."""
        stored = await self.cursor.value()
        if stored is None:
            self._next = await self.pages.size()
            self._is_changed = True
            return self._next
        state = json.loads(stored)
        for place in state["waiting"]:
            event = await self.pages.event(place)
            if event is not None:
                self._add(event)
        self._next = self._stored_next = int(state["next"])
        return self._next

    async def _read(self, position: int) -> bool:
        """Read the next events. Returns whether there are more."""
        size = await self.pages.size()
        if size <= position:
            return False
        after = position - 1 if position > 0 else None
        selected = EventFilter(kind="access_request.*")
        page = await self.pages.page(selected, cursor=after, newest_first=False, limit=READ_AT_ONCE)
        for event in page.events:
            self._add(event)
            size = max(size, (event.leaf_index or 0) + 1)
        self._next = size if page.cursor is None else page.cursor + 1
        return page.cursor is not None

    def _add(self, event: StoredEvent) -> None:
        self._is_changed = True
        try:
            made = message(event)
        except (ValueError, RecursionError) as error:
            metrics.NOTIFICATIONS.labels("given_up").inc()
            cause = type(error).__name__
            logger.error("unreadable event not notified", place=event.leaf_index, cause=cause)  # noqa: TRY400 - no traceback needed
            return
        self._waiting.setdefault(made.access_request, deque()).append(_Waiting(made))

    def _send_due(self) -> None:
        """Start to send as many due messages as possible, at most one for each access request. New ones come first."""
        if self._is_stopping:
            return
        now = self.clock()
        due = [
            queue[0]
            for access_request, queue in self._waiting.items()
            if access_request not in self._sending and queue[0].due <= now
        ]
        due.sort(key=lambda each: (each.failures > 0, each.due, each.message.place))
        first = [each for each in due if not each.failures]
        again = [each for each in due if each.failures]
        retried = sum(each.failures > 0 for each, _ in self._sending.values())
        chosen = [*first, *again[: max(MAX_RETRIES_AT_ONCE - retried, 0)]]
        for each in chosen[: max(MAX_CONNECTIONS - len(self._sending), 0)]:
            task = asyncio.create_task(self._send(each))
            self._sending[each.message.access_request] = each, task

    async def _send(self, waiting: _Waiting) -> None:
        sent = waiting.message
        facts = {"kind": sent.kind, "access_request": sent.access_request, "place": sent.place}
        try:
            if self.now() - sent.at > GIVE_UP_AFTER:
                metrics.NOTIFICATIONS.labels("given_up").inc()
                logger.error(
                    "notification given up", failures=waiting.failures, reason=waiting.reason, **facts
                )
            else:
                await self.receiver.send(sent)
                metrics.NOTIFICATIONS.labels("sent").inc()
            self._remove(sent.access_request)
        except NotDelivered as failure:
            self._postpone(waiting)
            if str(failure) != waiting.reason:
                logger.warning("notification failed", reason=str(failure), **facts)
            waiting.reason = str(failure)
        except Exception:
            self._postpone(waiting)
            logger.exception("notification failed", **facts)
        finally:
            del self._sending[sent.access_request]
        self._send_due()

    def _remove(self, access_request: str) -> None:
        """Remove the first message about a request."""
        queue = self._waiting[access_request]
        queue.popleft()
        if not queue:
            del self._waiting[access_request]
        self._is_changed = True

    def _postpone(self, waiting: _Waiting) -> None:
        metrics.NOTIFICATIONS.labels("failed").inc()
        pause = min(FIRST_RETRY_SECONDS * 2.0**waiting.failures, LONGEST_RETRY_SECONDS)
        waiting.failures += 1
        waiting.due = self.clock() + pause

    async def _store(self) -> None:
        if self._next is None or not (self._is_changed or self._next >= self._stored_next + STORED_EVERY):
            return
        waiting = sorted(each.message.place for queue in self._waiting.values() for each in queue)
        state = json.dumps({"next": self._next, "waiting": waiting})
        # A message that is confirmed while the state is stored changes the state again.
        self._is_changed, stored = False, self._next
        try:
            await self.cursor.set(state)
        except BaseException:
            self._is_changed = True
            raise
        self._stored_next = stored


def notification(notifier: Notifier) -> PeriodicWork:
    """Create the periodic task that sends messages."""
    return PeriodicWork(
        "notify of access requests", notifier.step, retry_seconds=INTERVAL, finish=notifier.finish
    )
