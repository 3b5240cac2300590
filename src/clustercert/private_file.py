"""Files and folders that nobody but their owner can read."""

import os
import tempfile
from pathlib import Path


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file of mode 0600, whole or not at all. Raises OSError."""
    # A link stays a link, to the new content.
    target = path.resolve()
    # `mkstemp` makes files of mode 0600, under a name that nobody has yet.
    descriptor, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(descriptor)
        Path(beside).replace(target)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def make_private_folder(path: Path) -> None:
    """Make a folder of mode 0700; one that is there already gets that mode. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
