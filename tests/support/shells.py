"""Interactive shells in a pseudo-terminal, to press keys in."""

import os
import pty
import select
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from support.wait import SECONDS

SHELLS = {
    "bash": ("bash", "--norc", "--noprofile", "-i"),
    "zsh": ("zsh", "-f", "-i"),
    "fish": ("fish", "--no-config", "--interactive"),
}
_BASH_SETTINGS = (
    "completion-query-items 0",
    "page-completions off",
    "show-all-if-ambiguous on",
    "bell-style none",
)
_SETUP = {
    "bash": "; ".join(["PS1='ready> '", *(f"bind 'set {each}'" for each in _BASH_SETTINGS)]),
    "zsh": "PS1='ready> '; autoload -U compinit; compinit -u -D; unsetopt zle_bracketed_paste",
    "fish": "function fish_prompt; echo 'ready> '; end",
}


class Shell:
    """An interactive shell with 80 columns. `screen` has all that it wrote."""

    def __init__(self, name: str, home: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.screen = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            variables = {**environment, "HOME": str(home), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
            os.chdir(home)
            os.execvpe(SHELLS[name][0], SHELLS[name], variables)  # noqa: S606 - a terminal is what this is about

    def __enter__(self) -> Self:
        self.run(_SETUP[self.name])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._terminal)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def run(self, command: str) -> str:
        """Run a command line, and return what it wrote."""
        mark = f"done-{time.monotonic_ns()}"
        start = len(self.screen)
        # The mark appears in one piece only in the output.
        self.press(f"{command}; echo {mark[:4]}''{mark[4:]}\r")
        self.wait_for(lambda: mark in self.screen[start:])
        return self.screen[start:]

    def completed(self, line: str) -> str:
        """Return what the tabulator key makes of a line."""
        mark, start = f"line-{time.monotonic_ns()}", len(self.screen)
        # The shell reads the other keys when it has completed the line: go to its start, and print it.
        self.press(f"{line}\t\x01echo {mark[:4]}''{mark[4:]} \r")
        self.wait_for(
            lambda: f"{mark} " in (shown := self.screen[start:]) and "\n" in shown.split(f"{mark} ")[1]
        )
        return self.screen[start:].split(f"{mark} ")[1].partition("\r")[0].rstrip()

    def press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Read the screen until the condition holds. Raises AssertionError if it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.screen
            if select.select([self._terminal], [], [], 0.2)[0]:
                self.screen += os.read(self._terminal, 65536).decode(errors="replace")
