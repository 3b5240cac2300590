"""The tokens of saved logins, in files. The refresh tokens may be in the system's keyring instead."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from clustercert.cli.file_lock import LockTimeout, locked
from clustercert.cli.options import CommandError
from clustercert.model.wheel import wheel_file
from clustercert.secure_file import make_private_folder, write_private

T = TypeVar("T")

# The advice in messages about a missing or unwritable home directory.
JOBS = "A job needs no saved login: set CLUSTERCERT_URL and CLUSTERCERT_TOKEN."
_SERVICE = "clustercert"
# How long to wait for the keyring, which may prompt the user.
_KEYRING_SECONDS = 30.0
# How long to wait for a lock: longer than the renewal of a login takes.
_LOCK_SECONDS = 90.0


def check() -> None:
    """Raise CommandError if there is no keyring, or if the keyring does not respond."""
    get("check")


def put(account: str, secret: str) -> None:
    """Save a secret in the keyring. Raises CommandError if there is no keyring, or if the keyring does not respond."""
    _within_time(lambda: _keyring().set_password(_SERVICE, account, secret))


def get(account: str) -> str | None:
    """Return the secret of an account in the keyring, or `None` if the account has no secret. Raises CommandError."""
    return _within_time(lambda: _keyring().get_password(_SERVICE, account))


def delete(account: str) -> None:
    """Delete the secret of an account in the keyring, if the account has a secret. Raises CommandError."""
    if get(account) is not None:
        _within_time(lambda: _keyring().delete_password(_SERVICE, account))


class _Keyring:
    """The functions of the package `keyring` that this module uses."""

    set_password: Callable[[str, str, str], None]
    get_password: Callable[[str, str], str | None]
    delete_password: Callable[[str, str], None]


def _keyring() -> _Keyring:
    import keyring

    found: _Keyring = keyring
    return found


def _within_time(work: Callable[[], T]) -> T:
    """Run a call with a time limit, in a daemon thread, which does not keep the process alive."""
    results: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - backends raise their own exception types
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_KEYRING_SECONDS)
    if results:
        return results[0]
    if failures and isinstance(failures[0], ModuleNotFoundError):
        raise CommandError(
            f"The package keyring is not installed. Run `pip install {wheel_file(extra='keyring')}`, or omit "
            "--keyring."
        )
    reason = type(failures[0]).__name__ if failures else f"no answer within {_KEYRING_SECONDS:.0f} seconds"
    raise CommandError(f"The keyring can't be used ({reason}). Log in again without --keyring.")


@dataclass(frozen=True, slots=True)
class SavedTokens:
    """The saved tokens of a login.

    Attributes:
        token: the token that is sent to the service.
        expires_at: when to renew the token.
        refresh_token: `None` if the issuer sent no refresh token, if the issuer refused the refresh token, or if the
            refresh token is in the keyring.
        in_keyring: whether the refresh token is in the keyring.
    """

    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    refresh_token: str | None = field(default=None, repr=False)
    in_keyring: bool = False

    @property
    def is_renewable(self) -> bool:
        return self.refresh_token is not None or self.in_keyring


def read(path: Path) -> SavedTokens:
    """Read the file of saved tokens. Returns an empty `SavedTokens` if the file is missing or damaged.

    The next login replaces a damaged file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        expires_at = data["expires_at"]
        data["expires_at"] = datetime.fromisoformat(expires_at) if expires_at is not None else None
        return SavedTokens(**data)
    except (OSError, ValueError, TypeError, LookupError):
        return SavedTokens()


def save(path: Path, tokens: SavedTokens) -> None:
    """Write the file of saved tokens, or delete the file if there are no tokens. Raises CommandError."""
    try:
        if tokens == SavedTokens():
            path.unlink(missing_ok=True)
            return
        data = asdict(tokens) | {"expires_at": tokens.expires_at.isoformat() if tokens.expires_at else None}
        for folder in (path.parent.parent, path.parent):
            make_private_folder(folder)
        write_private(path, json.dumps(data, indent=2) + "\n")
    except OSError as error:
        raise cannot_save(path, error) from error


def cannot_save(path: Path, error: OSError) -> CommandError:
    """Return the error which says that a file of a login can't be written."""
    return CommandError(
        f"The login can't be saved in {path}: {error.strerror}. Set HOME or XDG_CONFIG_HOME to a folder that you can "
        f"write. {JOBS}"
    )


def drop_refresh_token(path: Path) -> None:
    """Delete a saved refresh token that the issuer refused. Raises CommandError."""
    save(path, replace(read(path), refresh_token=None, in_keyring=False))


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of a file, so that two processes never use the same refresh token. Raises CommandError.

    Many issuers replace the refresh token after each use, and end the login if an old token is used again.
    """
    try:
        for folder in (path.parent.parent, path.parent):
            make_private_folder(folder)
    except OSError as error:
        raise cannot_save(path, error) from error
    try:
        with locked(str(path), _LOCK_SECONDS) as lock:
            if not lock.is_held:
                raise CommandError(f"The login can't be renewed: {path}.lock can't be written.")
            yield
    except LockTimeout:
        raise CommandError(
            f"Another clustercert process holds {path}.lock. Stop that process, and try again."
        ) from None
