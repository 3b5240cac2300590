"""The options of `clustercert login` for OIDC issuers, and the choice between an issuer and a password."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.login import oidc_login, profile, token_storage, trust
from clustercert.cli.login.profile import OidcLogin, Profile
from clustercert.cli.options import (
    INTERRUPTED,
    CommandError,
    InvalidOption,
    UnknownName,
    did_you_mean,
    refuse_empty,
)
from clustercert.cli.terminal.output import print_note
from clustercert.cli.terminal.prompts import prompt_text

if TYPE_CHECKING:
    from clustercert.client.oidc.issuer import LoginIssuer
    from clustercert.client.oidc.tokens import OidcTokens

_PASSWORD = "password"


@dataclass(frozen=True, slots=True)
class IssuerOptions:
    """The options for a login at an OIDC issuer, or with an issuer's token."""

    issuer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="OIDC issuer at which to log in. [default: the issuer of the last login, "
            "or the only issuer]",
        ),
    ] = None
    device: Annotated[
        bool, typer.Option("--device", help="Log in with a code, in a browser on any machine.")
    ] = False
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address for the browser instead of opening it.")
    ] = False
    reauthenticate: Annotated[
        bool,
        typer.Option(
            "--reauthenticate", help="Authenticate at the issuer again, even if you have a session there."
        ),
    ] = False
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Use a token (JWT) of an issuer from FILE, or from standard input (-).",
        ),
    ] = None
    issuer_ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CA of the issuer's certificate (PEM). [default: the CA that the service names]",
        ),
    ] = None
    allow_service: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send the issuer's token to the service at URL without asking, even the first time.",
        ),
    ] = None
    keyring: Annotated[
        bool,
        typer.Option(
            "--keyring", help="Keep the refresh token in the system's keyring. Needs the package keyring."
        ),
    ] = False

    def __post_init__(self) -> None:
        refuse_empty({"--issuer": self.issuer, "--allow-service": self.allow_service})
        if self.token_file is not None and self.is_given:
            raise InvalidOption("--token-file excludes the other options for issuers.")
        if self.device and (self.no_browser or self.reauthenticate):
            raise InvalidOption("--device excludes --no-browser and --reauthenticate.")

    @property
    def is_given(self) -> bool:
        """Whether any option for an interactive login at an issuer is given."""
        return bool(
            self.issuer
            or self.device
            or self.no_browser
            or self.reauthenticate
            or self.issuer_ca_file
            or self.keyring
            or self.allow_service
        )

    def log_in(
        self, url: str, project: str | None, ca_pem: str | None, last: Profile | None, *, by_password: bool
    ) -> Profile | None:
        """Log in at an issuer, or with a token. Returns `None` if the user logs in with a password or access key.

        Raises ClientError or CommandError.

        Args:
            by_password: whether options for a password or access key are given.
        """
        if by_password and (self.is_given or self.token_file is not None):
            raise InvalidOption("The options for a password or access key exclude the options for issuers.")
        if by_password:
            return None
        if (given := self._given_token(last)) is not None:
            tokens, file = given
            oidc = OidcLogin("", tokens.subject, token_file=str(file.absolute()) if file else None)
            return oidc_login.profile_of(url, ca_pem, oidc, tokens, project)
        chosen = self._chosen_issuer(url, ca_pem, last)
        if chosen is None:
            return None
        issuer, urls = chosen
        keyring = self.keyring or (last is not None and last.oidc is not None and last.oidc.keyring)
        if keyring:
            token_storage.check()
        self._require_user()
        trust.accept(url, issuer, self._allowed_service)
        tokens = self._authenticate(issuer, url)
        oidc = OidcLogin(issuer.name, tokens.subject, issuer.body(), keyring)
        found = oidc_login.profile_of(url, ca_pem, oidc, tokens, project)
        trust.remember(url, issuer, urls)
        return found

    @property
    def _allowed_service(self) -> str | None:
        from clustercert.client.connection import service_url

        # Accept plain HTTP: the address must equal the login's address, and the login already checked --plain-http.
        return service_url(self.allow_service, plain_http=True) if self.allow_service is not None else None

    def _require_user(self) -> None:
        """Raise CommandError in a CI job without --device, because nobody can use a browser in the job."""
        if oidc_login.is_ci(os.environ) and not self.device:
            raise CommandError(
                "Nobody can log in with a browser, because the variable CI is set. Set CLUSTERCERT_URL and "
                "CLUSTERCERT_TOKEN instead of a login, or give --token-file FILE."
            )

    def _given_token(self, last: Profile | None) -> "tuple[OidcTokens, Path | None] | None":
        """Return a token that another program obtained, and the token's file unless it is standard input."""
        from clustercert.cli.login.renewal import parse_token, read_token

        file = self.token_file
        if file is None and not self.is_given and last is not None and last.oidc is not None:
            file = Path(last.oidc.token_file) if last.oidc.token_file is not None else None
        if file is None:
            return None
        return parse_token(read_token(file)), None if file == Path("-") else file

    def _chosen_issuer(
        self, url: str, ca_pem: str | None, last: Profile | None
    ) -> "tuple[LoginIssuer, tuple[str, ...]] | None":
        """Return the chosen issuer, and the service's list of its own addresses; `None` for a login with a password."""
        from clustercert.client import Client
        from clustercert.client.oidc.issuer import login_offer

        if last is not None and last.oidc is None and not self.is_given:
            return None
        with Client(url, ca_pem=ca_pem) as service:
            offer = login_offer(service)
        found = offer.by_name
        name = self.issuer or self._default(url, list(found), last)
        if name is None:
            return None
        if name not in found:
            raise UnknownName(
                f"{url} has no issuer {name} at which people log in.{did_you_mean(name, found)} Issuers: "
                f"{', '.join(found) or 'none'}."
            )
        return self._with_ca(found[name], last), offer.urls

    def _with_ca(self, issuer: "LoginIssuer", last: Profile | None) -> "LoginIssuer":
        if self.issuer_ca_file is not None:
            return replace(issuer, ca_pem=trust.read_ca(self.issuer_ca_file))
        if last is not None and last.oidc is not None and last.oidc.issuer is not None:
            return oidc_login.with_saved_ca(issuer, profile.saved_issuer("of the last login", last.oidc))
        return issuer

    def _default(self, url: str, names: list[str], last: Profile | None) -> str | None:
        """Return the name of an issuer: the issuer of the last login, the only issuer, or the user's choice.

        Returns `None` for a login with a password.
        """
        if last is not None and last.oidc is not None and last.oidc.name in names:
            return last.oidc.name
        if len(names) == 1:
            return names[0]
        if not names:
            if self.is_given:
                raise CommandError(
                    f"{url} has no issuer at which people log in. Log in with --user, or ask an operator to set "
                    "client_id."
                )
            return None
        choices = ", ".join(names)
        chosen = prompt_text(
            f"Log in at which issuer ({choices}), or with a {_PASSWORD}?",
            f"add --issuer NAME ({choices}), or --user NAME for a password",
        )
        return None if chosen == _PASSWORD else chosen

    def _authenticate(self, issuer: "LoginIssuer", url: str) -> "OidcTokens":
        try:
            if self.device:
                return oidc_login.by_device(issuer)
            return oidc_login.by_browser(
                issuer,
                url,
                open_window=not self.no_browser and oidc_login.has_browser(os.environ),
                reauthenticate=self.reauthenticate,
            )
        except KeyboardInterrupt:
            print_note("")
            raise typer.Exit(INTERRUPTED) from None
