"""The supervisor of several workers. It imports little, because only the workers need the application in memory."""

import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from clustercert.model.errors import ClustercertError
from clustercert.observability import process_log

# The supervisor sends this signal to its workers. SIGTERM stops a worker at once, so that Ctrl-C waits for no client.
DRAIN_WORKER = signal.SIGUSR1
# The supervisor kills a worker that does not respond within this time. Starting is slow on a busy machine.
HEALTH_CHECK_SECONDS = 30
# Signals that the supervisor handles from its first moment on, and that its process may receive earlier.
_EARLY_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


# Returns the server of a worker. The arguments are a private folder that all workers share, and the process id of the
# worker that this one replaces.
CreateServer = Callable[[Path, int | None], uvicorn.Server]


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers to start.

    Attributes:
        create_server: a pickled `CreateServer`. Pickled, because the function's module imports the application.
        drain: whether the workers drain their connections after SIGTERM.
    """

    create_server: bytes
    count: int
    drain: bool


class _Start(NamedTuple):
    """What `replace_process` passes to the supervisor's process.

    Attributes:
        listener: the descriptor of the listening socket.
        log: the arguments of `process_log.configure`.
        started: when the service started, from `time.monotonic()`.
    """

    workers: Workers
    listener: int
    on_start: Callable[[], None]
    log: tuple[process_log.Style | None, str, Path | None]
    started: float


def replace_process(
    workers: Workers,
    listener: socket.socket,
    on_start: Callable[[], None],
    log: tuple[process_log.Style | None, str, Path | None],
    started: float,
) -> None:
    """Replace this process by a supervisor with the same process id and listening socket. Does not return.

    This frees the memory of everything that the process has imported.

    Args:
        on_start: called in the supervisor's process. It must be picklable, and its module must import little.
        log: style, level and file of the log.
        started: when the service started, from `time.monotonic()`.
    """
    listener.set_inheritable(True)
    # The settings contain secrets, which must not get into a file on a disk, an argument or a variable.
    memory = os.memfd_create("clustercert-workers", 0)
    with os.fdopen(memory, "wb", closefd=False) as stream:
        pickle.dump(_Start(workers, listener.fileno(), on_start, log, started), stream)
    os.lseek(memory, 0, os.SEEK_SET)
    sys.stdout.flush()
    sys.stderr.flush()
    # Until the supervisor handles the signals, they wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, _EARLY_SIGNALS)
    # If this interpreter ignores the environment and the user's packages, the new one must ignore them too.
    isolated = ["-I"] if sys.flags.isolated else []
    command = [sys.executable, *isolated, "-m", "clustercert.server", str(memory)]
    os.execv(command[0], command)  # noqa: S606 - this program itself


def main() -> None:
    """Run the supervisor in the process that `replace_process` has replaced."""
    with os.fdopen(int(sys.argv[1]), "rb") as stream:
        start: _Start = pickle.load(stream)  # noqa: S301 - this process wrote it
    listener = socket.socket(fileno=start.listener)
    listener.set_inheritable(False)
    process_log.configure(*start.log)
    try:
        with stop_logged(start.started):
            start.on_start()
            supervise(start.workers, listener)
    except ClustercertError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        sys.exit(1)


@contextlib.contextmanager
def stop_logged(started: float) -> Iterator[None]:
    """Log the end of the service after the `with` block. `started`: from `time.monotonic()`."""
    try:
        yield
    finally:
        process_log.write(logging.INFO, "service stopped", seconds=round(time.monotonic() - started, 1))


def supervise(workers: Workers, listener: socket.socket) -> None:
    """Run workers in this process's children until a signal ends them.

    Raises ClustercertError if a worker can't start.
    """
    with _shared_folder() as folder:
        supervisor = _Supervisor(workers, listener, folder)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _EARLY_SIGNALS)
        _block_signals_in_workers()
        supervisor.run()
    if not supervisor.is_told_to_stop and any(
        worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes
    ):
        raise ClustercertError("A worker could not start. See the log.")


def _block_signals_in_workers() -> None:
    """Block SIGINT in workers, and block SIGHUP until the workers can handle SIGHUP.

    A terminal sends SIGINT and SIGHUP to every process. Workers inherit the blocked signals; this process still
    receives them, in another thread. The supervisor stops workers with SIGTERM.
    """
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    # Start multiprocessing's helper process now: starting it later would unblock the signals.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})


@contextlib.contextmanager
def _shared_folder() -> Iterator[Path]:
    """Create a temporary private folder for the summed metrics of all workers, and for the applied policy.

    Raises ClustercertError if no folder for temporary files is writable, as in a container.
    """
    try:
        created = tempfile.TemporaryDirectory(prefix="clustercert-")
    except OSError as error:
        raise ClustercertError(
            "Several workers need a folder for temporary files, but no such folder is writable. Make /tmp writable,"
            " such as with a tmpfs, or set server.workers to 1."
        ) from error
    with created as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


class _Worker(Process):
    """A worker process, which drains its connections after the signal DRAIN_WORKER."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        create_server: bytes,
        folder: Path,
        replaced: int | None,
    ) -> None:
        super().__init__(config, sockets)
        self._create_server = create_server
        self._folder = folder
        self._replaced = replaced
        self._worker_server: uvicorn.Server | None = None
        self._asked_at: float | None = None

    @property
    def server(self) -> uvicorn.Server:
        """The server, which exists only in the worker process."""
        if self._worker_server is None:
            raise RuntimeError("There is no server in the supervisor's process.")
        return self._worker_server

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve. Runs in the worker process."""
        create_server: CreateServer = pickle.loads(self._create_server)  # noqa: S301 - the supervisor's own
        self._worker_server = create_server(self._folder, self._replaced)
        signal.signal(DRAIN_WORKER, self.server.handle_exit)
        super().target(sockets)

    def is_alive(self, timeout: float = HEALTH_CHECK_SECONDS) -> bool:
        """Return whether the process runs, and has answered the last question within the time, in seconds.

        Never waits for the answer: uvicorn waits, and meanwhile notices neither signals nor dead workers.
        """
        if not self.process.is_alive():
            return False
        try:
            if self._asked_at is not None and self.parent_conn.poll():
                self.parent_conn.recv()
                self._asked_at = None
            if self._asked_at is None:
                self.parent_conn.send(b"ping")
                self._asked_at = time.monotonic()
        except (OSError, EOFError):
            return False
        return time.monotonic() - self._asked_at < timeout


class _Supervisor(Multiprocess):
    """uvicorn's supervisor, but workers reload their settings on SIGHUP, and can drain their connections on SIGTERM.

    Attributes:
        is_told_to_stop: whether a signal ends the service, and not a worker that could not start.
    """

    def __init__(self, workers: Workers, listener: socket.socket, folder: Path) -> None:
        # Workers have their own configuration. This one is for the supervisor.
        config = uvicorn.Config(
            "",
            workers=workers.count,
            log_config=None,
            log_level="error",
            timeout_worker_healthcheck=HEALTH_CHECK_SECONDS,
        )
        super().__init__(config, [listener])
        self._workers = workers
        self._folder = folder
        self.is_told_to_stop = False

    def init_processes(self) -> None:
        """Start the workers."""
        self.processes.extend(self._started_worker() for _ in range(self.processes_num))

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have ended or hang. uvicorn calls this method twice a second.

        While the workers drain their connections, wait until all workers have ended.
        """
        if self.is_told_to_stop:
            if all(worker.exitcode is not None for worker in self.processes):
                self.should_exit.set()
            return
        for index, worker in enumerate(self.processes):
            if worker.is_alive(timeout=self.config.timeout_worker_healthcheck):
                continue
            has_ended = worker.exitcode is not None
            worker.kill()
            worker.join()
            if worker.exitcode == STARTUP_FAILURE:
                # A new worker would fail too. A database that does not answer is not the cause: workers wait for the
                # database.
                process_log.write(logging.ERROR, "worker could not start", worker=worker.pid)
                self.should_exit.set()
                return
            self.processes[index] = self._started_worker(replaced=worker.pid)
            process_log.write(
                logging.ERROR,
                "worker died and was replaced" if has_ended else "worker did not respond and was replaced",
                worker=worker.pid,
                **_end_of(worker.exitcode),
                replacement=self.processes[index].pid,
            )

    def handle_term(self) -> None:
        """Let the workers drain their connections and end, or stop them. A second SIGTERM stops them at once."""
        self._log_stop(signal.SIGTERM)
        if self._workers.drain and not self.is_told_to_stop:
            self._send(DRAIN_WORKER)
        else:
            self.should_exit.set()
        self.is_told_to_stop = True

    def handle_int(self) -> None:
        """Stop the workers at once."""
        self._log_stop(signal.SIGINT)
        self.is_told_to_stop = True
        self.should_exit.set()

    def handle_hup(self) -> None:
        """Pass SIGHUP on to the workers, which reload. uvicorn would restart them."""
        self._send(signal.SIGHUP)

    def handle_ttin(self) -> None:
        """Start one more worker."""
        if not self.is_told_to_stop:
            self.processes_num += 1
            self.processes.append(self._started_worker())

    def _log_stop(self, number: signal.Signals) -> None:
        if not self.is_told_to_stop:
            process_log.write(logging.INFO, "process stopping", signal=number.name)

    def _started_worker(self, replaced: int | None = None) -> _Worker:
        worker = _Worker(self.config, self.sockets, self._workers.create_server, self._folder, replaced)
        worker.start()
        return worker

    def _send(self, number: signal.Signals) -> None:
        for worker in self.processes:
            # The id of a worker that has ended may belong to another process.
            if worker.pid is not None and worker.exitcode is None:
                os.kill(worker.pid, number)


def _end_of(exit_code: int | None) -> dict[str, object]:
    """Return how a process ended, for the log: the name of the signal, or the exit code."""
    if exit_code is None or exit_code >= 0:
        return {"exit_code": exit_code}
    names = {int(each): each.name for each in signal.Signals}
    return {"signal": names.get(-exit_code, str(-exit_code))}
