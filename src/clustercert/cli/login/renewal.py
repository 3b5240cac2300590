"""Renews logins at OIDC issuers without the user: by the refresh token, or from a file with a newer token."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.login import profile, token_storage
from clustercert.cli.login.profile import OidcLogin, Profile
from clustercert.cli.login.token_storage import SavedTokens
from clustercert.cli.options import CommandError, NotLoggedIn

if TYPE_CHECKING:
    from clustercert.client.oidc.issuer import LoginIssuer
    from clustercert.client.oidc.tokens import Tokens

_MAX_TOKEN_CHARACTERS = 64 * 1024


class LoginNeeded(NotLoggedIn):
    """The login expired, and only the user can renew it."""


def renewed(name: str, found: Profile, *, refused: str | None = None) -> Profile:
    """Return a login at an OIDC issuer with a valid token. Logins of other kinds are returned as they are.

    Raises LoginNeeded, ClientError or CommandError.

    Args:
        refused: a token that the service refused. It is renewed even if it has not expired.
    """
    if found.oidc is None or _is_usable(found, refused):
        return found
    if not found.is_renewable:
        raise login_needed(name, found)
    path = profile.tokens_path(name, os.environ)
    with token_storage.exclusive(path):
        # Another process may have renewed the login, or logged out.
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


def keep(name: str, tokens: "Tokens", *, keyring: bool) -> SavedTokens:
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
    """Keep a refresh token, if there is one, in the keyring. Returns whether it is there. Raises CommandError."""
    if refresh_token is None:
        return False
    from clustercert.cli.login import token_storage

    token_storage.put(str(path), refresh_token)
    return True


def refresh_token_of(name: str, found: Profile) -> str | None:
    """Return the refresh token, from the profile or the keyring. Raises CommandError."""
    if not found.in_keyring:
        return found.refresh_token
    from clustercert.cli.login import token_storage

    return token_storage.get(str(profile.tokens_path(name, os.environ)))


def saved_issuer(name: str, oidc: OidcLogin) -> "LoginIssuer":
    """Return the issuer of a profile. Raises CommandError if the profile is damaged."""
    from clustercert.client.oidc.issuer import LoginIssuer

    try:
        return LoginIssuer.parse(oidc.issuer or {})
    except (LookupError, TypeError, ValueError):
        raise CommandError(f"The profile {name} is damaged. Run `clustercert login URL` again.") from None


def _refreshed(name: str, found: Profile, oidc: OidcLogin, path: Path) -> SavedTokens:
    from clustercert.client.oidc.issuer import OAuthError
    from clustercert.client.oidc.tokens import IssuerClient, RefreshRefused

    refresh_token = refresh_token_of(name, found)
    if refresh_token is None or oidc.issuer is None:
        raise login_needed(name, found)
    issuer = saved_issuer(name, oidc)
    try:
        with IssuerClient(issuer) as client:
            tokens = client.refresh(refresh_token, oidc.subject)
    except RefreshRefused as error:
        token_storage.drop_refresh_token(path)
        raise login_needed(name, found) from error
    except OAuthError as error:
        # The client at the issuer may have changed. A new login asks the service for it.
        raise LoginNeeded(f"{error.message} {profile.log_in_again(name)}") from error
    return keep(name, tokens, keyring=found.in_keyring)


def _from_file(name: str, found: Profile, file: Path) -> SavedTokens:
    tokens = tokens_from(read_token(file))
    if tokens.expires_at <= datetime.now(UTC):
        raise LoginNeeded(f"The token in {file} expired. {profile.log_in_again(name)}")
    if found.oidc is not None and tokens.subject != found.oidc.subject:
        raise LoginNeeded(f"The token in {file} is of another user. {profile.log_in_again(name)}")
    return keep(name, tokens, keyring=False)


def read_token(file: Path) -> str:
    """Read the first line of a file with a token. Raises CommandError."""
    from clustercert.cli.prompts import read_secret

    return read_secret("Token", file, "add --token-file FILE", longest=_MAX_TOKEN_CHARACTERS).strip()


def tokens_from(text: str) -> "Tokens":
    """Return the tokens with a JWT that another program got. Raises CommandError."""
    from clustercert.client.oidc.tokens import tokens_of

    try:
        return tokens_of(text)
    except ValueError as error:
        raise CommandError(
            f"This is not a token of an OIDC issuer: {error}. Give a JWT of at most 16 KiB."
        ) from error
