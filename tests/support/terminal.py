"""Runs the command in a pseudo-terminal."""

import codecs
import os
import pty
import select
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from support.wait import SECONDS, eventually

CTRL_C = "\x03"
COMMAND = (sys.executable, "-m", "clustercert")


def in_a_terminal(
    arguments: Sequence[str],
    typed: Mapping[str, str | Callable[[], str]],
    environment: Mapping[str, str],
    columns: int = 200,
    program: Sequence[str] = COMMAND,
    seconds: float = SECONDS,
    *,
    echoes: bool = False,
) -> tuple[int, str]:
    """The exit code and the screen of a command in a terminal.

    Args:
        typed: the input for each prompt, or a function that does something while the command waits, and returns it.
        echoes: whether the terminal shows the input while it is typed.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        variables = {**environment, "TERM": "xterm", "COLUMNS": str(columns)}
        os.execve(program[0], [*program, *arguments], variables)  # noqa: S606 - a terminal is what this is about
    screen, waiting = "", dict(typed)
    # A character may come in two parts.
    decoder = codecs.getincrementaldecoder("utf-8")()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        screen += decoder.decode(chunk)
        for question in [question for question in waiting if question in screen]:
            if not echoes and not question.startswith("["):
                # Input before the terminal stops echoing would be shown and discarded.
                eventually(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO)
            if waiting[question] == CTRL_C:
                # Between its prompt and its wait for input, Python sees no signal before the next key.
                eventually(lambda: _sleeps(pid))
            answer = waiting.pop(question)
            os.write(terminal, (answer if isinstance(answer, str) else answer()).encode())
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), screen


def _sleeps(pid: int) -> bool:
    """Whether the main thread of a process waits. Source: proc_pid_stat(5), field 3."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    return after_name.split()[0] == "S"
