"""`clustercert login` and `logout`: who one is at a running service, kept as a profile."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import logging_in, profile
from clustercert.cli.asking import asked, read_secret
from clustercert.cli.options import PasswordFileOption
from clustercert.cli.output import note
from clustercert.cli.profile import DEFAULT_PROFILE, Profile
from clustercert.cli.session import DEFAULT_DOMAIN

if TYPE_CHECKING:
    # Only whoever logs in loads the HTTP client.
    from clustercert.client import Login

ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile", envvar="CLUSTERCERT_PROFILE", metavar="NAME", help="The profile to keep or use."
    ),
]
PlainHttpOption = Annotated[
    bool, typer.Option("--plain-http", help="Talk to an http:// address that is not on this machine.")
]


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="The service: https://clustercert.example.com.")],
    user: Annotated[str | None, typer.Option("--user", "-u", help="Log in by password as this user.")] = None,
    domain: Annotated[str, typer.Option(help="The user's domain.")] = DEFAULT_DOMAIN,
    password_file: PasswordFileOption = None,
    access_key: Annotated[
        str | None, typer.Option(metavar="AK", help="Log in by this access key instead of a password.")
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Read the access key's secret from a file, or from - (standard input)."
        ),
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="The project, by name or id; needed where you have roles in several.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The CA of the service's certificate, PEM.")
    ] = None,
    profile_name: ProfileOption = DEFAULT_PROFILE,
    plain_http: PlainHttpOption = False,
) -> None:
    """Log in at a running service, for `kubeconfig get`.

    A login by password keeps a token until it ends, never the password. Secrets are asked for, or come from a file,
    or from CLUSTERCERT_PASSWORD and CLUSTERCERT_SECRET_KEY in the environment.
    """
    from clustercert.client.wire import service_url

    if user is not None and access_key is not None:
        raise typer.BadParameter("--user and --access-key exclude each other.")
    base = service_url(url, plain_http=plain_http)
    ca_pem = logging_in.read_ca(ca_file)
    if access_key is not None:
        secret_key = _secret("Secret key", "CLUSTERCERT_SECRET_KEY", secret_file, "--secret-file")
        found = logging_in.by_access_key(base, access_key, secret_key, project, ca_pem)
    else:
        user = user or asked("User", "add --user NAME")
        password = _secret("Password", "CLUSTERCERT_PASSWORD", password_file, "--password-file")
        found = _by_password(base, _login(user, domain, password, project), ca_pem)
    path = profile.save(profile_name, found, os.environ)
    until = f" until {found.expires_at:%Y-%m-%d %H:%M} UTC" if found.expires_at else ""
    note(f"Logged in as {found.user} in the project {found.project_name}{until}; kept in {path}")


def logout(profile_name: ProfileOption = DEFAULT_PROFILE) -> None:
    """End a login: its token is revoked, and the profile deleted."""
    from clustercert.client.wire import ClientError

    found = profile.load(profile_name, os.environ)
    profile.forget(profile_name, os.environ)
    if found.token is not None:
        try:
            with found.client() as client:
                client.revoke(found.token)
        except (ClientError, profile.ProfileError) as error:
            note(f"The token could not be revoked, and ends by itself: {error.message}")
    note(f"Logged out from {found.url}.")


def _secret(prompt: str, variable: str, file: Path | None, option: str) -> str:
    if file is None and (value := os.environ.get(variable)):
        return value
    return read_secret(prompt, file, f"add {option} FILE or set {variable}")


def _login(user: str, domain: str, password: str, project: str | None) -> "Login":
    from clustercert.client import Login

    by_id = project is not None and logging_in.is_id(project)
    return Login(
        user=user,
        domain=domain,
        password=password,
        project_id=project if by_id else None,
        project=None if by_id else project,
    )


def _by_password(url: str, wanted: "Login", ca_pem: str | None) -> Profile:
    session, project = logging_in.by_password(url, wanted, ca_pem)
    return Profile(
        url=url,
        user=session.user.name,
        project_id=project.id,
        project_name=project.name,
        ca_pem=ca_pem,
        token=session.token,
        expires_at=session.expires_at,
    )
