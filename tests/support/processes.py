"""Child processes of a server, which may end while they are looked at."""

import contextlib
from pathlib import Path


def children(pid: int) -> set[int]:
    """The process ids of the children that the main thread started."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def workers(pid: int) -> set[int]:
    """The process ids of a supervisor's workers, multiprocessing's own helper aside."""
    return {child for child in children(pid) if b"spawn_main" in command_line(child)}


def command_line(pid: int) -> bytes:
    """The arguments of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to take note."""
    with contextlib.suppress(OSError):
        # The state follows the name, which is in parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
