"""Finds, locks and replaces the kubeconfig files that kubectl reads, in the same way as kubectl."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from clustercert.cli.kubeconfig.document import KubeconfigDocument
from clustercert.cli.options import CommandError, home_folder
from clustercert.cli.yaml_io import MalformedYaml, read_regular
from clustercert.secure_file import write_private

# The maximum size of a kubeconfig: enough for the embedded certificates of about 500 clusters.
_MAX_BYTES = 4 * 1024 * 1024
_BACKUP_SUFFIX = ".clustercert-backup"
_LOCK_SECONDS = 10.0
_POLL_SECONDS = 0.05


def loading_order(explicit: Path | None, environment: Mapping[str, str]) -> list[Path]:
    """Return the files that kubectl merges, in kubectl's order. See client-go's `PathOptions.GetLoadingPrecedence`."""
    if explicit is not None:
        return [explicit]
    named = [name for name in environment.get("KUBECONFIG", "").split(os.pathsep) if name]
    return [Path(name) for name in dict.fromkeys(named)] or [home_folder("KUBECONFIG") / ".kube" / "config"]


def default_target(files: list[Path]) -> Path:
    """Return the file for new entries: the first existing file, or else the last file.

    See client-go's `PathOptions.GetDefaultFilename`.
    """
    return next((path for path in files if path.exists()), files[-1])


def backup_of(path: Path) -> Path:
    """Return the path of the backup file, which has the content of the kubeconfig before the last change."""
    return path.with_name(path.name + _BACKUP_SUFFIX)


def load(path: Path) -> KubeconfigDocument:
    """Read a kubeconfig, or start a new one if the file is missing. Raises CommandError."""
    return _parsed(path, _content(path))


def change(path: Path, edit: Callable[[KubeconfigDocument], None]) -> bool:
    """Edit a file while holding kubectl's lock, and keep a backup. Returns whether the text changed.

    Raises CommandError if the file can't be changed. The file is unchanged after such an error.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            content = _content(path)
            config = _parsed(path, content)
            edit(config)
            try:
                text = config.changed_text()
            except MalformedYaml as error:
                raise CommandError(
                    f"The file {path} can't be changed. {error.message} It was not changed."
                ) from None
            if text == config.text:
                return False
            if content:
                write_private(backup_of(path), content, keep_owner=True, follow_links=False)
            write_private(path, text, keep_owner=True)
            return True
    except OSError as error:
        raise CommandError(
            f"The file {path} can't be written: {error.strerror or error}. It was not changed."
        ) from error


def _parsed(path: Path, content: bytes) -> KubeconfigDocument:
    try:
        return KubeconfigDocument(content)
    except MalformedYaml as error:
        raise CommandError(f"The file {path} can't be used as a kubeconfig. {error.message}") from None


def _content(path: Path) -> bytes:
    return read_regular(path, _MAX_BYTES) if path.exists() else b""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold kubectl's lock: a lock file that only one process at a time can create. Raises CommandError or OSError."""
    lock = path.with_name(f"{path.name}.lock")
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            break
        except FileExistsError:
            if time.monotonic() > deadline:
                raise CommandError(
                    f"The lock {lock} exists. If no other program is changing the kubeconfig, delete that file."
                ) from None
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
