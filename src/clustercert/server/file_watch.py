"""Notices changes to the settings file and the policy file by polling.

Polling needs no library, and also works for network file systems and for the symbolic links in a Kubernetes ConfigMap.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from clustercert.settings import named_policy_file

POLL_SECONDS = 2.0

Stamp = tuple[int, ...]


class FileWatch:
    """The settings file and the policy file that it names, as they were when the settings were last loaded."""

    def __init__(self, config: Path | None) -> None:
        self._config = config
        self.mark()

    def mark(self) -> None:
        """Remember the files as they are now. Call this just before the settings are loaded."""
        # The stamp is taken before the file is read, so that a later change is noticed.
        files = (self._config, named_policy_file(self._config))
        self._marked = self._seen = _stamps(file for file in files if file is not None)

    def has_changed(self) -> bool:
        """Whether a file has changed since the last call of `mark`."""
        return _stamps(self._marked) != self._marked

    def has_settled(self) -> bool:
        """Whether no file has changed since the last call, so that no file is being written."""
        before, self._seen = self._seen, _stamps(self._marked)
        return self._seen == before


def file_stamp(path: Path) -> Stamp:
    """Return a value that changes when the file is written or replaced, or zeros if there is no file."""
    # An invalid path, such as one with a null byte, raises ValueError.
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        # The value `st_ctime_ns` also changes when the file's permissions change.
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns
    return 0, 0, 0, 0


def _stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    return {path: file_stamp(path) for path in paths}
