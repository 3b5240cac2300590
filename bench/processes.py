"""Starts and stops the measured processes, and reads their resource usage from /proc."""

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
# utime, stime, and the same for ended children: fields 14 to 17 of /proc/<pid>/stat (proc(5)). The slice counts from
# the field after the command's name.
_CPU_FIELDS = slice(11, 15)

START_SECONDS = 180.0
STOP_SECONDS = 30.0


def tree(root: int) -> list[int]:
    """Return the ids of a process and its living descendants."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
    return found


# A server still processes requests after their clients have disconnected, which would slow down the next one.
QUIET = 0.1
QUIET_SECONDS = 0.25
LONGEST_SECONDS = 60


def wait_until_quiet(roots: Sequence[int]) -> None:
    """Return when the processes and their descendants are nearly idle."""
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
    """Return the processor time of a process and its descendants so far, including ended descendants."""
    ticks = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[_CPU_FIELDS]))
    return ticks / _TICKS


def resident_bytes(root: int) -> dict[int, int]:
    """Return the resident size of each process in a tree."""
    sizes = {}
    for pid in tree(root):
        with contextlib.suppress(OSError):
            sizes[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return sizes


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that nobody else gets during the block, even while no server listens on it.

    It is bound but does not listen, so a server with SO_REUSEADDR can share it.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield int(reserved.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something accepts connections at this port."""
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
    """Run a server during the block, and yield its process id when it is ready. Its output goes into the log."""
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
