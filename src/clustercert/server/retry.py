"""When to try again after a failure."""

import math
import time
from collections.abc import Callable

FIRST_SECONDS, MOST_SECONDS = 1.0, 60.0


class Retry:
    """The time of the next attempt, with a delay that doubles from 1 to 60 seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay = FIRST_SECONDS
        self._due = math.inf

    def is_due(self) -> bool:
        return self._clock() >= self._due

    def clear(self) -> None:
        """Cancel the planned attempt."""
        self._delay, self._due = FIRST_SECONDS, math.inf

    def back_off(self) -> None:
        """Plan the next attempt, after a longer delay than the last time."""
        self._due = self._clock() + self._delay
        self._delay = min(2 * self._delay, MOST_SECONDS)

    def plan(self, seconds: float) -> None:
        """Plan the next attempt after this time."""
        self._due = self._clock() + seconds
