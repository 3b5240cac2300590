"""Renews an expired login with one browser window, however many commands need it at the same time."""

import os
import sys
import time

from clustercert.cli.file_lock import Lock, LockTimeout, locked
from clustercert.cli.login import oidc_login, profile, token_storage
from clustercert.cli.login.profile import OidcLogin, Profile
from clustercert.cli.login.renewal import LoginNeeded, keep, login_needed, renewed, save, with_tokens
from clustercert.cli.options import INTERRUPTED, NOT_LOGGED_IN, CommandError, NotLoggedIn, exit_code
from clustercert.cli.output import print_note
from clustercert.model.errors import ClustercertError

_POLL_SECONDS = 1.0
# How long to wait for the lock: longer than its holder waits for the browser.
_WAIT_SECONDS = 400.0
# After a login that nobody completed, open no other window for this long.
_PAUSE_SECONDS = 600.0


class WindowFailed(CommandError):
    """The login in the browser failed, here or in a parallel command.

    Attributes:
        exit_code: of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def ready(name: str, found: Profile) -> Profile:
    """Return the login with a valid token: renewed without the user, or else in a browser window.

    Raises LoginNeeded, ClientError or CommandError.
    """
    try:
        return renewed(name, found)
    except LoginNeeded:
        if not may_open_window(found):
            raise
    return log_in_by_window(name)


def may_open_window(found: Profile) -> bool:
    """Whether somebody is there to log in: at a terminal or with kubectl, on a machine with a browser."""
    if found.oidc is None or found.oidc.issuer is None or oidc_login.is_ci(os.environ):
        return False
    is_used = "KUBERNETES_EXEC_INFO" in os.environ or sys.stdin.isatty() or sys.stderr.isatty()
    return is_used and oidc_login.has_browser(os.environ)


def log_in_by_window(name: str) -> Profile:
    """Open a window, or wait for the one that a parallel command opened. Raises NotLoggedIn or WindowFailed."""
    path = f"{profile.tokens_path(name, os.environ)}.window"
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
    raise NotLoggedIn(f"Another clustercert holds {path}.lock. End it, and try again.")


def _holding_lock(name: str, lock: Lock, began: float) -> Profile:
    found = profile.load(name, os.environ)
    oidc = found.oidc
    if oidc is None or (found.token is not None and not found.has_expired):
        return found
    if not lock.is_held:
        raise login_needed(name, found)
    _raise_recent_failure(name, lock, began)
    print_note(f"Your login at {found.url} expired.")
    try:
        return _log_in(name, found, oidc)
    except KeyboardInterrupt:
        lock.record_failure(INTERRUPTED, f"The login was interrupted. {profile.log_in_again(name)}")
        raise
    except ClustercertError as error:
        remedy = "" if "`clustercert login" in error.message else f" {profile.log_in_again(name)}"
        failed = WindowFailed(f"{error.message}{remedy}", exit_code(error))
        lock.record_failure(failed.exit_code, failed.message)
        raise failed from error


def _raise_recent_failure(name: str, lock: Lock, began: float) -> None:
    """Raise WindowFailed if a window failed since this command began, or recently for lack of a user."""
    if (failed := lock.failure_since(began)) is not None:
        raise WindowFailed(failed[1], failed[0])
    try:
        renewed_at = profile.tokens_path(name, os.environ).stat().st_mtime
    except OSError:
        renewed_at = 0.0
    failed = lock.failure_since(max(time.time() - _PAUSE_SECONDS, renewed_at))
    if failed is not None and failed[0] in (NOT_LOGGED_IN, INTERRUPTED):
        raise WindowFailed(failed[1], NOT_LOGGED_IN)


def _log_in(name: str, found: Profile, oidc: OidcLogin) -> Profile:
    from clustercert.cli.login import oidc_login, trust

    issuer, offer = oidc_login.current_issuer(name, found, oidc)
    trust.require_known(name, found.url, issuer)
    tokens = oidc_login.by_browser(issuer, open_window=True)
    if tokens.subject != oidc.subject:
        raise NotLoggedIn(
            f"Another user logged in with the browser. To change the user of this login, run "
            f"`clustercert login{profile.option(name)}`."
        )
    trust.remember(found.url, issuer, offer.urls)
    if issuer.body() == oidc.issuer:
        with token_storage.exclusive(profile.tokens_path(name, os.environ)):
            return with_tokens(found, keep(name, tokens, keyring=oidc.keyring))
    changed = OidcLogin(oidc.name, tokens.subject, issuer.body(), oidc.keyring)
    saved = oidc_login.profile_of(found.url, found.ca_pem, changed, tokens)
    save(name, saved)
    return saved
