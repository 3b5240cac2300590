"""Runs the HTTP server in one process or several workers, until it is interrupted."""

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

import uvicorn
from starlette.types import ASGIApp

from clustercert import __version__
from clustercert.model.choices import ServerRole
from clustercert.model.errors import ClustercertError
from clustercert.observability import metrics, process_log
from clustercert.server.file_watch import FileWatch
from clustercert.server.reloading import AppliedSettings, Reloader
from clustercert.server.supervisor import (
    DRAIN_WORKER,
    Workers,
    replace_process,
    stop_logged,
    supervise,
)
from clustercert.server.tls_context import TlsContext
from clustercert.server.tls_files import Tls
from clustercert.settings import Settings, SettingsError, settings_digest

T = TypeVar("T")


def end_on_interrupt() -> None:
    """Make Ctrl-C end this process at once, until the server handles Ctrl-C itself.

    By default, Python raises KeyboardInterrupt at any point, but ignores exceptions in callbacks of the garbage
    collector, so Ctrl-C could be lost. Ending at once is safe, because nothing needs to be cleaned up while the service
    starts.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_interruptible(work: Coroutine[object, object, T]) -> T:
    """Run the work like `asyncio.run`, but Ctrl-C raises KeyboardInterrupt even if the work swallows the cancellation.

    A cancelled database call may fail with an unrelated error, which the work may retry or raise.
    """
    interrupted = False
    before = signal.getsignal(signal.SIGINT)

    async def watched() -> T:
        nonlocal interrupted
        task = asyncio.ensure_future(work)

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
        try:
            return await task
        finally:
            # Before the handler above is set, Ctrl-C makes asyncio cancel this task, and thereby the work.
            this = asyncio.current_task()
            interrupted = interrupted or (this is not None and this.cancelling() > 0)

    try:
        result = asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        # Restore the previous handler, because asyncio has replaced it with Python's default handler.
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt
    return result


# How long requests are still answered after SIGTERM. A client that sends nothing in this time is disconnected.
DRAIN_SECONDS = 10.0
# No connections are accepted in the last seconds before the exit, so that clients that have just connected can still
# send a request.
LAST_SECONDS = 2.0
_CLOSE = (b"connection", b"close")


class DrainingServer(uvicorn.Server):
    """After the drain signal, answers one more request on each keep-alive connection, closes it, and then stops.

    Closing a keep-alive connection at once could lose a request in transit, and HTTP clients don't repeat a POST. New
    connections are accepted until shortly before the process exits, because the next process may start only then.
    """

    def __init__(self, config: uvicorn.Config, drain_signal: signal.Signals | None) -> None:
        super().__init__(config)
        self._drain_signal = drain_signal
        self._ends_at: float | None = None
        self._stop_signal: int | None = None
        self._has_logged_stop = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal.

        The first drain signal starts to drain connections; any other signal stops the server at once.
        """
        self._stop_signal = self._stop_signal or sig
        if sig != self._drain_signal or not self.started or self._ends_at is not None:
            super().handle_exit(sig, frame)
            return
        self._ends_at = time.monotonic() + DRAIN_SECONDS
        # uvicorn sends these header fields with each response, and closes the connection after the response.
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]

    async def on_tick(self, counter: int) -> bool:
        """Continue to drain connections. uvicorn calls this method ten times a second. Returns whether to stop."""
        self._log_stop()
        if self._ends_at is not None:
            remaining = self._ends_at - time.monotonic()
            if remaining < LAST_SECONDS:
                for server in self.servers:
                    server.close()
            if remaining < 0 or not self.server_state.connections:
                return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop. uvicorn calls this method once."""
        self._log_stop()
        await super().shutdown(sockets)

    def _log_stop(self) -> None:
        """Log the signal that stops this process. The signal's handler can't, as it may interrupt another line."""
        if self._stop_signal is not None and not self._has_logged_stop:
            self._has_logged_stop = True
            name = signal.Signals(self._stop_signal).name
            process_log.write(logging.INFO, "process stopping", signal=name)


# Source: sd_listen_fds(3).
FIRST_INHERITED = 3


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket.

    Attributes:
        inherited: whether a service manager keeps the socket open, even while no process serves it.
    """

    socket: socket.socket
    inherited: bool = False

    @property
    def address(self) -> tuple[str, int]:
        """The host and port."""
        host, port = self.socket.getsockname()[:2]
        return host, port


def listener(host: str, port: int) -> Listener:
    """Return the inherited socket, or a new one bound to the address. Port 0 takes any free port. Raises SettingsError.

    A new socket does not listen yet: the server starts listening once it can handle requests.
    """
    inherited = _inherited()
    return Listener(inherited, inherited=True) if inherited else Listener(_bound(host, port))


def _inherited() -> socket.socket | None:
    """Return the socket that a service manager such as systemd passed to this process, or `None`."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.pop("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if count != "1":
        raise SettingsError(f"LISTEN_FDS is {count or 'empty'}, not 1. Pass exactly one listening socket.")
    try:
        inherited = socket.socket(fileno=FIRST_INHERITED)
    except OSError as error:
        raise SettingsError(
            f"The inherited descriptor {FIRST_INHERITED} is not a socket: {error.strerror}. Pass a TCP socket."
        ) from error
    if inherited.family not in (socket.AF_INET, socket.AF_INET6) or inherited.type != socket.SOCK_STREAM:
        raise SettingsError(
            "The inherited socket is not a TCP socket. Pass a TCP socket (systemd: ListenStream=PORT)."
        )
    return inherited


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"Can't listen on {host}, port {port}: {reason}. Choose another port with --port, or stop the program that"
            " uses this port."
        ) from error
    return bound


# When the server stops, requests in flight have this long to finish.
GRACE_SECONDS = 35
# By default, load balancers close idle connections after 60 s. This time is longer, so that the load balancer, and not
# this service, closes a connection first.
KEEP_ALIVE_SECONDS = 100
BACKLOG = 2048
# Interval for checking whether the TLS files were renewed.
RELOAD_SECONDS = 5
# Interval at which Python switches threads. With Python's default of 5 ms, a database thread could wait that long for
# the interpreter lock at each step, while it holds the database lock.
SWITCH_SECONDS = 0.0005
# glibc returns freed blocks of at least this size to the system. By default, glibc raises this threshold at run time,
# and would keep the 19 MiB that each password check frees. Source: mallopt(3), malloc.h.
M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 1024 * 1024
# Each connection is an open file, and the usual limit of a login session is only 1,024.
OPEN_FILES = 65536


def run(
    settings: Settings,
    listener: Listener,
    files: Tls | None,
    role: ServerRole = "all",
    *,
    load: Callable[[], Settings],
    watch: FileWatch,
    drain: bool = False,
    on_start: Callable[[], None],
    keep_process: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, and finish requests in flight. Raises ClustercertError.

    With several workers, a small supervisor replaces this process, and this function does not return.

    Args:
        load: a function that reads the settings again. Workers call this function too, so it must be picklable.
        watch: the files that `load` reads, as they were before the settings were loaded.
        drain: after SIGTERM, drain connections. If the socket is inherited, connections are always drained.
        on_start: called just before the process serves or starts its workers. It must be picklable, and its module
            must import little, because the supervisor may call it.
        keep_process: supervise several workers in this process, and return. Then `on_start` may be any function.
    """
    started = time.monotonic()
    _raise_open_files()
    app = _Application(settings, role, load, watch, TlsContext(files) if files else None)
    process_log.configure(*app.log)
    process_log.write(
        logging.INFO,
        "service starting",
        version=__version__,
        role=role,
        workers=settings.server.workers,
        settings_sha256=settings_digest(settings),
    )
    # Otherwise draining would only delay the exit, because no other process takes over the clients.
    drain = drain or listener.inherited
    with stop_logged(started):
        if settings.server.workers == 1:
            on_start()
            _serve(_config(app), listener.socket, drain=drain)
            return
        # Without this variable, new processes would import modules from the current folder before installed ones.
        os.environ["PYTHONSAFEPATH"] = "1"
        workers = Workers(pickle.dumps(partial(_worker_server, app)), settings.server.workers, drain)
        if keep_process:
            on_start()
            supervise(workers, listener.socket)
        else:
            replace_process(workers, listener.socket, on_start, app.log, started)


def _config(app: "_Application") -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=True,
        interface="asgi3",
        # Give the names of the classes, so that the supervisor does not import the module of the classes.
        loop="clustercert.server.connection_limits:Loop",
        http="clustercert.server.connection_limits:BoundedProtocol",
        ws="none",
        lifespan="on",
        # Log errors only: any client can trigger any number of warnings.
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=app.tls,
        callback_notify=app.tls.reload if app.tls else None,
        timeout_notify=RELOAD_SECONDS,
    )


def _serve(config: uvicorn.Config, listener: socket.socket, *, drain: bool) -> None:
    server = DrainingServer(config, signal.SIGTERM if drain else None)

    def stop(_number: int, _frame: object) -> None:
        server.should_exit = True

    # uvicorn handles signals only while it runs, and then raises them again. With these handlers the exit code stays 0.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([listener])
    except SystemExit as end:
        # A service that waits for its database stops without having started.
        if not server.should_exit:
            raise ClustercertError("The service could not start. See the log.") from end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _worker_server(app: "_Application", folder: Path, replaced: int | None) -> DrainingServer:
    """Create the server of a worker. Runs in the worker process. For the arguments, see `Workers`."""
    process_log.configure(*app.log)
    if replaced is not None:
        metrics.worker_replaced(replaced)
    app = replace(app, applied=AppliedSettings(folder / "settings"))
    return DrainingServer(_config(app), DRAIN_WORKER)


@dataclass(frozen=True, slots=True)
class _Application:
    """Creates the application in the process that serves it. An instance is pickled and sent to each worker."""

    settings: Settings
    role: ServerRole
    load: Callable[[], Settings]
    watch: FileWatch
    tls: TlsContext | None
    applied: AppliedSettings | None = None

    @property
    def log(self) -> tuple[process_log.Style | None, str, Path | None]:
        """Style, level and file of the log, for `process_log.configure`."""
        log = self.settings.log
        return log.format, log.level, log.file

    def __call__(self) -> ASGIApp:
        """Create the application, in the running event loop."""
        from clustercert.server.application import create_app  # noqa: PLC0415 - the supervisor does not need it

        sys.setswitchinterval(SWITCH_SECONDS)
        _return_freed_memory()
        reloader = Reloader(self.load, self.tls, self.watch, self.applied)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.requested.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        if multiprocessing.parent_process() is not None:
            threading.Thread(target=_end_with_supervisor, daemon=True).start()
        return create_app(self._applied_settings(), self.role, reloader, _stopping())

    def _applied_settings(self) -> Settings:
        """Return the settings with the policy and issuers of the running workers.

        If the policy file has changed since then, the reloader loads the newer policy later.
        """
        applied = self.applied.read() if self.applied is not None else None
        return self.settings if applied is None else applied.in_settings(self.settings)


def _stopping() -> asyncio.Event:
    """Return an event that is set at signals that end this process. uvicorn still handles these signals too.

    uvicorn looks at a signal only after the application has started.
    """
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()

    def also_note(
        handle: Callable[[int, FrameType | None], object],
    ) -> Callable[[int, FrameType | None], None]:
        def handler(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(stopping.set)
            handle(number, frame)

        return handler

    # uvicorn has set its handlers. When the server has stopped, uvicorn restores the previous handlers.
    for number in (signal.SIGINT, signal.SIGTERM, DRAIN_WORKER):
        handle = signal.getsignal(number)
        if callable(handle):
            signal.signal(number, also_note(handle))
            # uvicorn's handler is a method of the server. The server may already have handled a signal.
            if getattr(getattr(handle, "__self__", None), "should_exit", False):
                stopping.set()
    return stopping


def _end_with_supervisor() -> None:
    """Stop this worker if its supervisor is killed. Otherwise the worker would keep the port and continue to serve."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _return_freed_memory() -> None:
    """Make glibc return large freed blocks to the system.

    Other C libraries return such blocks by default, or have no option for this.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def _raise_open_files() -> None:
    """Raise the limit of open files, for the workers too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
