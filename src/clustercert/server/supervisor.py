"""The main process: starts the workers, starts another one where one died, and ends them. It serves nothing itself.

With them it keeps the scribe, which writes into an SQLite file for all of them: it is started first and ends last.
"""

import contextlib
import functools
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

from clustercert.server import ports
from clustercert.server.tls_files import Tls
from clustercert.settings import Settings

# How long requests in flight may take once the server is told to stop, and how long what comes after them: the work
# beside the requests ends, the database is closed.
GRACE_SECONDS = 35
AFTERWARDS_SECONDS = 5
# A worker that still starts has no requests.
START_GRACE_SECONDS = 5
# One that dies is followed by another after this pause, so that one that can't start doesn't keep the machine busy.
RESPAWN_SECONDS = 1
# Two that die one after the other within this time of their start will be followed by more.
YOUNG_SECONDS = 15

# glibc hands blocks from this size on back to the system as soon as they are freed. Left to itself it raises the bound
# to the largest block that it has seen, and a worker keeps the 19 MiB of each check of a password for good.
# Source: mallopt(3), M_MMAP_THRESHOLD.
GIVEN_BACK_FROM_BYTES = 1024 * 1024
# A worker's connections alone are as many as the files that a login session may usually open.
OPEN_FILES = 65536

# Source: unix(7), sun_path; 104 bytes on some systems.
LONGEST_SOCKET_PATH = 100

Spawn = Callable[[], BaseProcess]


def run(
    settings: Settings,
    port: int,
    files: Tls | None,
    *,
    on_start: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished. Raises SettingsError where the port is taken.

    `on_start` is called in this process once the workers are told to start, `on_stop` before they are told to end.
    """
    # Both are read when a process starts; what the operator says of the first one wins.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(GIVEN_BACK_FROM_BYTES))
    _raise_open_files()
    with _folder_of_the_workers() as folder, _told_to_stop() as told:
        bound = ports.sockets(settings.server.host, port, settings.server.workers)
        scribe = _path_of_scribe(settings, folder)
        workers = [
            Place(f"Worker {number}", functools.partial(_spawned, _work, settings, files, scribe, own), own)
            for number, own in enumerate(bound, 1)
        ]
        helpers = (
            [Place("The scribe", functools.partial(_spawned, _write, settings, scribe))] if scribe else []
        )
        supervise(workers, helpers, told, on_start=on_start, on_stop=on_stop)


def supervise(
    workers: Sequence["Place"],
    helpers: Sequence["Place"],
    told: int,
    *,
    on_start: Callable[[], None],
    on_stop: Callable[[], None],
) -> None:
    """Keep a process alive in each place until something can be read from `told`, then end them.

    Helpers are started before the workers, and end when these have ended.
    """
    places = [*helpers, *workers]
    try:
        for place in places:
            place.start()
        on_start()
        while told not in connection.wait([told, *_sentinels(places)], timeout=_next_start(places)):
            for place in places:
                place.watch()
        on_stop()
    finally:
        for some in (workers, helpers):
            for place in some:
                place.end()
            for place in some:
                place.wait_for_its_end()


class Place:
    """A process's place: a process, one after the other, and the socket that they answer on, if they are workers.

    The socket outlives the process: connections that the kernel took for it wait for the next one.
    """

    def __init__(self, name: str, spawn: Spawn, own: socket.socket | None = None) -> None:
        """`name` begins a sentence for the operator."""
        self._name = name
        self._spawn = spawn
        self._socket = own
        self._started = 0.0
        self._died_young = 0
        self.process: BaseProcess | None = None
        self.starts_at: float | None = None

    def start(self) -> None:
        """Start a process."""
        self._started, self.starts_at = time.monotonic(), None
        self.process = self._spawn()
        with _without_interrupts():
            self.process.start()

    def watch(self) -> None:
        """Notice that the process has ended, or start the next one when its time has come."""
        now = time.monotonic()
        if self.starts_at is not None and now >= self.starts_at:
            self.start()
        elif self.process is not None and self.process.exitcode is not None:
            _say(
                f"{self._name} {_how_it_ended(self.process.exitcode)}; "
                f"another one is started in {RESPAWN_SECONDS} s."
            )
            self._died_young = self._died_young + 1 if now - self._started < YOUNG_SECONDS else 0
            if self._died_young > 1 and self._socket is not None:
                self._send_clients_to_the_others(self._socket)
            self.process.close()
            self.process, self.starts_at = None, now + RESPAWN_SECONDS

    def _send_clients_to_the_others(self, own: socket.socket) -> None:
        """Stop listening until there is a worker that can answer: it lets the socket listen again."""
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Tell the process to end; what it does not take from its socket any more is refused."""
        serves = self._socket is None or ports.listens(self._socket)
        self._grace = GRACE_SECONDS + AFTERWARDS_SECONDS if serves else START_GRACE_SECONDS
        self._told = time.monotonic()
        if self._socket is not None:
            self._socket.close()
        if self.process is not None:
            self.process.terminate()

    def wait_for_its_end(self) -> None:
        """Wait for the process, but not for longer than its grace."""
        if self.process is None:
            return
        self.process.join(max(0, self._told + self._grace - time.monotonic()))
        if self.process.exitcode is None:
            _say(f"{self._name} did not end within {self._grace} s and is killed.")
            self.process.kill()
            self.process.join()


def _sentinels(places: Sequence[Place]) -> list[int]:
    return [place.process.sentinel for place in places if place.process is not None]


def _next_start(places: Sequence[Place]) -> float | None:
    """Seconds until a process is to be started, or None."""
    due = [place.starts_at for place in places if place.starts_at is not None]
    return max(0, min(due) - time.monotonic()) if due else None


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _say(line: str) -> None:
    """On standard error: standard output is for the answer or the request log."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the main process has no log


def _spawned(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A process that does this, not started.

    A fresh interpreter: it finds the folder for its counts when it is imported, and no lock or thread of this process
    is copied into it.
    """
    return multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)


def _work(settings: Settings, files: Tls | None, scribe: Path | None, own: socket.socket) -> None:
    """What a worker's process does."""
    # Only the workers need it: the main process starts them half a second earlier without.
    from clustercert.app.asgi import create_app  # noqa: PLC0415
    from clustercert.server.worker import serve  # noqa: PLC0415

    serve(create_app(settings, scribe), own, files, grace_seconds=GRACE_SECONDS)


def _path_of_scribe(settings: Settings, folder: Path) -> Path | None:
    """Where the workers reach the scribe; None where they do without one."""
    path = folder / "scribe"
    short = len(os.fsencode(path)) < LONGEST_SOCKET_PATH
    return path if short and not settings.shared_database else None


def _write(settings: Settings, path: Path) -> None:
    """What the scribe's process does."""
    from clustercert.store import scribe  # noqa: PLC0415 - as above

    scribe.serve(settings.store_url, path)


@contextlib.contextmanager
def _told_to_stop() -> Iterator[int]:
    """A file descriptor that can be read from once SIGINT or SIGTERM came; further ones change nothing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def tell(_number: int, _frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"!")

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started meanwhile never gets SIGINT: a terminal sends it to every process, and this one is enough."""
    # It would let interrupts in again when it is started.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise_open_files() -> None:
    """Let the workers open as many files as the system lets them, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _folder_of_the_workers() -> Iterator[Path]:
    """A folder that only this user can open, in which the workers' counts add up; gone with the server."""
    with tempfile.TemporaryDirectory(prefix="clustercert-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
