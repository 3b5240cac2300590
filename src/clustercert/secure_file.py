"""Writes files and folders that only their owner can read. Reads files whose path may come from an untrusted source.

Says which access to a path is missing.
"""

import errno
import os
import pwd
import stat
import tempfile
from pathlib import Path

# The maximum number of symbolic links to follow in one path, as in Linux.
_MAX_LINKS = 40


def write_private(
    path: Path, content: str | bytes, *, keep_owner: bool = False, follow_links: bool = True
) -> None:
    """Write a file with mode 0600 atomically. Raises OSError.

    Args:
        keep_owner: if root replaces a file, whether the new file gets the owner of the old file.
        follow_links: whether to replace the target of a symbolic link instead of the link. `_target` checks the target.
    """
    target = _target(path) if follow_links else path
    # Replacing a device such as /dev/null would break other programs.
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EINVAL, "Is not a regular file", str(path))
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


def _target(path: Path) -> Path:
    """Return the file to replace: `path` itself or, for a symbolic link, the target of the link.

    Raises OSError if another user owns the link or the target, because that user could make the caller overwrite a
    file. Also raises OSError if the target is missing, because other users might be able to read a new file in the
    folder of the target.
    """
    target = path
    for _ in range(_MAX_LINKS):
        if not target.is_symlink():
            break
        _require_owner(target.lstat(), path)
        target = target.parent / target.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if target != path:
        if not target.exists():
            raise FileNotFoundError(
                errno.ENOENT, "Is a symbolic link to a file that does not exist", str(path)
            )
        _require_owner(target.stat(), path)
    return target


def _require_owner(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        raise PermissionError(
            errno.EPERM, "The symbolic link or its target belongs to another user", str(path)
        )


def make_private_folder(path: Path) -> None:
    """Create a folder with mode 0700, or set the mode of an existing folder to 0700. Raises OSError.

    The target of a symbolic link keeps its mode, because other programs may use the target.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.is_symlink():
        path.chmod(0o700)


def read_regular_file(path: Path, limit: int) -> bytes:
    """Read at most `limit` bytes of a file whose path may come from an untrusted source.

    Never waits for a pipe or a device. Raises OSError, for example if the path is not a regular file.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Is not a file", str(path))
        return file.read(limit)


def user_name(uid: int) -> str:
    """Return the name of a user of this machine, or the user's id if the user has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def access_advice(error: OSError, path: Path) -> str:
    """Return a sentence, after a space, that says which access this process lacks, and what helps.

    Returns an empty text if the error is not a PermissionError, or if the process has access. The path need not exist.
    """
    if not isinstance(error, PermissionError):
        return ""
    user, path = user_name(os.geteuid()), path.absolute()
    # Methods of Path raise an error below a folder that this process can't enter.
    for folder in reversed(path.parents):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK, effective_ids=True):  # noqa: PTH112
            owner = user_name(folder.stat().st_uid)
            return (
                f" The user {user} can't enter the folder {folder}, which belongs to {owner}. Name a path that {user}"
                f" may use, or run the command as {owner}."
            )
    for each, right, what in ((path, os.R_OK, "read"), (path.parent, os.W_OK, "write into the folder")):
        if os.path.exists(each) and not os.access(each, right, effective_ids=True):  # noqa: PTH110
            return (
                f" The user {user} can't {what} {each}, which belongs to {user_name(each.stat().st_uid)}. Name a path"
                f" that {user} may use, or give {user} access to it."
            )
    return ""


class PrivateFileError(ValueError):
    """A file with a secret can't be used. The message says why, and what to do."""


def read_private_file(path: Path, limit: int) -> bytes:
    """Read a file with a secret. Rejects a file of more than `limit` bytes, or that other users can access.

    If root owns the file, the file's group may have read access, unless this process runs as root: Kubernetes gives a
    Secret to a pod as such a file, with the group `fsGroup`. Raises OSError or PrivateFileError.

    Source: PostgreSQL has the same rule for `ssl_key_file`.
    """
    try:
        opened = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - the `with` is below
    except PermissionError as error:
        if not os.path.exists(path):  # noqa: PTH110 - in a folder that this process can't enter
            raise PrivateFileError(f"The file {path} can't be read.{access_advice(error, path)}") from None
        user, group = user_name(os.geteuid()), os.getegid()
        raise PrivateFileError(
            f"The user {user} can't read the file {path}. Run `chown {user} {path}`, or, if root must own the file, "
            f"`chown 0:{group} {path}` and `chmod 440 {path}`."
        ) from None
    with opened as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PrivateFileError(f"{path} is not a file. Name the file that contains the secret.")
        denied, mode = stat.S_IRWXG | stat.S_IRWXO, "600"
        if status.st_uid == 0 != os.geteuid():
            denied, mode = denied & ~stat.S_IRGRP, "440"
        if status.st_mode & denied:
            raise PrivateFileError(
                f"The file {path} is accessible by other users. Run `chmod {mode} {path}`."
            )
        content = file.read(limit + 1)
    if len(content) > limit:
        raise PrivateFileError(
            f"The file {path} has more than {limit} bytes. Name the file that contains the secret."
        )
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOCTTY | os.O_NONBLOCK)
