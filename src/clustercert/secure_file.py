"""Files and folders that only their owner can read."""

import errno
import os
import tempfile
from pathlib import Path


def write_private(path: Path, content: str | bytes, *, keep_owner: bool = False) -> None:
    """Write a file with mode 0600 atomically. Raises OSError.

    Args:
        keep_owner: if root replaces a file, whether the new one belongs to the owner of the old one.
    """
    # If the path is a symbolic link, replace its target and keep the link. Don't follow a link without a target:
    # somebody else may have created it to receive the new file.
    target = path.resolve()
    if path.is_symlink() and not target.exists():
        raise FileNotFoundError(errno.ENOENT, "Is a symbolic link to a file that does not exist", str(path))
    # `mkstemp` creates the file with mode 0600.
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if keep_owner and os.geteuid() == 0 and target.exists():
                os.fchown(descriptor, target.stat().st_uid, target.stat().st_gid)
            os.fsync(descriptor)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def make_private_folder(path: Path) -> None:
    """Create a folder with mode 0700, or set that mode on an existing folder. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
