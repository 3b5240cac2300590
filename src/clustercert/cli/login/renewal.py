"""Renews logins at OIDC issuers: with the refresh token, with a newer token from a file, or in a browser window."""

import os
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.credential import cache
from clustercert.cli.file_lock import Lock, LockTimeout, forget_failure, locked
from clustercert.cli.login import oidc_login, profile, token_storage, trust
from clustercert.cli.login.profile import OidcLogin, Profile
from clustercert.cli.login.token_storage import SavedTokens
from clustercert.cli.options import INTERRUPTED, NOT_LOGGED_IN, CommandError, NotLoggedIn, exit_code
from clustercert.cli.terminal.output import print_note
from clustercert.model.errors import ClustercertError

if TYPE_CHECKING:
    from clustercert.client.oidc.tokens import OidcTokens

_MAX_TOKEN_CHARACTERS = 64 * 1024
_POLL_SECONDS = 1.0
# How long to wait for the lock. The command that holds the lock waits a shorter time for the login in the browser.
_WAIT_SECONDS = 400.0
# After a login that nobody completed in the browser, open no further browser window for this long.
_PAUSE_SECONDS = 600.0


class LoginNeeded(NotLoggedIn):
    """The login expired, and only the user can renew it."""


def renew(name: str, found: Profile, *, refused: str | None = None) -> Profile:
    """Renew a login at an OIDC issuer if needed, and return the login. Returns other kinds of login unchanged.

    Raises LoginNeeded, ClientError or CommandError.

    Args:
        refused: a token that the service refused. A login with this token is renewed even if the token has not expired.
    """
    if found.oidc is None or _is_usable(found, refused):
        return found
    if not found.is_renewable:
        raise login_needed(name, found)
    path = profile.tokens_path(name, os.environ)
    with token_storage.exclusive(path):
        # Load the profile again, because another process may have renewed the login, or logged out.
        current = profile.load(name, os.environ)
        if current.oidc is None or _is_usable(current, refused):
            return current
        if current.oidc.token_file is not None:
            return with_tokens(current, _from_file(name, current, Path(current.oidc.token_file)))
        return with_tokens(current, _refreshed(name, current, current.oidc, path))


def _is_usable(found: Profile, refused: str | None) -> bool:
    return found.token not in (None, refused) and not found.has_expired


def login_needed(name: str, found: Profile) -> LoginNeeded:
    return LoginNeeded(f"Your login at {found.url} expired. {profile.log_in_again(name)}")


def with_tokens(found: Profile, saved: SavedTokens) -> Profile:
    return replace(
        found,
        token=saved.token,
        expires_at=saved.expires_at,
        refresh_token=saved.refresh_token,
        in_keyring=saved.in_keyring,
    )


def save_tokens(name: str, tokens: "OidcTokens", *, keyring: bool) -> SavedTokens:
    """Save the tokens of a profile. Raises CommandError."""
    path = profile.tokens_path(name, os.environ)
    in_keyring = keyring and _put_in_keyring(path, tokens.refresh)
    refresh_token = None if in_keyring else tokens.refresh
    saved = SavedTokens(tokens.bearer, tokens.expires_at, refresh_token, in_keyring)
    token_storage.save(path, saved)
    return saved


def save(name: str, login: Profile) -> Path:
    """Save a new login, and return the profile's file. Raises CommandError."""
    if login.oidc is None:
        return profile.save(name, login, os.environ)
    path = profile.tokens_path(name, os.environ)
    with token_storage.exclusive(path):
        if login.oidc.keyring and _put_in_keyring(path, login.refresh_token):
            login = replace(login, refresh_token=None, in_keyring=True)
        return profile.save(name, login, os.environ)


def _put_in_keyring(path: Path, refresh_token: str | None) -> bool:
    """Save a refresh token in the keyring. Returns False if there is no token to save. Raises CommandError."""
    if refresh_token is None:
        return False
    token_storage.put(str(path), refresh_token)
    return True


def _refreshed(name: str, found: Profile, oidc: OidcLogin, path: Path) -> SavedTokens:
    from clustercert.client.oidc.issuer import OAuthError
    from clustercert.client.oidc.tokens import IssuerClient, RefreshRefused, check_clock

    refresh_token = profile.refresh_token(name, found, os.environ)
    if refresh_token is None or oidc.issuer is None:
        raise login_needed(name, found)
    issuer = profile.saved_issuer(name, oidc)
    try:
        with IssuerClient(issuer) as client:
            tokens = client.refresh(refresh_token, oidc.subject)
    except RefreshRefused as error:
        token_storage.drop_refresh_token(path)
        raise login_needed(name, found) from error
    except OAuthError as error:
        # The client id at the issuer may have changed. A new login asks the service for the current client id.
        raise LoginNeeded(f"{error.message} {profile.log_in_again(name)}") from error
    # Save the tokens before the check, because the issuer may have ended the old refresh token.
    saved = save_tokens(name, tokens, keyring=found.in_keyring)
    check_clock(issuer, tokens)
    return saved


def _from_file(name: str, found: Profile, file: Path) -> SavedTokens:
    tokens = parse_token(read_token(file))
    if tokens.expires_at <= datetime.now(UTC):
        raise LoginNeeded(f"The token in {file} expired. {profile.log_in_again(name)}")
    if found.oidc is not None and tokens.subject != found.oidc.subject:
        raise LoginNeeded(f"The token in {file} belongs to another user. {profile.log_in_again(name)}")
    return save_tokens(name, tokens, keyring=False)


def read_token(file: Path) -> str:
    """Read a token from the first line of a file. Raises CommandError."""
    from clustercert.cli.terminal.prompts import read_secret

    return read_secret("Token", file, "add --token-file FILE", longest=_MAX_TOKEN_CHARACTERS).strip()


def parse_token(text: str) -> "OidcTokens":
    """Parse a JWT that another program obtained. Raises CommandError."""
    from clustercert.client.oidc.tokens import tokens_of

    try:
        return tokens_of(text)
    except ValueError as error:
        raise CommandError(
            f"This is not a token of an OIDC issuer: {error}. Give a JWT of at most 16 KiB."
        ) from error


class WindowFailed(CommandError):
    """The login in the browser failed, here or in a parallel command.

    Attributes:
        exit_code: the exit code of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def renew_or_log_in(name: str, found: Profile) -> Profile:
    """Return the login with a valid token. Renews the login without the user if possible, or else in a browser window.

    Raises LoginNeeded, ClientError or CommandError.
    """
    try:
        return renew(name, found)
    except LoginNeeded:
        if not may_open_window(found):
            raise
    return log_in_by_window(name)


def may_open_window(found: Profile) -> bool:
    """Whether a user can log in: at a terminal or through kubectl, on a machine with a browser."""
    if found.oidc is None or found.oidc.issuer is None or oidc_login.is_ci(os.environ):
        return False
    is_used = "KUBERNETES_EXEC_INFO" in os.environ or sys.stdin.isatty() or sys.stderr.isatty()
    return is_used and oidc_login.has_browser(os.environ)


def log_in_by_window(name: str) -> Profile:
    """Log in with a browser window, or wait for a parallel command to do so. Raises NotLoggedIn or WindowFailed."""
    path = _window_path(name)
    began, deadline = time.time(), time.monotonic() + _WAIT_SECONDS
    waiting = False
    while time.monotonic() < deadline:
        try:
            with locked(path, _POLL_SECONDS) as lock:
                return _holding_lock(name, lock, began)
        except LockTimeout:
            found = profile.load(name, os.environ)
            if found.token is not None and not found.has_expired:
                return found
            if not waiting:
                print_note("Waiting for the login in the browser window that another command opened.")
                waiting = True
    raise NotLoggedIn(f"Another clustercert process holds {path}.lock. Stop that process, and try again.")


def _holding_lock(name: str, lock: Lock, began: float) -> Profile:
    found = profile.load(name, os.environ)
    oidc = found.oidc
    if oidc is None or (found.token is not None and not found.has_expired):
        return found
    if not lock.is_held:
        raise login_needed(name, found)
    _raise_recent_failure(lock, began)
    print_note(f"Your login at {found.url} expired.")
    try:
        renewed = _log_in(name, found, oidc)
    except KeyboardInterrupt:
        lock.record_failure(INTERRUPTED, f"The login was interrupted. {profile.log_in_again(name)}")
        raise
    except ClustercertError as error:
        remedy = "" if "`clustercert login" in error.message else f" {profile.log_in_again(name)}"
        failed = WindowFailed(f"{error.message}{remedy}", exit_code(error))
        lock.record_failure(failed.exit_code, failed.message)
        raise failed from error
    lock.forget_failure()
    return renewed


def forget_failures(name: str) -> None:
    """Delete the failures with a profile that the exec plugin and the login in a browser window have saved."""
    folder = cache.folder()
    locks = Path(folder).glob(f"{name},*.lock") if folder is not None else ()
    for path in (*locks, Path(f"{_window_path(name)}.lock")):
        forget_failure(str(path))


def _window_path(name: str) -> str:
    """Return the path of the file whose lock a command holds during the login in a browser window."""
    return f"{profile.tokens_path(name, os.environ)}.window"


def _raise_recent_failure(lock: Lock, began: float) -> None:
    """Raise WindowFailed if a login failed since this command began, or if no user completed a recent login."""
    if (failed := lock.failure_since(began)) is not None:
        raise WindowFailed(failed[1], failed[0])
    failed = lock.failure_since(time.time() - _PAUSE_SECONDS)
    if failed is not None and failed[0] in (NOT_LOGGED_IN, INTERRUPTED):
        raise WindowFailed(failed[1], NOT_LOGGED_IN)


def _log_in(name: str, found: Profile, oidc: OidcLogin) -> Profile:
    issuer, offer = oidc_login.current_issuer(name, found, oidc)
    trust.require_known(name, found.url, issuer)
    tokens = oidc_login.by_browser(issuer, found.url, open_window=True)
    if tokens.subject != oidc.subject:
        raise NotLoggedIn(
            f"Another user logged in with the browser. To change the user of this login, run "
            f"`clustercert login{profile.option(name)}`."
        )
    trust.remember(found.url, issuer, offer.urls)
    if issuer.body() == oidc.issuer:
        with token_storage.exclusive(profile.tokens_path(name, os.environ)):
            return with_tokens(found, save_tokens(name, tokens, keyring=oidc.keyring))
    changed = OidcLogin(oidc.name, tokens.subject, issuer.body(), oidc.keyring)
    saved = oidc_login.profile_of(found.url, found.ca_pem, changed, tokens)
    save(name, saved)
    return saved
