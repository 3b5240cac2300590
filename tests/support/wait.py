"""Wait until a condition holds, instead of for a fixed time."""

import asyncio
import inspect
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

# Ends a test that would hang. No promise is about it: a busy machine takes its time.
SECONDS = 180.0
_INTERVAL = 0.02


def eventually(condition: Callable[[], T], seconds: float = SECONDS) -> T:
    """The first truthy value of the condition. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition does not hold after {seconds} s"
        time.sleep(_INTERVAL)
    return value


async def eventually_async(condition: Callable[[], object], seconds: float = SECONDS) -> object:
    """Like `eventually`, and the event loop runs meanwhile. The condition may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        assert time.monotonic() < deadline, f"the condition does not hold after {seconds} s"
        await asyncio.sleep(_INTERVAL)


def suspend(pid: int) -> None:
    """Stop a process with SIGSTOP, and return when none of its threads runs.

    On a busy machine, its threads go on for a moment, and may answer a request meanwhile. Raises ProcessLookupError.
    """
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")

    def stands_still() -> bool:
        try:
            return all(_state(each) in "TZX" for each in threads.iterdir())
        except (FileNotFoundError, ProcessLookupError):
            # A thread, or the process, ended meanwhile.
            return not threads.exists()

    eventually(stands_still)


def _state(thread: Path) -> str:
    """T is stopped, Z and X have ended. Source: proc_pid_stat(5)."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


def line_with(stream: IO[str] | None, text: str) -> str:
    """Read lines until one contains the text, and return it. Fails at the end of the stream."""
    assert stream is not None
    lines: list[str] = []
    while text not in (line := stream.readline()):
        assert line, "".join(lines)
        lines.append(line)
    return line
