"""Logs in with the environment variables of OpenStack's clients: `OS_AUTH_URL` and credentials."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.login_flow import log_in_by_access_key, log_in_by_password, profile_of, read_ca
from clustercert.cli.options import CommandError
from clustercert.cli.profile import Profile

if TYPE_CHECKING:
    from clustercert.client import Session


def log_in(environment: Mapping[str, str], *, plain_http: bool) -> Profile:
    """Log in and return the profile without saving it. Raises ClientError, or CommandError if a variable is missing."""
    from clustercert.client.connection import service_url

    url = service_url(environment["OS_AUTH_URL"], plain_http=plain_http)
    ca_file = environment.get("OS_CACERT")
    ca_pem = read_ca(Path(ca_file) if ca_file else None)
    access_key, secret_key = environment.get("OS_ACCESS_KEY"), environment.get("OS_SECRET_KEY")
    if access_key and secret_key:
        return log_in_by_access_key(url, access_key, secret_key, _project(environment), ca_pem)
    session = _session(url, environment, ca_pem)
    found = profile_of(url, session, _project(environment), ca_pem)
    # The identity service may have a different address from the cluster API, whose address is in the catalog.
    address = service_url(session.service_url, plain_http=plain_http) if session.service_url else url
    if address != url and not found.chosen_project:
        raise CommandError(f"Your project at {url} is not known. Set OS_PROJECT_NAME or OS_PROJECT_ID.")
    return replace(found, url=address)


def _session(url: str, environment: Mapping[str, str], ca_pem: str | None) -> "Session":
    from clustercert.client import Client, Login
    from clustercert.client.auth import TokenAuth

    if token := environment.get("OS_TOKEN"):
        with Client(url, TokenAuth(token), ca_pem=ca_pem) as client:
            return client.session(token)
    user_id = environment.get("OS_USER_ID")
    user, password = user_id or environment.get("OS_USERNAME"), environment.get("OS_PASSWORD")
    if not user or not password:
        raise CommandError(
            "OS_AUTH_URL is set, but not your credentials: set OS_USERNAME and OS_PASSWORD, or OS_TOKEN, or "
            "OS_ACCESS_KEY and OS_SECRET_KEY. Or unset it and run `clustercert login URL`."
        )
    domain = environment.get("OS_USER_DOMAIN_NAME") or environment.get("OS_DOMAIN_NAME")
    domain_id = None if user_id or domain else environment.get("OS_USER_DOMAIN_ID")
    login = Login(
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
