"""The options that choose a login."""

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from clustercert.cli.login import profile
from clustercert.cli.login.profile import Profile
from clustercert.cli.output import print_note
from clustercert.cli.session import warn_in_client

PlainHttpOption = Annotated[
    bool, typer.Option("--plain-http", help="Allow an http:// address on another machine.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="Saved login to use.", envvar="CLUSTERCERT_PROFILE"),
]


@dataclass(frozen=True, slots=True)
class LoginOptions:
    """The options that choose a login."""

    profile_name: ProfileOption = None
    from_env: Annotated[
        bool, typer.Option("--from-env", help="Log in with OpenStack's variables (OS_AUTH_URL etc.).")
    ] = False
    plain_http: PlainHttpOption = False

    def __post_init__(self) -> None:
        if self.from_env and not os.environ.get("OS_AUTH_URL"):
            raise typer.BadParameter("--from-env needs the variable OS_AUTH_URL.")

    @property
    def saved_name(self) -> str | None:
        """The name of the saved login, or `None` if OpenStack's variables are used instead."""
        name = self.profile_name or profile.current(os.environ)
        if self.from_env or (self.profile_name is None and self._is_only_in_environment(name)):
            return None
        return name

    def profile(self, *, may_ask: bool = True) -> Profile:
        """Load the chosen login, or log in with OpenStack's variables. Prints a note if these variables are set.

        Renews an expired login at an OIDC issuer.

        Args:
            may_ask: whether to open a browser window if only the user can renew the login.
        """
        warn_in_client(os.environ)
        name, address = self.saved_name, os.environ.get("OS_AUTH_URL")
        if name is None:
            from clustercert.cli.login import password_login

            found = password_login.log_in(os.environ, plain_http=self.plain_http)
            print_note(f"Using the login in OpenStack's variables: {found.user} at {found.url}.")
            return found
        found = profile.load(name, os.environ)
        if found.oidc is not None:
            from clustercert.cli.login.renewal import renew, renew_or_log_in

            found = (renew_or_log_in if may_ask else renew)(name, found)
        if address and self.profile_name is None:
            print_note(
                f"Using the saved login, {found.user} at {found.url}. OpenStack's variables are ignored. To use them, "
                "add --from-env."
            )
        return found

    @staticmethod
    def _is_only_in_environment(name: str) -> bool:
        if not os.environ.get("OS_AUTH_URL"):
            return False
        found = profile.remembered(name, os.environ)
        return found is None or not found.is_logged_in
