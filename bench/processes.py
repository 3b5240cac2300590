"""What processes use, read from /proc; starting and stopping those that are measured."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# utime, stime and those of children that have ended: fields 14 to 17 of /proc/<pid>/stat (proc(5)), counted from
# the field after the command's name.
_CPU_FIELDS = slice(11, 15)

START_SECONDS = 60.0
STOP_SECONDS = 30.0


def tree(root: int) -> list[int]:
    """A process and all its descendants, those of them that still are."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
    return found


# A server that is left with requests whose clients are gone works on them all the same, on the cores of the next one.
QUIET = 0.1
QUIET_SECONDS = 0.25
LONGEST_SECONDS = 60


def wait_until_quiet(roots: Sequence[int]) -> None:
    """Return once the processes and all below them hardly use a core any more."""
    end = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end:
        before = sum(map(cpu_seconds, roots))
        time.sleep(QUIET_SECONDS)
        if sum(map(cpu_seconds, roots)) - before < QUIET * QUIET_SECONDS:
            return
    print(
        f"the processes {roots} are still busy with nothing to do; what is measured next may suffer",
        flush=True,
    )


def cpu_seconds(root: int) -> float:
    """What a process and its descendants have used so far, user and system, dead descendants included."""
    ticks = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[_CPU_FIELDS]))
    return ticks / _TICKS


def resident_bytes(root: int) -> dict[int, int]:
    """The resident size of each process of a tree."""
    sizes = {}
    for pid in tree(root):
        with contextlib.suppress(OSError):
            sizes[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return sizes


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    ready: Callable[[], bool],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    stop: int = signal.SIGTERM,
) -> Iterator[int]:
    """A server's process id, from when it is ready until the end of the block. Its output goes into the log."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=user,
            extra_groups=[] if user else None,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start; see {log}")
            time.sleep(0.01)
        yield process.pid
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
