"""Runs the command in a pseudo-terminal."""

import os
import pty
import select
import sys
import termios
import time
from collections.abc import Mapping, Sequence

from support.wait import eventually

COMMAND = (sys.executable, "-m", "clustercert")


def in_a_terminal(
    arguments: Sequence[str],
    typed: Mapping[str, str],
    environment: Mapping[str, str],
    columns: int = 200,
    program: Sequence[str] = COMMAND,
    seconds: float = 60,
) -> tuple[int, str]:
    """The exit code and the screen of a command in a terminal; `typed` maps prompts to input."""
    pid, terminal = pty.fork()
    if pid == 0:
        variables = {**environment, "TERM": "xterm", "COLUMNS": str(columns)}
        os.execve(program[0], [*program, *arguments], variables)  # noqa: S606 - a terminal is what this is about
    screen, waiting = "", dict(typed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        screen += chunk.decode()
        for question in [question for question in waiting if question in screen]:
            if question.startswith("["):
                os.write(terminal, waiting.pop(question).encode())
                continue
            # Input before the terminal stops echoing would be shown and discarded.
            eventually(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO)
            os.write(terminal, waiting.pop(question).encode())
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), screen
