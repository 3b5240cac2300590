"""Logs in at an OIDC issuer, in a browser or with a device code, and creates the profile."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from clustercert.cli.login import profile, token_storage
from clustercert.cli.login.password_login import choose_project
from clustercert.cli.login.profile import OidcLogin, Profile, advice_if_refused
from clustercert.cli.terminal.output import print_note

if TYPE_CHECKING:
    from clustercert.client import Client, ProjectRef
    from clustercert.client.oidc.issuer import LoginIssuer, LoginOffer
    from clustercert.client.oidc.tokens import DeviceCode, OidcTokens


# How long to wait until the service has the issuer's new key: the service fetches keys at most every 30 seconds.
_LONGEST_WAIT_SECONDS, _RETRY_SECONDS = 40.0, 5.0
# If the variable CI has one of these values, this is not a CI job.
_OFF = ("", "0", "false", "no")


def is_ci(environment: Mapping[str, str]) -> bool:
    """Whether this is a CI job, according to the variable CI. In a CI job, nobody is at the terminal."""
    return environment.get("CI", "").lower() not in _OFF


def has_browser(environment: Mapping[str, str]) -> bool:
    """Whether this machine has a browser that opens a window, not only a text browser in a terminal."""
    has_display = sys.platform in ("darwin", "win32") or any(
        environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    if not has_display:
        return False
    import webbrowser

    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def open_in_browser(url: str) -> None:
    """Open an address in a browser, without waiting. Other users may see the address in this machine's process list."""
    import subprocess

    # Detach the browser: it may write to standard output, which kubectl reads, or stay in the foreground.
    subprocess.Popen(  # noqa: S603 - no shell, and only the address varies
        [sys.executable, "-I", "-m", "webbrowser", url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def by_browser(
    issuer: "LoginIssuer", url: str, *, open_window: bool, reauthenticate: bool = False
) -> "OidcTokens":
    """Log in with a browser on this machine. Raises ClientError.

    Args:
        url: the service's address.
        reauthenticate: whether the issuer must authenticate the user again, even during a session at the issuer.
    """
    from clustercert.client.oidc.browser_login import log_in_by_browser
    from clustercert.client.oidc.tokens import IssuerClient

    def show(address: str) -> None:
        if open_window:
            print_note(
                f"Log in at {issuer.url} in the browser window. If no window opens, open this address once, in a "
                f"browser on this machine:\n  {address}"
            )
            open_in_browser(address)
        else:
            print_note(
                f"Log in at {issuer.url}: open this address once, in a browser on this machine.\n  {address}"
            )
            print_note(
                f"On a machine without a browser, press Ctrl-C, and run `clustercert login {url} --device`."
            )

    if reauthenticate:
        # Source: OpenID Connect Core 1.0, section 3.1.2.1.
        parameters = {**issuer.client.parameters, "prompt": "login"}
        issuer = replace(issuer, client=replace(issuer.client, parameters=parameters))
    with IssuerClient(issuer) as client:
        return log_in_by_browser(client, show, url)


def by_device(issuer: "LoginIssuer") -> "OidcTokens":
    """Log in with a code that the user enters in any browser. Raises ClientError."""
    from clustercert.client.oidc.tokens import IssuerClient, log_in_by_device_code

    def show(device: "DeviceCode") -> None:
        print_note(f"Open this address in any browser, and enter the code {device.user_code}\n  {device.uri}")
        if device.complete_uri is not None:
            print_note(f"Or open this address, and compare the code.\n  {device.complete_uri}")

    with IssuerClient(issuer) as client:
        return log_in_by_device_code(client, show)


def profile_of(
    url: str, ca_pem: str | None, oidc: OidcLogin, tokens: "OidcTokens", project: str | None = None
) -> Profile:
    """Create the profile of an OIDC login, if the service accepts the token. Raises ClientError or CommandError."""
    from clustercert.client import Client
    from clustercert.client.auth import TokenAuth

    named = f" of the issuer {oidc.name}" if oidc.name else ""
    ended = (
        "If you ended all your logins, wait until the time that `logout --everywhere` printed, and add "
        "--reauthenticate. "
        if oidc.name
        else ""
    )
    advice = (
        f"{url} does not accept the token{named}. {ended}An operator sees the reason with `clustercert identity "
        "explain`, or in the log by the request id."
    )
    with (
        Client(url, TokenAuth(tokens.bearer), ca_pem=ca_pem) as client,
        advice_if_refused(advice, tokens.bearer),
    ):
        scope, only = choose_project(_projects(client), project)
        caller = client.caller()
    return Profile(
        url=url,
        user=caller.name,
        domain=caller.domain,
        project_id=scope.id if scope is not None else None,
        project_name=scope.name if scope is not None else None,
        project_domain=scope.domain if scope is not None else None,
        ca_pem=ca_pem,
        token=tokens.bearer,
        expires_at=tokens.expires_at,
        refresh_token=tokens.refresh,
        chosen_project=project is not None or only,
        oidc=oidc,
    )


def _projects(client: "Client") -> "tuple[ProjectRef, ...]":
    """List the user's projects. Waits while the service is unavailable. Raises ClientError.

    The service may have to wait before it fetches the issuer's new keys. Without this wait, the user would have to log
    in again.
    """
    from clustercert.client.connection import ApiError

    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    while True:
        try:
            return client.projects()
        except ApiError as error:
            if error.http_status != 503 or time.monotonic() > deadline:  # noqa: PLR2004 - unavailable
                raise
            print_note(f"{error.message} Trying again.")
        time.sleep(_RETRY_SECONDS)


def end_session(name: str, found: Profile) -> None:
    """Revoke the refresh token at the issuer, and delete it from the keyring. Raises ClientError or CommandError."""
    from clustercert.client.oidc.tokens import IssuerClient

    refresh_token = profile.refresh_token(name, found, os.environ)
    if found.in_keyring:
        token_storage.delete(str(profile.tokens_path(name, os.environ)))
    if refresh_token is None or found.oidc is None or found.oidc.issuer is None:
        return
    with IssuerClient(profile.saved_issuer(name, found.oidc)) as client:
        if not client.revoke(refresh_token):
            print_note(
                f"The issuer {client.issuer.url} can't revoke logins. The login stays valid there until it expires."
            )


def current_issuer(name: str, found: Profile, oidc: OidcLogin) -> "tuple[LoginIssuer, LoginOffer]":
    """Return the issuer of a profile, and all issuers that the service offers now.

    If the service no longer offers the profile's issuer, returns the issuer as saved in the profile. Raises ClientError
    or CommandError.
    """
    from clustercert.client import Client
    from clustercert.client.oidc.issuer import login_offer

    saved = profile.saved_issuer(name, oidc)
    with Client(found.url, ca_pem=found.ca_pem) as service:
        offer = login_offer(service)
    return with_saved_ca(offer.by_name.get(oidc.name, saved), saved), offer


def with_saved_ca(issuer: "LoginIssuer", saved: "LoginIssuer") -> "LoginIssuer":
    """Return the issuer. If the service names no CA for the issuer, adds the CA that is saved in the last login."""
    keeps = issuer.ca_pem is None and issuer.url == saved.url
    return replace(issuer, ca_pem=saved.ca_pem) if keeps else issuer
