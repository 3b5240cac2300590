"""The tokens of logins at OIDC issuers: one file of mode 0600 for each profile.

They are not in the profile's file, because tokens are renewed every few minutes, and the exec plugin's cache is valid
only until the profile's file changes.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from clustercert.cli.credential_lock import LockTimeout, locked
from clustercert.cli.options import CommandError
from clustercert.secure_file import make_private_folder, write_private

# How long to wait for a lock: longer than a renewal takes.
_WAIT_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class SavedTokens:
    """The saved tokens of a login.

    Attributes:
        token: the token that is sent to the service.
        expires_at: when to renew it.
        refresh_token: `None` if the issuer sent none, refused it, or if it is in the keyring.
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
    """Read a file. Returns empty tokens if it is missing or damaged, since a new login replaces it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        expires_at = data["expires_at"]
        data["expires_at"] = datetime.fromisoformat(expires_at) if expires_at is not None else None
        return SavedTokens(**data)
    except (OSError, ValueError, TypeError, LookupError):
        return SavedTokens()


def save(path: Path, tokens: SavedTokens) -> None:
    """Write or replace a file, or delete it if nothing is left. Raises CommandError."""
    try:
        if tokens == SavedTokens():
            path.unlink(missing_ok=True)
            return
        data = asdict(tokens) | {"expires_at": tokens.expires_at.isoformat() if tokens.expires_at else None}
        for folder in (path.parent.parent, path.parent):
            make_private_folder(folder)
        write_private(path, json.dumps(data, indent=2) + "\n")
    except OSError as error:
        raise CommandError(f"The login {path} can't be written: {error.strerror}.") from error


def drop_refresh_token(path: Path) -> None:
    """Forget a refresh token that the issuer refused. Raises CommandError."""
    save(path, replace(read(path), refresh_token=None, in_keyring=False))


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of a file, so that two processes never use one refresh token. Raises CommandError.

    Many issuers give a new refresh token each time, and end the login if the old one is used again.
    """
    try:
        for folder in (path.parent.parent, path.parent):
            make_private_folder(folder)
    except OSError as error:
        raise CommandError(f"The login {path} can't be renewed: {error.strerror}.") from error
    try:
        with locked(str(path), _WAIT_SECONDS) as lock:
            if not lock.is_held:
                raise CommandError(f"The login can't be renewed: {path}.lock can't be written.")
            yield
    except LockTimeout:
        raise CommandError(f"Another clustercert holds {path}.lock. End it, and try again.") from None
