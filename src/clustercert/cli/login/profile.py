"""Saved logins: one file of mode 0600 for each profile, in a folder of mode 0700.

A profile contains a token or an access key, never a password. The tokens of a login at an OIDC issuer are in a
separate file: see `token_storage`.
"""

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.login import token_storage
from clustercert.cli.login.token_storage import SavedTokens
from clustercert.cli.options import (
    CommandError,
    NoHomeFolder,
    NotLoggedIn,
    UnknownName,
    UsageError,
    did_you_mean,
    home_folder,
)
from clustercert.cli.terminal import notices
from clustercert.model.identity import qualified_name
from clustercert.model.ids import is_id
from clustercert.model.times import rfc3339
from clustercert.secure_file import make_private_folder, write_private

if TYPE_CHECKING:
    from clustercert.client import Client
    from clustercert.client.administration import AdministrationClient
    from clustercert.client.connection import Auth
    from clustercert.client.oidc.issuer import LoginIssuer
    from clustercert.model import JsonObject

DEFAULT_PROFILE = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class OidcLogin:
    """The data that is needed to renew a login with a token of an OIDC issuer.

    Attributes:
        name: the issuer's name in the service; empty for a login with a token from another program.
        subject: the user's id at the issuer.
        issuer: the service's description of the issuer; `None` for a login with a token from another program.
        keyring: whether the refresh token is kept in the system's keyring.
        token_file: file in which another program puts new tokens.
    """

    name: str
    subject: str
    issuer: "JsonObject | None" = None
    keyring: bool = False
    token_file: str | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """A saved login at a service.

    Attributes:
        url: the service's base URL.
        user: the user name, for messages; the access key if the service does not name the owner of the access key;
            empty if no login at this address has succeeded yet.
        domain: the user's domain, by name; `None` if the service does not return it.
        project_id, project_name, project_domain: the project for requests that do not search all projects; `None` if
            the user (an operator, for example) has no role in any project.
        chosen_project: whether the user chose the project. If so, clusters are looked up in this project first.
        ca_pem: the CAs to trust instead of this machine's CAs.
        token, expires_at: set only after a login with a password, or at an OIDC issuer.
        access_key, secret_key: set only after a login with an access key. A logout deletes only the secret key.
        name: the name under which the login is saved, for messages; `None` if the login is not loaded from a profile.
    """

    url: str
    user: str
    project_id: str | None
    project_name: str | None
    ca_pem: str | None = None
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    domain: str | None = None
    project_domain: str | None = None
    chosen_project: bool = True
    oidc: OidcLogin | None = None
    refresh_token: str | None = field(default=None, repr=False)
    in_keyring: bool = False
    name: str | None = field(default=None, compare=False)

    @property
    def shown_user(self) -> str:
        """The user as DOMAIN/NAME, if the domain is known."""
        return qualified_name(self.user, self.domain or "")

    @property
    def is_logged_in(self) -> bool:
        """Whether the profile has a token, a secret key or a refresh token. The token may have expired."""
        return self.token is not None or self.secret_key is not None or self.is_renewable

    @property
    def is_renewable(self) -> bool:
        """Whether the token can be renewed without the user."""
        if self.oidc is None:
            return False
        from_file = self.token is not None and self.oidc.token_file is not None
        return from_file or self.refresh_token is not None or self.in_keyring

    @property
    def ends_at(self) -> datetime | None:
        """When the login ends; `None` if the login renews itself, or does not end."""
        return None if self.is_renewable else self.expires_at

    @property
    def method(self) -> str:
        """A text that says how the user logged in."""
        if self.oidc is not None:
            return f"OIDC issuer {self.oidc.name}" if self.oidc.name else "OIDC token"
        return "access key" if self.access_key else "token"

    def login_command(self, name: str) -> str:
        """Return the command with which the user of this login logs in to the profile with the given name."""
        user = (
            f" --user {shlex.quote(self.shown_user)}" if self.oidc is None and self.access_key is None else ""
        )
        return f"clustercert login {self.url} --profile {name}{user}"

    def summary(self, name: str | None) -> dict[str, object]:
        """Return the facts about a saved login that `login` and `status` print. Contains no secrets."""
        by_user = "not needed" if self.ends_at is None else "with `clustercert login`"
        if name is None:
            by_user = "none, because the login is in environment variables"
        return {
            "service": self.url,
            "user": self.user,
            "profile": name,
            "method": self.method,
            "expires_at": self.ends_at,
            "renewal": "automatic" if self.is_renewable else by_user,
            "user_domain": self.domain,
            "project": self.project_name if self.chosen_project else None,
            "project_domain": self.project_domain if self.chosen_project else None,
        }

    @property
    def _has_token_of_service(self) -> bool:
        """Whether the service itself issued the token, which can then be exchanged for a token for each project."""
        return self.secret_key is None and self.oidc is None

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    @property
    def scope(self) -> str:
        """A text for messages that names the projects in which clusters are looked up."""
        if not self.chosen_project:
            return "all your projects"
        return f"the project {qualified_name(self.project_name or '', self.project_domain or '')}"

    def client(self) -> "Client":
        """Create an API client with this login, for all projects. Raises NotLoggedIn if the login has expired."""
        from clustercert.client import Client
        from clustercert.client.auth import ProjectTokenAuth

        auth, token = self._auth(), self.token or ""
        client = Client(self.url, auth, ca_pem=self.ca_pem)
        client.recommend = partial(notices.recommend_version, self.url)
        if self._has_token_of_service:
            client.auth = ProjectTokenAuth(token, self.project_id, lambda to: client.rescope(token, to).token)
        return client

    def administration_client(self) -> "AdministrationClient":
        """Create a client of the administration API with this login, for all projects.

        Raises NotLoggedIn if the login has expired.
        """
        from clustercert.client.administration import AdministrationClient
        from clustercert.client.auth import ProjectTokenAuth
        from clustercert.client.connection import ApiError

        auth, token = self._auth(), self.token or ""
        client = AdministrationClient(self.url, auth, ca_pem=self.ca_pem)
        client.recommend = partial(notices.recommend_version, self.url)

        def rescope(project_id: str) -> str:
            # Don't exchange the token of an operator, who needs no role in the project. A path with a project's name
            # instead of its id is only for operators.
            if client.is_operator or not is_id(project_id):
                return token
            with contextlib.suppress(ApiError), self.client() as other:
                return other.rescope(token, project_id).token
            # The user has no role in the project. Send the request anyway: the response explains why it fails.
            return token

        if self._has_token_of_service:
            client.auth = ProjectTokenAuth(token, self.project_id, rescope)
        return client

    def _auth(self) -> "Auth":
        if self.access_key is not None and self.secret_key is not None:
            from clustercert.client.auth import AccessKeyAuth

            return AccessKeyAuth(self.access_key, self.secret_key)
        if self.has_expired and self.expires_at is not None:
            raise NotLoggedIn(
                f"The login at {self.url} expired at {rfc3339(self.expires_at)}. Run {self._new_login} again."
            )
        from clustercert.client.auth import TokenAuth

        return TokenAuth(self.token or "")

    @property
    def _new_login(self) -> str:
        """The command with which the user logs in to this profile again, in backticks."""
        return f"`clustercert login{option(self.name) if self.name is not None else ''}`"

    @contextlib.contextmanager
    def explain_rejection(self) -> Iterator[None]:
        """Raise NotLoggedIn with advice if the service rejects the token."""
        if self.token is None:
            yield
            return
        explained = (
            "An operator sees the reason with `clustercert identity explain`, or in the log by the request id. "
            if self.oidc is not None
            else ""
        )
        jwt = self.token if self.oidc is not None else None
        with advice_if_refused(
            f"The login at {self.url} is no longer valid. {explained}Run {self._new_login} again, or ask an operator "
            "whether your account is still enabled.",
            jwt,
        ):
            yield


@contextlib.contextmanager
def advice_if_refused(advice: str, jwt: str | None = None) -> Iterator[None]:
    """Raise NotLoggedIn with the given advice if the service refuses the credentials in the `with` block.

    The error also states the audience and the expiry of `jwt`, which is the refused token of an OIDC issuer.
    """
    from clustercert.client.connection import ApiError

    try:
        yield
    except ApiError as error:
        if error.http_status != HTTPStatus.UNAUTHORIZED:
            raise
        described = ""
        if jwt is not None:
            from clustercert.client.oidc.tokens import describe_refused

            with contextlib.suppress(ValueError):
                described = f"{describe_refused(jwt)} "
        raise NotLoggedIn(f"{error.message} {described}{advice}") from error


def current(environment: Mapping[str, str]) -> str:
    """Return the name of the profile to use: the value of CLUSTERCERT_PROFILE, or else the profile chosen last."""
    if name := environment.get("CLUSTERCERT_PROFILE"):
        return name
    try:
        name = _current_file(environment).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return DEFAULT_PROFILE
    return name if _NAME.fullmatch(name) else DEFAULT_PROFILE


def use(name: str, environment: Mapping[str, str]) -> None:
    """Make a profile the current profile.

    Raises UnknownName if the profile does not exist, or CommandError if the choice can't be saved.
    """
    if not path_of(name, environment).exists():
        raise UnknownName(f"There is no profile {name}.{did_you_mean(name, names(environment))}")
    try:
        write_private(_current_file(environment), f"{name}\n")
    except OSError as error:
        raise CommandError(f"The current profile can't be changed: {error.strerror}.") from error


def names(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the saved profiles, sorted."""
    files = path_of(DEFAULT_PROFILE, environment).parent.glob("*.json")
    return sorted(path.stem for path in files if _NAME.fullmatch(path.stem))


def saved_profiles(environment: Mapping[str, str]) -> dict[str, Profile]:
    """Return all profiles by name, sorted, even after a logout.

    Leaves out damaged profiles: the commands that use such a profile report the damage.
    """
    found = {}
    for name in names(environment):
        with contextlib.suppress(CommandError):
            if (saved := remembered(name, environment)) is not None:
                found[name] = saved
    return found


def load(name: str, environment: Mapping[str, str]) -> Profile:
    """Load the login of a profile. Raises NotLoggedIn, or CommandError if the profile is malformed."""
    found = remembered(name, environment)
    if found is None:
        saved = names(environment)
        if name == DEFAULT_PROFILE or not saved:
            raise NotLoggedIn(
                f"You are not logged in. Run `clustercert login URL{option(name)}`. {token_storage.JOBS}"
            )
        raise NotLoggedIn(
            f"There is no profile {name}.{did_you_mean(name, saved)} Run `clustercert login URL{option(name)}`, or use "
            f"one of these profiles: {', '.join(saved)}."
        )
    if not found.is_logged_in:
        raise NotLoggedIn(f"You are not logged in at {found.url}. {log_in_again(name)}")
    return found


def remembered(name: str, environment: Mapping[str, str]) -> Profile | None:
    """Load a profile, even after a logout. Returns `None` if the profile does not exist. Raises CommandError."""
    path = path_of(name, environment)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["expires_at"] is not None:
            data["expires_at"] = datetime.fromisoformat(data["expires_at"])
        if data.get("oidc") is not None:
            data |= asdict(token_storage.read(tokens_path(name, environment)))
            data["oidc"] = OidcLogin(**data["oidc"])
        return Profile(**data, name=name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandError(f"The profile {path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CommandError(
            f"The profile {path} is damaged. Delete it, and run `clustercert login URL{option(name)}`."
        ) from error


def save(name: str, profile: Profile, environment: Mapping[str, str]) -> Path:
    """Write or replace a profile and its tokens, and return the profile's file. Raises CommandError."""
    path = path_of(name, environment)
    separate = profile.oidc is not None
    saved = SavedTokens(profile.token, profile.expires_at, profile.refresh_token, profile.in_keyring)
    token_storage.save(tokens_path(name, environment), saved if separate else SavedTokens())
    kept = without_login(profile) if separate else profile
    data = asdict(kept)
    # The file's name is the profile's name.
    del data["name"]
    data["expires_at"] = kept.expires_at.isoformat() if kept.expires_at else None
    try:
        for folder in (path.parent.parent, path.parent):
            make_private_folder(folder)
        write_private(path, json.dumps(data, indent=2) + "\n")
    except OSError as error:
        raise token_storage.cannot_save(path, error) from error
    return path


def delete(name: str, environment: Mapping[str, str]) -> None:
    """Delete a profile and its tokens. Raises CommandError if the profile is missing or can't be deleted."""
    path = path_of(name, environment)
    token_storage.save(tokens_path(name, environment), SavedTokens())
    try:
        path.unlink()
    except OSError as error:
        raise CommandError(f"The profile {path} can't be deleted: {error.strerror}.") from error


def refresh_token(name: str, found: Profile, environment: Mapping[str, str]) -> str | None:
    """Return the refresh token, from the profile or the keyring. Raises CommandError."""
    if not found.in_keyring:
        return found.refresh_token
    return token_storage.get(str(tokens_path(name, environment)))


def saved_issuer(name: str, oidc: OidcLogin) -> "LoginIssuer":
    """Return the OIDC issuer that a profile contains. Raises CommandError if the profile is damaged."""
    from clustercert.client.oidc.issuer import LoginIssuer

    try:
        return LoginIssuer.parse(oidc.issuer or {})
    except (LookupError, TypeError, ValueError):
        raise CommandError(f"The profile {name} is damaged. Run `clustercert login URL` again.") from None


def option(name: str) -> str:
    """Return the option `--profile NAME` with a leading space.

    Returns an empty string for the default profile, unless commands without the option would use another profile.
    """
    return "" if name == DEFAULT_PROFILE == current(os.environ) else f" --profile {name}"


def log_in_again(name: str) -> str:
    """Return a sentence that tells the user how to log in again.

    The command in the sentence reads the service's address and the user name from the profile.
    """
    return f"Run `clustercert login{option(name)}`."


def without_login(profile: Profile) -> Profile:
    """Return the profile with only the data for the next login: the address, the CA and the user."""
    return replace(
        profile, token=None, expires_at=None, secret_key=None, refresh_token=None, in_keyring=False
    )


def path_of(name: str, environment: Mapping[str, str]) -> Path:
    """Return the path of a profile's file. Raises UsageError if the profile's name is not valid."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid profile name. Use 1 to 64 letters, digits, dots, hyphens or underscores."
        )
    return _folder(environment) / "profiles" / f"{name}.json"


def tokens_path(name: str, environment: Mapping[str, str]) -> Path:
    """Return the path of the file with the tokens of an OIDC login. Raises CommandError if the name is not valid."""
    return path_of(name, environment).parent.parent / "tokens" / f"{name}.json"


def known_services_path(environment: Mapping[str, str]) -> Path:
    """Return the path of the file that lists the services that may receive tokens of OIDC issuers."""
    return _folder(environment) / "known-services.json"


def _current_file(environment: Mapping[str, str]) -> Path:
    return _folder(environment) / "current-profile"


def _folder(environment: Mapping[str, str]) -> Path:
    # Ignore a relative path in XDG_CONFIG_HOME, as the XDG Base Directory Specification requires.
    folder = Path(environment.get("XDG_CONFIG_HOME") or "")
    if not folder.is_absolute():
        try:
            folder = home_folder("XDG_CONFIG_HOME") / ".config"
        except NoHomeFolder as error:
            raise NoHomeFolder(f"{error.message} {token_storage.JOBS}") from None
    return folder / "clustercert"
