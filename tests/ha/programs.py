"""The programs of a failover test: where they are, as whom they run, and how they end."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.processes import has_ended
from support.wait import eventually

NEEDED = ("patroni", "patronictl", "etcd", "setpriv")
# PostgreSQL refuses to run as root.
USERS = ("postgres", "nobody")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(name: str) -> str | None:
    """The path of a program; Debian keeps some in folders that are not in everybody's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PATH}")


def postgres_folder() -> Path | None:
    """The folder of the newest PostgreSQL server of the system."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def missing() -> str | None:
    """Why no failover can be tried on this machine, or None."""
    absent = [name for name in NEEDED if find(name) is None]
    if postgres_folder() is None:
        absent.append("postgresql")
    if absent:
        return f"not installed: {', '.join(absent)}"
    return None if os.geteuid() == 0 else "only root can start servers as another user"


def owner() -> str:
    """The user that servers run as."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in USERS if name in known)


def new_folder(path: Path) -> Path:
    """A folder of the servers' user."""
    path.mkdir(mode=0o700)
    shutil.chown(path, owner())
    return path


@dataclass
class Program:
    """A server that can be killed, suspended and started again.

    Attributes:
        prefix: a command that enters the network in which the server runs.
        folder: its working folder, with its log.
    """

    name: str
    command: Sequence[str | Path]
    folder: Path
    prefix: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        user = owner()
        group = str(pwd.getpwnam(user).pw_gid)
        as_user = ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups")
        with (self.folder.parent / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *as_user, *self.command],
                # The settings of Python and of PostgreSQL's clients in our environment are not the servers'.
                env={"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": str(self.folder), **self.env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server alone."""
        send(number, [self.pid])

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended."""
        self.send(signal.SIGTERM)
        self.wait()

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        assert self.process is not None
        self.process.wait(60)


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def tree(root: int) -> list[int]:
    """The ids of a process and its living descendants."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def end_all_in(folder: Path) -> None:
    """Kill every process that works in a folder or below it. Servers outlive the process that started them."""
    pids = [pid for pid in _pids() if _works_in(pid, folder)]
    send(signal.SIGKILL, pids)
    eventually(lambda: all(map(has_ended, pids)))


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _works_in(pid: int, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder)
    return False
