"""The variables of OpenStack's clients as a login: `OS_AUTH_URL`, and who one is there."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.logging_in import by_access_key, by_password, in_project, read_ca
from clustercert.cli.profile import Profile, ProfileError

if TYPE_CHECKING:
    # Only whoever logs in loads the HTTP client.
    from clustercert.client import Named, Session


def is_set(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a service."""
    return bool(environment.get("OS_AUTH_URL"))


def log_in(environment: Mapping[str, str], *, plain_http: bool) -> Profile:
    """A profile that is kept nowhere. Raises ProfileError where a variable is missing, or ClientError."""
    from clustercert.client.wire import service_url

    url = service_url(environment["OS_AUTH_URL"], plain_http=plain_http)
    ca_file = environment.get("OS_CACERT")
    ca_pem = read_ca(Path(ca_file) if ca_file else None)
    access_key, secret_key = environment.get("OS_ACCESS_KEY"), environment.get("OS_SECRET_KEY")
    if access_key and secret_key:
        return by_access_key(url, access_key, secret_key, _project(environment), ca_pem)
    session, project = _session(url, environment, ca_pem)
    # The identity service may live elsewhere than what it is for; its catalog says where that is.
    return Profile(
        url=service_url(session.service_url, plain_http=plain_http) if session.service_url else url,
        user=session.user.name,
        project_id=project.id,
        project_name=project.name,
        ca_pem=ca_pem,
        token=session.token,
        expires_at=session.expires_at,
    )


def _session(url: str, environment: Mapping[str, str], ca_pem: str | None) -> "tuple[Session, Named]":
    from clustercert.client import Client, Login
    from clustercert.client.auth import TokenAuth

    if token := environment.get("OS_TOKEN"):
        with Client(url, TokenAuth(token), ca_pem=ca_pem) as client:
            return in_project(url, client.session(token), _project(environment), ca_pem)
    user_id = environment.get("OS_USER_ID")
    user, password = user_id or environment.get("OS_USERNAME"), environment.get("OS_PASSWORD")
    if not user or not password:
        raise ProfileError(
            "OS_AUTH_URL is set, and nothing says who you are: set OS_USERNAME and OS_PASSWORD, or OS_TOKEN, or "
            "OS_ACCESS_KEY and OS_SECRET_KEY. Or unset it and run `clustercert login URL`."
        )
    domain = environment.get("OS_USER_DOMAIN_NAME") or environment.get("OS_DOMAIN_NAME") or "Default"
    login = Login(
        user=user,
        domain=None if user_id else domain,
        password=password,
        project_id=environment.get("OS_PROJECT_ID") or None,
        project=environment.get("OS_PROJECT_NAME") or None,
        project_domain=environment.get("OS_PROJECT_DOMAIN_NAME") or None,
    )
    return by_password(url, login, ca_pem)


def _project(environment: Mapping[str, str]) -> str | None:
    return environment.get("OS_PROJECT_ID") or environment.get("OS_PROJECT_NAME") or None
