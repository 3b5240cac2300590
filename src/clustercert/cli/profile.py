"""Where this user is logged in: one file of mode 0600 for each profile, in a folder of mode 0700.

A profile has a token or an access key, never a password.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.errors import ClustercertError
from clustercert.private_file import make_private_folder, write_private

if TYPE_CHECKING:
    # Whoever only reads a profile loads no HTTP client.
    from clustercert.client import Client

DEFAULT_PROFILE = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ProfileError(ClustercertError):
    """There is no profile to work with, or it can't be kept; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A service, and who one is there.

    Attributes:
        url: the base of the service's addresses.
        user: for messages; a name, or the access key.
        ca_pem: the CAs to trust instead of this machine's own; their text, so that the file may go away.
        token, expires_at: of a login by password.
        access_key, secret_key: of the other kind of login.
    """

    url: str
    user: str
    project_id: str
    project_name: str
    ca_pem: str | None = None
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)

    def client(self) -> "Client":
        """A client that is this user. Raises ProfileError where the login has expired."""
        from clustercert.client import Client
        from clustercert.client.auth import AccessKeyAuth, TokenAuth

        if self.access_key is not None and self.secret_key is not None:
            return Client(self.url, AccessKeyAuth(self.access_key, self.secret_key), ca_pem=self.ca_pem)
        if self.expires_at is not None and self.expires_at <= datetime.now(UTC):
            raise ProfileError(
                f"The login at {self.url} expired at {self.expires_at:%Y-%m-%d %H:%M} UTC. Run `clustercert login` "
                "again."
            )
        return Client(self.url, TokenAuth(self.token or ""), ca_pem=self.ca_pem)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Say what to do where the service doesn't know this user any more. Raises ProfileError."""
        from clustercert.client.wire import Refused

        try:
            yield
        except Refused as error:
            if error.http_status != 401 or self.token is None:  # noqa: PLR2004 - the refusal of who one is
                raise
            raise ProfileError(
                f"{error.message} The login at {self.url} has ended. Run `clustercert login` again."
            ) from error


def load(name: str, environment: Mapping[str, str]) -> Profile:
    """The kept profile of that name. Raises ProfileError."""
    path = _path(name, environment)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["expires_at"] is not None:
            kept["expires_at"] = datetime.fromisoformat(kept["expires_at"])
        return Profile(**kept)
    except FileNotFoundError:
        raise ProfileError(
            f"There is no profile {name}. Run `clustercert login URL`, or set OS_AUTH_URL and its like."
        ) from None
    except OSError as error:
        raise ProfileError(f"The profile {path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ProfileError(f"The profile {path} is damaged. Run `clustercert login URL` again.") from error


def save(name: str, profile: Profile, environment: Mapping[str, str]) -> Path:
    """Keep a profile, in place of one of the same name; where. Raises ProfileError."""
    path = _path(name, environment)
    kept = asdict(profile)
    kept["expires_at"] = profile.expires_at.isoformat() if profile.expires_at else None
    try:
        for folder in (path.parent.parent, path.parent):
            make_private_folder(folder)
        write_private(path, json.dumps(kept, indent=2) + "\n")
    except OSError as error:
        raise ProfileError(f"The profile {path} can't be written: {error.strerror}.") from error
    return path


def forget(name: str, environment: Mapping[str, str]) -> None:
    """Delete a profile. Raises ProfileError."""
    path = _path(name, environment)
    try:
        path.unlink()
    except OSError as error:
        raise ProfileError(f"The profile {path} can't be deleted: {error.strerror}.") from error


def _path(name: str, environment: Mapping[str, str]) -> Path:
    if not _NAME.fullmatch(name):
        raise ProfileError("A profile's name has 1 to 64 letters, digits, dots, hyphens or underscores.")
    # XDG Base Directory Specification: a relative path in the variable is to be ignored.
    folder = Path(environment.get("XDG_CONFIG_HOME") or "")
    if not folder.is_absolute():
        folder = Path.home() / ".config"
    return folder / "clustercert" / "profiles" / f"{name}.json"
