"""Log lines about a database that can't be used: one when it begins, one a minute, and one when it ends."""

import os
import time
from collections.abc import Callable

from clustercert.model.errors import StoreFault

REMINDER_SECONDS = 60.0


class Outage:
    """The outage of the database as one process sees it. Each process has one instance.

    During an outage, background work logs its failures only at the level debug, because all of them have one cause.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_at: float | None = None
        self._logged_at = 0.0

    @property
    def is_ongoing(self) -> bool:
        """Whether the last attempt to read the database failed."""
        return self._began_at is not None

    def failed(self, error: Exception) -> None:
        """Note that the database could not be read."""
        # Import this here, because the import is slow, and store commands need no log.
        import structlog  # noqa: PLC0415

        now = self._clock()
        if self._began_at is None:
            self._began_at, event = now, "database unavailable"
        elif now - self._logged_at >= REMINDER_SECONDS:
            event = "database still unavailable"
        else:
            return
        self._logged_at = now
        reason = {"reason": error.reason} if isinstance(error, StoreFault) else {}
        structlog.get_logger().warning(
            event,
            pid=os.getpid(),
            seconds=round(now - self._began_at, 1),
            cause=repr(error.__cause__ or error),
            **reason,
        )

    def ended(self) -> None:
        """Note that the database was read."""
        if self._began_at is None:
            return
        import structlog  # noqa: PLC0415

        seconds, self._began_at = round(self._clock() - self._began_at, 1), None
        structlog.get_logger().info("database available again", pid=os.getpid(), seconds=seconds)
