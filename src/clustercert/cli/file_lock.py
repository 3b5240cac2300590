"""File locks: of several parallel commands, only one asks the service or the OIDC issuer.

The commands that wait for the lock use the result of the first command. The lock file also contains the last failure,
so that waiting commands fail with the same message. A failure that was saved before the clock was set is ignored.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from clustercert.cli import clock

# How long to wait for a lock. The holder of the lock may renew the login, and then wait up to 10 seconds for the
# service.
_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.02
_MAX_BYTES = 4096


class LockTimeout(Exception):
    """Another process held the lock for too long."""


class Lock:
    """A lock during a `with` block. If `descriptor` is `None`, no lock file could be created, and nothing is locked."""

    def __init__(self, descriptor: int | None, waiting_since: float) -> None:
        self._descriptor = descriptor
        self._waiting_since = waiting_since

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def failure_meanwhile(self) -> tuple[int, str] | None:
        """Return the exit code and message of a command that failed while this command waited for the lock."""
        return self.failure_since(self._waiting_since)

    def failure_since(self, since: float) -> tuple[int, str] | None:
        """Return the exit code and message of the last failure, if the failure was at this time or later.

        Returns None if the clock was set since the failure, or if the failure is in the future.
        """
        if self._descriptor is None:
            return None
        try:
            text = os.pread(self._descriptor, _MAX_BYTES, 0).decode()
            failed_at, boot_time, exit_code, message = text.split(" ", 3)
            is_recent = since <= float(failed_at) <= time.time() and clock.is_unchanged_since(int(boot_time))
            return (int(exit_code), message) if is_recent else None
        except (OSError, ValueError):
            return None

    def record_failure(self, exit_code: int, message: str) -> None:
        if self._descriptor is not None:
            text = f"{time.time()} {clock.boot_time()} {exit_code} {message}"
            self.forget_failure()
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, text.encode()[:_MAX_BYTES], 0)

    def forget_failure(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)


@contextlib.contextmanager
def locked(path: str | None, wait_seconds: float = _WAIT_SECONDS) -> Iterator[Lock]:
    """Hold the lock of a file in a `with` block. Raises LockTimeout.

    Locks nothing if `path` is `None` or the lock file can't be created.
    """
    descriptor = _opened(f"{path}.lock") if path is not None else None
    if descriptor is None:
        yield Lock(None, 0)
        return
    waiting_since = time.time()
    try:
        _acquire(descriptor, wait_seconds)
        yield Lock(descriptor, waiting_since)
    finally:
        os.close(descriptor)


def forget_failure(lock_file: str) -> None:
    """Delete the failure in a lock file, also while another process holds the lock."""
    with contextlib.suppress(OSError):
        descriptor = os.open(
            lock_file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        )
        os.close(descriptor)


def _opened(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None


def _acquire(descriptor: int, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockTimeout from None
            time.sleep(_POLL_SECONDS)
        except OSError:
            return  # The file system does not support locks.
        else:
            return
