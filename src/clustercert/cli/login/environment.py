"""The login of a job: a service's address and a token in environment variables. Nothing is saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clustercert.cli.options import UsageError

if TYPE_CHECKING:
    from clustercert.cli.login.profile import Profile

URL, TOKEN = "CLUSTERCERT_URL", "CLUSTERCERT_TOKEN"
CA_FILE, CA_FINGERPRINT = "CLUSTERCERT_CA_FILE", "CLUSTERCERT_CA_FINGERPRINT"
# The number of dots in a JWT. Tokens that the service itself issues have no dots.
_JWT_DOTS = 2


def is_used(environment: Mapping[str, str]) -> bool:
    """Whether CLUSTERCERT_URL and CLUSTERCERT_TOKEN are set. Raises UsageError if only one variable is set."""
    given = [name for name in (URL, TOKEN) if environment.get(name)]
    if len(given) == 1:
        missing = TOKEN if given == [URL] else URL
        raise UsageError(
            f"{given[0]} is set, but not {missing}. Set {missing} too, to use the token without a login. Or unset "
            f"{given[0]}, to use a saved login."
        )
    return bool(given)


def log_in(environment: Mapping[str, str]) -> "Profile":
    """Log in with the address and token in the environment variables. Raises ClientError or CommandError."""
    from clustercert.cli.login import oidc_login, password_login
    from clustercert.cli.login.profile import OidcLogin, advice_if_refused
    from clustercert.cli.login.renewal import parse_token
    from clustercert.client import Client
    from clustercert.client.auth import TokenAuth

    url, token = _url(environment[URL]), environment[TOKEN].strip()
    ca_pem = _ca_pem(url, environment)
    if token.count(".") == _JWT_DOTS:
        tokens = parse_token(token)
        return oidc_login.profile_of(url, ca_pem, OidcLogin("", tokens.subject), tokens)
    with (
        Client(url, TokenAuth(token), ca_pem=ca_pem) as client,
        advice_if_refused(f"{url} does not accept the token in {TOKEN}. Set {TOKEN} to a valid token."),
    ):
        session = client.session(token)
    return password_login.profile_of(url, session, None, ca_pem)


def _url(text: str) -> str:
    from clustercert.client.connection import service_url
    from clustercert.model.requests import is_loopback

    url = service_url(text, plain_http=True)
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"{URL} must begin with https://, because {url} would receive the token unencrypted."
        )
    return url


def _ca_pem(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the service's CA from the environment variables, or `None` to trust this machine's CAs.

    Raises ClientError or CommandError.
    """
    from clustercert.cli.login.trust import is_fingerprint, pinned_ca, read_ca

    file, fingerprint = environment.get(CA_FILE), environment.get(CA_FINGERPRINT)
    if file and fingerprint:
        raise UsageError(f"{CA_FILE} and {CA_FINGERPRINT} are both set. Set only one of them.")
    if not fingerprint:
        return read_ca(Path(file)) if file else None
    if not is_fingerprint(fingerprint):
        raise UsageError(f"{CA_FINGERPRINT} must be a SHA-256 fingerprint: 64 hex digits.")
    return pinned_ca(url, fingerprint)
