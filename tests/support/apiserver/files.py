"""Files that kube-apiserver watches."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Watched(Generic[T]):
    """The parsed content of a file, read again after a change. An invalid file keeps the last valid content."""

    def __init__(self, path: Path, read: Callable[[Path], T], bad: tuple[type[Exception], ...]) -> None:
        self._path, self._read, self._bad = path, read, bad
        self._stamp = self._now()
        self._value = read(path)
        self._lock = threading.Lock()
        self.complaints: list[str] = []

    @property
    def value(self) -> T:
        with self._lock:
            stamp = self._now()
            if stamp is not None and stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._value = self._read(self._path)
                except self._bad as error:
                    self.complaints.append(str(error))
            return self._value

    def _now(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class Fixed(Generic[T]):
    """What is read once, at the start."""

    def __init__(self, value: T) -> None:
        self.value = value
        self.complaints: list[str] = []


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file by rename."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)
