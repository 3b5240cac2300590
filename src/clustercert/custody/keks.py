"""Key-encryption keys in a file, which the service can also change, or in an environment variable."""

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clustercert.model.errors import CustodyError
from clustercert.pki.envelope import Kek, kek_line, kek_of_line, new_kek, parse_keks
from clustercert.secure_file import PrivateFileError, access_advice, read_private_file, user_name

# The maximum size of a key file, which is enough for thousands of keys.
_MAX_BYTES = 256 * 1024
_LOCK_INTERVAL = 0.05


@dataclass(frozen=True, slots=True)
class KekVariable:
    """Keys from an environment variable, which only the operator can change."""

    variable: str
    text: str = field(repr=False)

    @property
    def name(self) -> str:
        return f"the environment variable {self.variable}"

    async def keks(self) -> tuple[Kek, ...]:
        return _parsed(self.text, self.name)

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        yield

    async def add(self) -> Kek:
        raise CustodyError(
            f"This command can't change {self.name}, and its first key already wraps the data keys. Put a new key, 32 "
            "random bytes in base64, on a line before the others, restart all processes with it, and run this command "
            "again."
        )

    async def remove(self, kek_ids: Collection[str]) -> None:
        raise CustodyError(
            f"This command can't change {self.name}. Remove the keys {', '.join(sorted(kek_ids))} from this "
            "variable for all processes."
        )

    async def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class KekFile:
    """Keys from a file that only its owner can read. The first key wraps new data keys."""

    path: Path
    # Descriptors of the locked file and of its replacements; empty without the lock.
    _locked: list[int] = field(default_factory=list, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of this key source, as error messages show it."""
        return f"the file {self.path}"

    def read(self) -> tuple[Kek, ...]:
        """Read the keys. Raises CustodyError if the file is missing, readable by others, or invalid."""
        return _parsed(_read_private(self.path), self.name)

    async def keks(self) -> tuple[Kek, ...]:
        return await asyncio.to_thread(self.read)

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """Prevent other processes from changing the key-encryption keys, and from wrapping data keys."""
        while not self._try_lock():  # noqa: ASYNC110 - other processes hold the lock
            await asyncio.sleep(_LOCK_INTERVAL)
        try:
            yield
        finally:
            self._unlock()

    async def add(self) -> Kek:
        kek = new_kek()
        self.prepend(kek)
        return kek

    def prepend(self, kek: Kek) -> None:
        """Insert a new key before the existing keys, and flush the file to disk. The caller must hold the lock.

        Raises CustodyError.
        """
        self._replace(kek_line(kek) + _read_private(self.path))

    async def remove(self, kek_ids: Collection[str]) -> None:
        """Remove keys, durably. The caller must hold the lock. Raises CustodyError if the file can't be written."""
        keks = [(line, kek_of_line(line)) for line in _read_private(self.path).split("\n")]
        self._replace("\n".join(line for line, kek in keks if kek is None or kek.id not in kek_ids))

    async def close(self) -> None:
        pass

    def _try_lock(self) -> bool:
        with _errors_as_custody(f"lock {self.name}", self.path), contextlib.ExitStack() as stack:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # If the previous holder of the lock has replaced the file, this lock is on the old file, and the caller
            # must try again.
            if not os.path.samestat(os.fstat(descriptor), self.path.stat()):
                return False
            stack.pop_all()
        self._locked.append(descriptor)
        return True

    def _unlock(self) -> None:
        while self._locked:
            os.close(self._locked.pop())

    def _replace(self, text: str) -> None:
        """Replace the key file atomically, and flush the new file to disk."""
        target = self.path.resolve()
        # The temporary file's name is fixed, so that a file left by a killed process is replaced. Because of the lock,
        # no other process writes to the temporary file.
        temporary = target.with_name(f".{target.name}.new")
        with _errors_as_custody(f"replace {self.name}", target):
            temporary.unlink(missing_ok=True)
            _write_new(temporary, text, like=target.stat())
            if self._locked:
                # Lock the new file before others can open it, because the holder goes on after the replacement.
                descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
                self._locked.append(descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            temporary.replace(target)
            _sync_folder(target.parent)


def write_new_kek_file(path: Path) -> Kek:
    """Create a file with one new key, and flush the file to disk.

    Raises CustodyError, for example if the file exists.
    """
    kek = new_kek()
    with _errors_as_custody(f"create the file {path}", path):
        _write_new(path, kek_line(kek))
        _sync_folder(path.parent)
    return kek


def _parsed(text: str, name: str) -> tuple[Kek, ...]:
    try:
        return parse_keks(text)
    except ValueError as reason:
        source = name[:1].upper() + name[1:]
        raise CustodyError(f"{source} does not have valid key-encryption keys: {reason}.") from None


def _read_private(path: Path) -> str:
    with _errors_as_custody(f"read the file {path}", path):
        content = read_private_file(path, _MAX_BYTES)
    # Comments in the file may have any encoding, and `_write_new` must write the comments back unchanged.
    return content.decode(errors="surrogateescape")


def _write_new(path: Path, text: str, like: os.stat_result | None = None) -> None:
    """Create a file with mode 0600, or with the owner and mode in `like`. Deletes the file if writing fails."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if like is not None:
                if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            file.write(text.encode(errors="surrogateescape"))
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _errors_as_custody(operation: str, path: Path) -> Iterator[None]:
    try:
        yield
    except PrivateFileError as error:
        raise CustodyError(str(error)) from None
    except OSError as error:
        advice = ""
        if error.errno == errno.EROFS:
            advice = " Change it at its source, such as a Secret."
        elif isinstance(error, PermissionError):
            user = user_name(os.geteuid())
            advice = (
                f"{access_advice(error, path)} The user {user} needs a folder of its own for this file: create it with"
                f" `install -d -m 0700 -o {user} FOLDER`, move the file there, and correct kek_file."
            )
        raise CustodyError(f"Can't {operation} of key-encryption keys: {error.strerror}.{advice}") from error
