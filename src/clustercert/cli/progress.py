"""Progress on standard error, if that is a terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from clustercert.cli.output import write_out

_WIDTH = 30
# A counter is first shown after this time, and then no more often than every half second. In seconds.
_FIRST_SHOWN, _INTERVAL = 1.0, 0.5
_CLEAR = "\r\033[K"


class Progress:
    """Counts steps. Results can be printed meanwhile."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._shown = sys.stderr.isatty() and total > 0

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def print(self, text: str) -> None:
        """Print a line of results to standard output, and count a step."""
        self._clear()
        write_out(text)
        sys.stdout.flush()
        self._done += 1
        self._draw()

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def _draw(self) -> None:
        if self._shown:
            filled = "#" * (_WIDTH * self._done // self._total)
            sys.stderr.write(f"[{filled:-<{_WIDTH}}] {self._done}/{self._total}")
            sys.stderr.flush()


class Counter:
    """Shows a number that grows, if the work takes longer than a second.

    Args:
        text: what is counted, such as `certificates read`.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._number = 0
        self._next = time.monotonic() + _FIRST_SHOWN
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def count(self, more: int = 1) -> None:
        self._number += more
        if time.monotonic() > self._next and sys.stderr.isatty():
            sys.stderr.write(f"\r{self._number:,} {self._text}")
            sys.stderr.flush()
            self._next, self._shown = time.monotonic() + _INTERVAL, True
