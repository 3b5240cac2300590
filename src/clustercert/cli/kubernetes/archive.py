"""Writes a folder as a tar archive to standard output, for containers from which nobody can copy files."""

import sys
import tarfile
from pathlib import Path

from clustercert.cli.options import InvalidOption

# The value of --out that stands for a tar archive on standard output.
STANDARD_OUTPUT = Path("-")


def check_archive(*, force: bool) -> None:
    """Raise InvalidOption if an archive can't be written."""
    if force:
        raise InvalidOption(
            "An archive has only new files. Leave out --force, or name a folder.", param_hint="--force"
        )
    if sys.stdout.isatty():
        raise InvalidOption(
            "Standard output is a terminal. Redirect the archive, for example to `| tar -x -C DIR`.",
            param_hint="--out",
        )


def write_archive(folder: Path) -> None:
    """Write the files of the folder, with their modes. Writes nothing if the folder is empty. Raises OSError."""
    paths = sorted(folder.rglob("*"))
    if not paths:
        return
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for path in paths:
            archive.add(path, path.relative_to(folder), recursive=False, filter=_without_owner)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    return entry.replace(uid=0, gid=0, uname="", gname="", deep=False)
