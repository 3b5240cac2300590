"""Where key-encryption keys come from: a file that this program can also write, or an environment variable."""

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from clustercert.errors import CustodyError
from clustercert.sealing import Kek, kek_line, kek_of_line, new_kek, parse_keks

# Thousands of keys; more is not a key file.
_MAX_BYTES = 256 * 1024
_LOCK_INTERVAL = 0.05


class KekSource(Protocol):
    """Key-encryption keys, kept outside the database. The first one wraps, all of them unwrap."""

    @property
    def name(self) -> str:
        """What messages call it, in the middle of a sentence."""

    def read(self) -> tuple[Kek, ...]:
        """The keys as they are now. Raises CustodyError."""

    def held(self) -> contextlib.AbstractAsyncContextManager[None]:
        """While it lasts, no other process changes the keys, nor wraps anything by one that could be dropped."""

    def prepend(self, kek: Kek, /) -> None:
        """Put a new key in front of the others, durably. Call it while held. Raises CustodyError."""

    def drop(self, kek_ids: Collection[str]) -> None:
        """Forget keys, durably. Call it while held. Raises CustodyError."""


@dataclass(frozen=True, slots=True)
class KekVariable:
    """Keys from an environment variable, which only the operator can change."""

    variable: str
    text: str = field(repr=False)

    @property
    def name(self) -> str:
        return f"the environment variable {self.variable}"

    def read(self) -> tuple[Kek, ...]:
        return _parsed(self.text, self.name)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        yield

    def prepend(self, _kek: Kek, /) -> None:
        raise CustodyError(
            f"The data keys are wrapped by the first key of {self.name} already, and it can't be written from here. "
            "Put a new key, 32 random bytes in base64, on a line in front of the others there, restart every process "
            "with it, and run this command again."
        )

    def drop(self, kek_ids: Collection[str]) -> None:
        raise CustodyError(
            f"{_sentence(self.name)} can't be written from here. Take the keys {', '.join(sorted(kek_ids))} out of it "
            "for every process."
        )


@dataclass(frozen=True, slots=True)
class KekFile:
    """Keys from a file that nobody but its owner can read."""

    path: Path

    @property
    def name(self) -> str:
        return f"the file {self.path}"

    def read(self) -> tuple[Kek, ...]:
        return read_kek_file(self.path)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        with contextlib.ExitStack() as stack:
            while not self._lock(stack):
                stack.close()
                await asyncio.sleep(_LOCK_INTERVAL)
            yield

    def prepend(self, kek: Kek, /) -> None:
        self._replace(kek_line(kek) + _read_private(self.path))

    def drop(self, kek_ids: Collection[str]) -> None:
        keks = [(line, kek_of_line(line)) for line in _read_private(self.path).split("\n")]
        self._replace("\n".join(line for line, kek in keks if kek is None or kek.id not in kek_ids))

    def _lock(self, stack: contextlib.ExitStack) -> bool:
        with _sentences(f"lock {self.name}"):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # The one who held the lock may have put another file in this one's place.
            return os.path.samestat(os.fstat(descriptor), self.path.stat())

    def _replace(self, text: str) -> None:
        """Put a whole new file in the old one's place: whoever reads sees the old one or the new one."""
        target = self.path.resolve()
        # The name is always the same and the lock is held, so what a killed process left there is overwritten.
        beside = target.with_name(f".{target.name}.new")
        with _sentences(f"replace {self.name}"):
            old = target.stat()
            beside.unlink(missing_ok=True)
            with _new_private_file(beside) as descriptor:
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
                _write(descriptor, text)
            beside.replace(target)
            _sync_folder(target.parent)


def read_kek_file(path: Path) -> tuple[Kek, ...]:
    """The keys of a file. Raises CustodyError where it is missing, others may read it, or it holds something else."""
    return _parsed(_read_private(path), f"the file {path}")


def write_new_kek_file(path: Path) -> Kek:
    """Make a file with one new key, durably. Raises CustodyError; a file that is there already stays as it is."""
    kek = new_kek()
    with _sentences(f"make the file {path}"):
        with _new_private_file(path) as descriptor:
            _write(descriptor, kek_line(kek))
        _sync_folder(path.parent)
    return kek


def _parsed(text: str, name: str) -> tuple[Kek, ...]:
    try:
        return parse_keks(text)
    except ValueError as reason:
        raise CustodyError(f"{_sentence(name)} does not hold key-encryption keys: {reason}.") from None


def _read_private(path: Path) -> str:
    with _sentences(f"read the file {path}"):
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check_private(path, os.fstat(descriptor).st_mode)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(_MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    if len(content) > _MAX_BYTES:
        raise CustodyError(f"The file {path} is too large to hold key-encryption keys.")
    # Comments may be in any encoding, and come out as they went in.
    return content.decode(errors="surrogateescape")


def _check_private(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise CustodyError(f"{path} is not a file. Name the file that holds the key-encryption keys.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CustodyError(f"Others than its owner can use the file {path}. Run `chmod 600 {path}`.")


@contextlib.contextmanager
def _new_private_file(path: Path) -> Iterator[int]:
    """A descriptor to write a new file by; the file is gone again if that fails."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def _write(descriptor: int, text: str) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(text.encode(errors="surrogateescape"))
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _sentences(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CustodyError(f"Can't {operation} of key-encryption keys: {error.strerror}.") from error


def _sentence(name: str) -> str:
    return name[:1].upper() + name[1:]
