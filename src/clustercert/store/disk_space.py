"""Checks the free disk space for the SQLite file. While less than the reserve is free, no certificates are issued.

Revocations, audit events and logins continue, and use the reserve.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from clustercert.background import wait_for_stop
from clustercert.model.errors import Unavailable
from clustercert.observability import metrics

logger = structlog.get_logger()

MIB = 1024 * 1024
# A worker writes at most about 5 MiB a second, so the reserve is never used up between two measurements.
INTERVAL_SECONDS = 1.0
# A warning is logged when less than this multiple of the reserve is free. In this state, the service still issues
# certificates.
WARNING_FACTOR = 4
# Issuing stops when more than this many measurements in a row failed, or could not start because an earlier one hangs.
MOST_MISSED = 10
RETRY_SECONDS = 60

_FULL = (
    "The service's disk is almost full, so the service issues no certificates. Revocations still work. Ask the operator"
    " to free space."
)
_UNKNOWN = (
    "The service's disk does not respond, so the service issues no certificates. Ask the operator to read the"
    " log."
)


class DiskSpace:
    """Measures free disk space while `watch` runs."""

    def __init__(self, folder: Path | None, reserve_bytes: int) -> None:
        """`folder` contains the database; `None` for a database server, whose disk is not measured."""
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._message = "disk space sufficient"
        self._refusal: str | None = None
        self._is_measuring = False
        self._missed = 0

    def require(self) -> None:
        """Raise Unavailable if less than the reserve is free, or if the free space is unknown."""
        if self._refusal is not None:
            raise Unavailable(self._refusal, retry_after=RETRY_SECONDS)

    async def watch(self, stop: asyncio.Event) -> None:
        """Measure the free space periodically until `stop` is set."""
        if self._folder is not None:
            metrics.DISK_RESERVE.labels("database").set(self._reserve_bytes)
        while self._folder is not None and not stop.is_set():
            self._start_measurement(self._folder)
            await wait_for_stop(stop, INTERVAL_SECONDS)

    def _start_measurement(self, folder: Path) -> None:
        """Measure in a thread, because a network file system can hang. While a thread hangs, no other thread starts.

        Stops issuing certificates after too many measurements that failed or could not start.
        """
        self._missed += 1
        if self._missed > MOST_MISSED and self._reserve_bytes:
            self._refusal = _UNKNOWN
            self._log("disk space unknown: issuing stopped", logger.error)
        if not self._is_measuring:
            self._is_measuring = True
            arguments = (folder, asyncio.get_running_loop())
            # Use a daemon thread, so that the process can exit while the thread hangs.
            threading.Thread(target=self._measure, args=arguments, name="disk space", daemon=True).start()

    def _measure(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        """Measure the free space, and pass it to the event loop."""
        free = free_bytes(folder)
        with contextlib.suppress(RuntimeError):  # Raised if the event loop was closed.
            loop.call_soon_threadsafe(self._take, free)

    def _take(self, free: int | None) -> None:
        """Update the metric, stop or resume issuing, and log the change. `free` is `None` for a failed measurement."""
        self._is_measuring = False
        if free is None:
            return
        self._missed = 0
        metrics.DISK_FREE.labels("database").set(free)
        message, write, self._refusal = "disk space sufficient", logger.info, None
        if free < self._reserve_bytes:
            message, write, self._refusal = "disk almost full: issuing stopped", logger.error, _FULL
        elif free < WARNING_FACTOR * self._reserve_bytes:
            message, write = "disk space low", logger.warning
        self._log(message, write, free_mib=free // MIB)

    def _log(self, message: str, write: Callable[..., object], **fields: int) -> None:
        """Log a message if it differs from the last one."""
        if message != self._message:
            self._message = message
            write(message, folder=str(self._folder), reserve_mib=self._reserve_bytes // MIB, **fields)


def free_bytes(folder: Path) -> int | None:
    """Return the free space of a folder's file system, or `None` if it can't be measured."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
