"""uvicorn with this application: one process for one worker, uvicorn's own supervisor for several."""

import contextlib
import ctypes
import functools
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from clustercert.errors import ClustercertError
from clustercert.server.tls_context import TlsContext
from clustercert.server.tls_files import Tls
from clustercert.settings import Settings

# How long requests in flight may take once the server is told to stop.
GRACE_SECONDS = 35
# More than the 60 s after which load balancers by default close idle connections, so that they close first.
KEEP_ALIVE_SECONDS = 75
# Connections that the kernel keeps until they are accepted.
BACKLOG = 2048
# How often the TLS files are looked at.
RELOAD_SECONDS = 5
# A worker that does not answer its supervisor for so long is killed; on a busy machine one starts slowly.
HEALTH_CHECK_SECONDS = 30
# As uvicorn has it: the exit code of a worker whose application did not start.
STARTUP_FAILURE = 3
# The database's thread must get the interpreter lock in time: with Python's own 5 ms each step of a transaction that
# holds the database's lock could wait as long.
SWITCH_SECONDS = 0.0005
# glibc hands blocks from this size on back to the system as soon as they are freed. Left to itself it raises the bound
# and keeps the 19 MiB of each check of a password. Source: mallopt(3), malloc.h.
M_MMAP_THRESHOLD = -3
GIVEN_BACK_FROM_BYTES = 1024 * 1024
# Connections are files, of which a login session may usually open 1,024.
OPEN_FILES = 65536


def run(
    settings: Settings,
    listener: socket.socket,
    files: Tls | None,
    *,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished. Raises ClustercertError.

    `on_start` is called in this process just before it serves, or starts its workers.
    """
    _raise_open_files()
    config = _config(settings, files)
    on_start()
    if settings.server.workers == 1:
        _serve(config, listener)
    else:
        _supervise(config, listener)


def _config(settings: Settings, files: Tls | None) -> uvicorn.Config:
    context = TlsContext(files) if files else None
    return uvicorn.Config(
        functools.partial(_application, settings),
        factory=True,
        interface="asgi3",
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        workers=settings.server.workers,
        # A stranger can bring about any number of its warnings.
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=HEALTH_CHECK_SECONDS,
        ssl_context_factory=context,
        callback_notify=context.reload if context else None,
        timeout_notify=RELOAD_SECONDS,
    )


def _serve(config: uvicorn.Config, listener: socket.socket) -> None:
    # uvicorn stops at the signal and raises it again when it is done: that is no failure.
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run([listener])
    except SystemExit as end:
        raise ClustercertError("The service could not start. See the log.") from end
    finally:
        signal.signal(signal.SIGTERM, before)


def _supervise(config: uvicorn.Config, listener: socket.socket) -> None:
    # The supervisor says which workers died. Each worker sets up its own log.
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    _keep_interrupts_from_workers()
    with _folder_of_the_counts():
        supervisor = Multiprocess(config, [listener])
        supervisor.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes):
        raise ClustercertError("A worker could not start. See the log.")


def _keep_interrupts_from_workers() -> None:
    """A terminal sends Ctrl-C to every process: workers inherit that it is blocked, and get SIGTERM in time.

    This process still takes it, in another thread.
    """
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    # multiprocessing's own helper would let interrupts in again when it is started.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _application(settings: Settings) -> ASGIApp:
    """The application, made in the process that serves it."""
    from clustercert.app.asgi import create_app  # noqa: PLC0415 - the supervisor does not need it

    sys.setswitchinterval(SWITCH_SECONDS)
    _return_freed_memory()
    # Renewed files are found without it, and to a supervisor it means new workers.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
    return create_app(settings)


def _end_with_supervisor() -> None:
    """End a worker whose supervisor was killed: left alone it would hold the port and serve on, unseen."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _return_freed_memory() -> None:
    """Have glibc hand large blocks back to the system; other C libraries do so or have no such option."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, GIVEN_BACK_FROM_BYTES)


def _raise_open_files() -> None:
    """Let the workers open as many files as the system lets them, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _folder_of_the_counts() -> Iterator[None]:
    """A folder that only this user can open, in which the workers' counts add up; gone with the server."""
    with tempfile.TemporaryDirectory(prefix="clustercert-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
