"""`clustercert login`: log in to a running service, and save the login as a profile."""

import contextlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.login import environment, password_login, profile, renewal
from clustercert.cli.login.issuer_options import IssuerOptions
from clustercert.cli.login.options import PlainHttpOption, ProfileOption
from clustercert.cli.login.profile import Profile
from clustercert.cli.login.trust import TrustOptions
from clustercert.cli.lookup import NO_PROJECTS, split_domain
from clustercert.cli.options import InvalidOption, NotLoggedIn, PasswordFileOption, UsageError, refuse_empty
from clustercert.cli.session import warn_in_client
from clustercert.cli.terminal.output import Output, print_note, show_one
from clustercert.cli.terminal.prompts import PASSWORD_ATTEMPTS, prompt_text, read_secret
from clustercert.model.errors import ClustercertError
from clustercert.model.identity import DEFAULT_DOMAIN
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.client import LoginToken, PasswordLogin

_PASSWORD_VARIABLE = "CLUSTERCERT_PASSWORD"
_PROJECT_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class CredentialOptions:
    """The options for a login with a password or an access key."""

    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            metavar="USER",
            help="User who logs in with a password, as NAME or DOMAIN/NAME. [default: the user of the last login]",
        ),
    ] = None
    domain: Annotated[
        str | None,
        typer.Option(
            metavar="DOMAIN", help="Domain of the user. [default: the domain of the last login, or Default]"
        ),
    ] = None
    password_file: PasswordFileOption = None
    access_key: Annotated[
        str | None, typer.Option(metavar="AK", help="Access key to log in with, instead of a password.")
    ] = None
    secret_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read the secret key from FILE, or from standard input (-)."),
    ] = None

    def __post_init__(self) -> None:
        refuse_empty({"--user": self.user, "--domain": self.domain, "--access-key": self.access_key})
        if self.user is not None and self.access_key is not None:
            raise InvalidOption("Give only one of --user and --access-key.")
        if self.domain and split_domain(self.user or "", self.domain)[1] != self.domain:
            raise InvalidOption("--user and --domain name different domains. Give only one of them.")

    @property
    def is_given(self) -> bool:
        return any((self.user, self.password_file, self.access_key, self.secret_file))

    def log_in(self, url: str, project: str | None, ca_pem: str | None, last: Profile | None) -> Profile:
        """Log in with these credentials, or as the user of the last login. Raises ClientError or CommandError."""
        access_key = self.access_key or (last.access_key if last is not None and self.user is None else None)
        if access_key is not None:
            secret_key = _secret("Secret key", "CLUSTERCERT_SECRET_KEY", self.secret_file, "--secret-file")
            return password_login.log_in_by_access_key(url, access_key, secret_key, project, ca_pem)
        from clustercert.client import PasswordLogin

        if self.user or last is None:
            user, domain = split_domain(self.user or prompt_text("User", "add --user NAME"), self.domain)
        else:
            user, domain = last.user, self.domain
            print_note(f"Logging in to {url} as {last.shown_user}.")
        other_domain = f"For a user of another domain, add --user DOMAIN/{user}."
        advice = f" {'Check the spelling of the domain too.' if domain else other_domain}"
        same_user = last is not None and last.access_key is None and user == last.user
        domain = domain or (last.domain if last is not None and same_user else None) or DEFAULT_DOMAIN
        by_id = project is not None and _PROJECT_ID.fullmatch(project)
        name, project_domain = (None, None) if project is None or by_id else split_domain(project)
        login = PasswordLogin(
            user=user,
            domain=domain,
            password="",
            project_id=project if by_id else None,
            project=name,
            project_domain=project_domain,
        )
        session = self._authenticate(url, login, ca_pem, advice)
        return password_login.profile_of(url, session, None, ca_pem)

    def _authenticate(
        self, url: str, login: "PasswordLogin", ca_pem: str | None, advice: str
    ) -> "LoginToken":
        """Log in with a password. Asks again after a wrong password, if the user typed it at a terminal.

        `advice` is appended to the message for a wrong password.
        """
        is_typed = self.password_file is None and not os.environ.get(_PASSWORD_VARIABLE)
        for _ in range(PASSWORD_ATTEMPTS - 1 if is_typed else 0):
            try:
                return self._attempt(url, login, ca_pem, advice)
            except NotLoggedIn as error:
                print_note(f"{error.message} Type the password again, or press Ctrl-C to leave.")
        return self._attempt(url, login, ca_pem, advice)

    def _attempt(self, url: str, login: "PasswordLogin", ca_pem: str | None, advice: str) -> "LoginToken":
        password = password_from(self.password_file)
        return password_login.log_in_by_password(url, replace(login, password=password), ca_pem, advice)


@expand_options
def login(
    credentials: CredentialOptions,
    trust: TrustOptions,
    issuer: IssuerOptions,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="Service, such as https://clustercert.example.com. [default: the service of the last login]",
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT", help="Project in which to look for clusters first, by name, DOMAIN/NAME or id."
        ),
    ] = None,
    profile_name: ProfileOption = None,
    plain_http: PlainHttpOption = False,
    output: Annotated[
        Literal["json", "yaml"] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FORMAT",
            help="Print the saved login, without secrets, as json or yaml.",
        ),
    ] = None,
) -> None:
    """Log in to a running service.

    The next login needs no options: it uses the same service, CA and user. One login serves all projects of the user.
    A login at another service creates another profile.

    At an OIDC issuer, people log in with a browser. A program gives a token with --token-file. CI jobs need no login:
    they set CLUSTERCERT_URL and CLUSTERCERT_TOKEN, and the CA in CLUSTERCERT_CA_FILE or CLUSTERCERT_CA_FINGERPRINT. The
    first login at an issuer asks whether this service may get the token, unless --allow-service names the service.

    A login with a password saves a token until it expires, never the password. Secrets come from a prompt, from a file,
    or from the variables CLUSTERCERT_PASSWORD and CLUSTERCERT_SECRET_KEY.

    Examples:
        clustercert login https://clustercert.example.com
        clustercert login https://clustercert.example.com --user alice
        clustercert login --profile work --device
    """
    refuse_empty({"--project": project})
    warn_in_client(os.environ)
    if environment.is_used(os.environ):
        raise UsageError(
            f"{environment.URL} and {environment.TOKEN} are set, so commands need no login. Unset both to log in."
        )
    base, name, last = _service(url, profile_name, plain_http=plain_http)
    ca_pem = trust.ca_pem(base, last.ca_pem if last is not None else None)
    is_new = _remember(name, base, ca_pem)
    _note_clock(base, ca_pem)
    # A profile without a user is not a login: only the service's address and CA were saved.
    last = last if last is not None and last.user else None
    try:
        found = issuer.log_in(base, project, ca_pem, last, by_password=credentials.is_given)
        if found is None:
            by_password = last if last is None or last.oidc is None else None
            found = credentials.log_in(base, project, ca_pem, by_password)
    except (UsageError, InvalidOption):
        # The command needs other options, for example because there is no terminal, so don't keep the new profile.
        if is_new:
            profile.delete(name, os.environ)
        raise
    _save(name, found)
    if profile_name is None:
        profile.use(name, os.environ)
    if output is not None:
        show_one(found.summary(name), Output(output))


def _note_clock(url: str, ca_pem: str | None) -> None:
    """Say that this machine's clock is wrong. Ignores errors, because the login reports them."""
    from clustercert.client import Client

    with contextlib.suppress(ClustercertError), Client(url, ca_pem=ca_pem) as client:
        if (problem := client.clock_problem()) is not None:
            print_note(problem)


def _remember(name: str, url: str, ca_pem: str | None) -> bool:
    """Save the address and the CA before the login, so that the user need not give them again if the login fails.

    Does not replace a login at another service. Returns whether the profile is new. Raises CommandError.
    """
    before = profile.remembered(name, os.environ)
    if before is None:
        profile.save(name, Profile(url, "", None, None, ca_pem), os.environ)
    elif before.url == url and before.ca_pem != ca_pem:
        renewal.save(name, replace(before, ca_pem=ca_pem))
    return before is None


def _save(name: str, found: Profile) -> None:
    """Save the login, and print who is logged in."""
    before = profile.remembered(name, os.environ)
    path = renewal.save(name, found)
    renewal.forget_failures(name)
    if before is not None and before.user and not _is_same_user(before, found):
        print_note(
            f"The profile {name} was the login of {before.shown_user} at {before.url}. kubectl gets no new "
            "certificates for the contexts that were merged with that login. To keep both logins, run "
            f"`{before.login_command('NAME')}`, and then `clustercert kubeconfig merge CLUSTER --profile NAME`. If "
            f"{found.shown_user} has a role in the project of a context, you can instead merge that context again."
        )
    until = f" until {rfc3339(found.ends_at)}" if found.ends_at else ""
    where = f" in {found.scope}" if found.project_id is not None else ""
    print_note(f"Logged in as {found.shown_user}{where}{until}. Saved in {path}")
    if found.project_id is None and not _sees_all_clusters(found):
        print_note(NO_PROJECTS)


def _sees_all_clusters(found: Profile) -> bool:
    # Ignore errors: the login is saved already, and only a hint depends on the result.
    with contextlib.suppress(ClustercertError), found.client() as client:
        return client.caller().sees_all_clusters
    return False


def _service(
    url: str | None, profile_name: str | None, *, plain_http: bool
) -> tuple[str, str, Profile | None]:
    """Return the service's address, the profile's name, and the last login at this address."""
    from clustercert.client.connection import service_url

    name = profile.current(os.environ) if profile_name is None else profile_name
    last = profile.remembered(name, os.environ)
    if url is None:
        if last is not None:
            return last.url, name, last
        urls = sorted({each.url for each in profile.saved_profiles(os.environ).values()})
        if len(urls) != 1:
            known = f" You have profiles for {', '.join(urls)}." if urls else ""
            raise UsageError(
                f"Name the service: `clustercert login URL`.{known} Later logins don't need the URL."
            )
        print_note(f"Logging in at {urls[0]}, the service of your other profiles.")
        return urls[0], name, None
    base = service_url(url, plain_http=plain_http)
    if last is None or last.url == base:
        return base, name, last
    if profile_name is None:
        # Use a new profile name, so that the login at the other service is not replaced.
        name = re.sub(r"[^A-Za-z0-9.-]", "-", base.partition("://")[2])[:64].strip("-")
        print_note(
            f"This is not the service of the profile {profile.current(os.environ)}. New profile: {name}"
        )
        last = profile.remembered(name, os.environ)
        return base, name, last
    return base, name, None


def _is_same_user(one: Profile, other: Profile) -> bool:
    # Logins with an access key have no domain.
    domains = {one.domain, other.domain} - {None}
    return (one.url, one.user) == (other.url, other.user) and len(domains) <= 1


def password_from(file: Path | None, prompt: str = "Password") -> str:
    """Read the user's current password from a file, from CLUSTERCERT_PASSWORD or from a prompt."""
    return _secret(prompt, _PASSWORD_VARIABLE, file, "--password-file")


def _secret(prompt: str, variable: str, file: Path | None, option: str) -> str:
    if file is None and (value := os.environ.get(variable)):
        return value
    return read_secret(prompt, file, f"add {option} FILE or set {variable}")
