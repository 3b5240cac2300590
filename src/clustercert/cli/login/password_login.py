"""Logs in with a password, an access key or OpenStack's variables, and creates the profile."""

from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.login.profile import Profile, advice_if_refused
from clustercert.cli.login.trust import read_ca
from clustercert.cli.lookup import only_project
from clustercert.cli.options import CommandError, NotLoggedIn

if TYPE_CHECKING:
    from clustercert.client import LoginToken, NamedRef, PasswordLogin, ProjectRef


def log_in_by_password(
    url: str, login: "PasswordLogin", ca_pem: str | None, advice: str = ""
) -> "LoginToken":
    """Create a token for the login's project, or a token without a project. Raises ClientError or NotLoggedIn.

    `advice` is appended to the message for a refused login.
    """
    from clustercert.client import Client
    from clustercert.client.connection import ApiError

    try:
        with Client(url, ca_pem=ca_pem) as client:
            return client.log_in(login)
    except ApiError as error:
        if error.http_status != HTTPStatus.UNAUTHORIZED:
            raise
        # For SDKs, the service answers with a sentence that does not say what is wrong.
        raise NotLoggedIn(f"{_refusal(login)}{advice}") from error


def _refusal(login: "PasswordLogin") -> str:
    domain = f" The user was looked up in the domain {login.domain}." if login.domain else ""
    if (project := login.project or login.project_id) is None:
        return f"Wrong user name or password.{domain}"
    return f"Wrong user name or password, or no role in the project {project}.{domain}"


def profile_of(url: str, session: "LoginToken", project: str | None, ca_pem: str | None) -> Profile:
    """Create the profile for a token. Replaces a token without a project by a token for one of the user's projects.

    Raises ClientError or CommandError.
    """
    from clustercert.client import Client
    from clustercert.client.auth import TokenAuth

    chosen, scope = session.project is not None or project is not None, session.project
    if scope is None:
        with Client(url, TokenAuth(session.token), ca_pem=ca_pem) as client:
            scope, only = choose_project(client.projects(), project)
            chosen = chosen or only
            if scope is not None:
                session = client.rescope(session.token, scope.id)
    return Profile(
        url=url,
        user=session.user.name,
        domain=session.user.domain,
        project_id=scope.id if scope is not None else None,
        project_name=scope.name if scope is not None else None,
        project_domain=scope.domain if scope is not None else None,
        ca_pem=ca_pem,
        token=session.token,
        expires_at=session.expires_at,
        chosen_project=chosen,
    )


def log_in_by_access_key(
    url: str, access_key: str, secret_key: str, project: str | None, ca_pem: str | None
) -> Profile:
    """Create a profile with an access key, if the service accepts the key. Raises ClientError or CommandError."""
    from clustercert.client import Client
    from clustercert.client.auth import AccessKeyAuth

    with Client(url, AccessKeyAuth(access_key, secret_key), ca_pem=ca_pem) as client:
        with advice_if_refused("Check the access key, its secret, and the clock of this machine."):
            scope, only = choose_project(client.projects(), project)
        caller = client.caller()
    return Profile(
        url=url,
        user=caller.name,
        domain=caller.domain,
        project_id=scope.id if scope is not None else None,
        project_name=scope.name if scope is not None else None,
        project_domain=scope.domain if scope is not None else None,
        ca_pem=ca_pem,
        access_key=access_key,
        secret_key=secret_key,
        chosen_project=project is not None or only,
    )


def choose_project(
    projects: "tuple[ProjectRef, ...]", name_or_id: str | None
) -> "tuple[NamedRef | None, bool]":
    """Return the given project, or else the user's first project by name.

    Also returns whether the user has only one project. The project is `None` if the user (an operator, for example) has
    no role in any project. Raises CommandError if the user has no role in the given project.
    """
    if name_or_id is not None:
        return only_project(projects, name_or_id), len(projects) == 1
    return min(projects, key=lambda each: each.name, default=None), len(projects) == 1


def log_in(environment: Mapping[str, str], *, plain_http: bool) -> Profile:
    """Log in with OpenStack's environment variables, such as OS_AUTH_URL. Returns the profile without saving it.

    Raises ClientError or CommandError.
    """
    from clustercert.client.connection import service_url

    url = service_url(environment["OS_AUTH_URL"], plain_http=plain_http)
    ca_file = environment.get("OS_CACERT")
    ca_pem = read_ca(Path(ca_file) if ca_file else None)
    access_key, secret_key = environment.get("OS_ACCESS_KEY"), environment.get("OS_SECRET_KEY")
    if access_key and secret_key:
        return log_in_by_access_key(url, access_key, secret_key, _project(environment), ca_pem)
    session = _session(url, environment, ca_pem)
    found = profile_of(url, session, _project(environment), ca_pem)
    # The cluster API and the identity service may have different addresses. The catalog contains the cluster API's
    # address.
    address = service_url(session.service_url, plain_http=plain_http) if session.service_url else url
    if address != url and not found.chosen_project:
        raise CommandError(f"Your project at {url} is not known. Set OS_PROJECT_NAME or OS_PROJECT_ID.")
    return replace(found, url=address)


def _session(url: str, environment: Mapping[str, str], ca_pem: str | None) -> "LoginToken":
    from clustercert.client import Client, PasswordLogin
    from clustercert.client.auth import TokenAuth

    if token := environment.get("OS_TOKEN"):
        with Client(url, TokenAuth(token), ca_pem=ca_pem) as client:
            return client.session(token)
    user_id = environment.get("OS_USER_ID")
    user, password = user_id or environment.get("OS_USERNAME"), environment.get("OS_PASSWORD")
    if not user or not password:
        raise CommandError(
            "OS_AUTH_URL is set, but not your credentials: set OS_USERNAME and OS_PASSWORD, or OS_TOKEN, or "
            "OS_ACCESS_KEY and OS_SECRET_KEY. Or unset OS_AUTH_URL and run `clustercert login URL`."
        )
    domain = environment.get("OS_USER_DOMAIN_NAME") or environment.get("OS_DOMAIN_NAME")
    domain_id = None if user_id or domain else environment.get("OS_USER_DOMAIN_ID")
    login = PasswordLogin(
        user=user,
        domain=None if user_id or domain_id else domain or "Default",
        domain_id=domain_id,
        password=password,
        project_id=environment.get("OS_PROJECT_ID") or None,
        project=environment.get("OS_PROJECT_NAME") or None,
        project_domain=environment.get("OS_PROJECT_DOMAIN_NAME") or None,
    )
    return log_in_by_password(url, login, ca_pem)


def _project(environment: Mapping[str, str]) -> str | None:
    return environment.get("OS_PROJECT_ID") or environment.get("OS_PROJECT_NAME") or None
