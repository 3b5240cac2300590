"""Shows the progress of a long command on standard error, if that is a terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from clustercert.cli.output import write_out

# Nothing is shown for commands that end before this time.
FIRST_SECONDS = 0.5
_SECONDS_BETWEEN = 0.1
_WIDTH = 30
_CLEAR = "\r\033[K"


class Progress:
    """Counts the steps of a command. The command can print results meanwhile.

    Args:
        noun: what is counted, in the plural.
        total: how many there are, if that is known.
        at_once: whether to show it from the beginning, because single steps may take long.
    """

    def __init__(self, noun: str, total: int | None = None, *, at_once: bool = False) -> None:
        self._noun = noun
        self._total = total
        self._done = 0
        self._is_terminal = sys.stderr.isatty()
        self._is_shown = False
        self._next = time.monotonic() + (0 if at_once else FIRST_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def advance(self, steps: int = 1) -> None:
        self.reach(self._done + steps, self._total)

    def reach(self, done: int, total: int | None = None) -> None:
        """Set the number of finished steps and of all steps."""
        self._done, self._total = done, total
        if self._is_terminal and time.monotonic() >= self._next:
            self._draw()
            self._next = time.monotonic() + _SECONDS_BETWEEN

    def print(self, text: str) -> None:
        """Print a line of results to standard output, and count a step."""
        was_shown = self._is_shown
        self._clear()
        write_out(text)
        sys.stdout.flush()
        self.advance()
        if was_shown and not self._is_shown:
            self._draw()

    def _clear(self) -> None:
        if self._is_shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
            self._is_shown = False

    def _draw(self) -> None:
        text = f"{self._done:,} {self._noun}"
        if self._total:
            filled = "#" * (_WIDTH * min(self._done, self._total) // self._total)
            text = f"[{filled:-<{_WIDTH}}] {self._done:,}/{self._total:,} {self._noun}"
        sys.stderr.write(_CLEAR + text)
        sys.stderr.flush()
        self._is_shown = True
