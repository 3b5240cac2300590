"""The options that choose a login."""

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from clustercert.cli.login import environment, profile
from clustercert.cli.login.profile import Profile
from clustercert.cli.options import InvalidOption, NoHomeFolder
from clustercert.cli.session import warn_in_client
from clustercert.cli.terminal.output import print_note

PlainHttpOption = Annotated[
    bool, typer.Option("--plain-http", help="Allow an http:// address on another machine.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="Saved login to use.", envvar="CLUSTERCERT_PROFILE"),
]


@dataclass(frozen=True, slots=True)
class LoginOptions:
    """The options that choose a login. The variables CLUSTERCERT_URL and CLUSTERCERT_TOKEN override these options."""

    profile_name: ProfileOption = None
    from_env: Annotated[
        bool, typer.Option("--from-env", help="Log in with OpenStack's variables (OS_AUTH_URL etc.).")
    ] = False
    plain_http: PlainHttpOption = False

    def __post_init__(self) -> None:
        if self.from_env and not os.environ.get("OS_AUTH_URL"):
            raise InvalidOption("--from-env needs the variable OS_AUTH_URL.")
        if self.from_env and environment.is_used(os.environ):
            raise InvalidOption(f"--from-env excludes {environment.URL} and {environment.TOKEN}. Unset both.")

    @property
    def saved_name(self) -> str | None:
        """The name of the saved login, or `None` if the login is in environment variables."""
        if self.from_env or environment.is_used(os.environ):
            return None
        if self.profile_name is not None:
            return self.profile_name
        try:
            name = profile.current(os.environ)
            return None if self._is_only_in_environment(name) else name
        except NoHomeFolder:
            if os.environ.get("OS_AUTH_URL"):
                return None
            raise

    @property
    def label(self) -> str:
        """The text that replaces `{profile}` in the names of kubeconfig contexts."""
        return self.saved_name or ("job" if environment.is_used(os.environ) else "openstack")

    def profile(self, *, may_ask: bool = True) -> Profile:
        """Load the chosen login, or log in with environment variables. Prints a note if these variables are set.

        Renews an expired login at an OIDC issuer.

        Args:
            may_ask: whether to open a browser window if only the user can renew the login.
        """
        warn_in_client(os.environ)
        name, address = self.saved_name, os.environ.get("OS_AUTH_URL")
        if environment.is_used(os.environ):
            found = environment.log_in(os.environ)
            print_note(f"Using the token in {environment.TOKEN}: {found.shown_user} at {found.url}.")
            return found
        if name is None:
            from clustercert.cli.login import password_login

            found = password_login.log_in(os.environ, plain_http=self.plain_http)
            print_note(f"Using the login in OpenStack's variables: {found.shown_user} at {found.url}.")
            return found
        found = profile.load(name, os.environ)
        if found.oidc is not None:
            from clustercert.cli.login.renewal import renew, renew_or_log_in

            found = (renew_or_log_in if may_ask else renew)(name, found)
        if address and self.profile_name is None:
            print_note(
                f"Using the saved login, {found.shown_user} at {found.url}. OpenStack's variables are ignored. To use "
                "them, add --from-env."
            )
        return found

    @staticmethod
    def _is_only_in_environment(name: str) -> bool:
        if not os.environ.get("OS_AUTH_URL"):
            return False
        found = profile.remembered(name, os.environ)
        return found is None or not found.is_logged_in
