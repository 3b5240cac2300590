"""Asks the service for the exec plugin's credential, with a saved login."""

import json
import os
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import typer

from clustercert.cli.credential import cache
from clustercert.cli.credential.cache import Entry
from clustercert.cli.credential.renewal import Failure
from clustercert.cli.exit_codes import INTERRUPTED, NOT_LOGGED_IN, UNAVAILABLE, USAGE, exit_code
from clustercert.cli.kubeconfig.request import CertificateRequest, IssuedKubeconfig
from clustercert.cli.login import profile
from clustercert.cli.login.profile import DEFAULT_PROFILE, Profile
from clustercert.cli.lookup import reachable_cluster
from clustercert.cli.options import CommandError, LifetimeOptions
from clustercert.cli.session import CLUSTER_ID
from clustercert.client.connection import ApiError, ClientError
from clustercert.model.errors import ClustercertError
from clustercert.model.ids import is_id
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.cli.credential.entry import Request

T = TypeVar("T")

# Report expiry this much early, so that kubectl asks again before the API server refuses the certificate.
_EARLY = timedelta(seconds=60)
_MIN_LEFT = timedelta(minutes=5)
# Statuses of temporary errors. All statuses from 500 are temporary too.
_TEMPORARY = frozenset({408, 429})
_FIRST_SERVER_ERROR = 500
_NO_PROJECT = (
    "Add --project ID, because your login is for no project. `clustercert clusters -o json` shows the ids."
)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its key, in PEM.

    Attributes:
        expires: by this machine's clock.
        login: the state of the login's file.
    """

    certificate_pem: str
    key_pem: str
    expires: datetime
    login: str

    @classmethod
    def of(cls, issued: IssuedKubeconfig, login: str) -> "Credential":
        user = issued.kubeconfig.credential
        certificate, key = user["client-certificate-data"], user["client-key-data"]
        return cls(b64decode(certificate).decode(), b64decode(key).decode(), issued.expires, login)

    def cache_entry(self, now: float) -> Entry:
        """The response for kubectl, and when to renew it: when a fifth or 5 minutes are left."""
        lifetime = self.expires - datetime.fromtimestamp(now, UTC)
        left = min(max(lifetime / 5, _MIN_LEFT), lifetime / 2)
        status = {
            "clientCertificateData": self.certificate_pem,
            "clientKeyData": self.key_pem,
            "expirationTimestamp": rfc3339(self.expires - _EARLY),
        }
        body = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status}
        return Entry(
            issued=int(now),
            renew=int((self.expires - left).timestamp()),
            expires=int(self.expires.timestamp()),
            login=self.login,
            body=json.dumps(body, separators=(",", ":")) + "\n",
        )


def complete(request: "Request") -> Failure | None:
    """Fill in the profile, and the project of a cluster that is given by id, if the call does not name them."""
    try:
        request.profile = request.profile or profile.current(os.environ)
    except CommandError as error:
        return Failure(exit_code(error), error.message)
    found = _login(request.profile)
    if isinstance(found, Failure):
        return found
    if request.project is None and _is_cluster_id(request):
        request.project = found.project_id
        if request.project is None:
            return Failure(USAGE, _NO_PROJECT)
    return None


def is_identified(request: "Request") -> bool:
    """Whether the cluster and its project are given by id."""
    return _is_cluster_id(request) and request.project is not None and is_id(request.project)


def _is_cluster_id(request: "Request") -> bool:
    return CLUSTER_ID.fullmatch(request.cluster or "") is not None


def identify(request: "Request") -> tuple[str, str] | Failure:
    """Find the ids of the project and the cluster. Reports every error as a Failure."""

    def find(found: Profile) -> tuple[str, str]:
        with found.client() as client:
            cluster = reachable_cluster(client, found, request.cluster or "", request.project)
        return cluster.project_id, cluster.id

    return _with_login(request, find)


def renew_login(request: "Request") -> Failure | None:
    """Renew a login at an OIDC issuer that expired. Returns why that failed."""
    name = request.profile or DEFAULT_PROFILE
    found = _login(name)
    if isinstance(found, Failure):
        return found
    if found.oidc is None:
        return None
    from clustercert.cli.login.renewal import LoginNeeded, renewed

    try:
        renewed(name, found)
    except LoginNeeded as error:
        from clustercert.cli.login.window import may_open_window

        return Failure(NOT_LOGGED_IN, error.message, cache_helps=True, needs_user=may_open_window(found))
    except ClustercertError as error:
        code = exit_code(error)
        return Failure(code, error.message, cache_helps=code == UNAVAILABLE)
    return None


def renew_refused_login(request: "Request") -> bool:
    """Renew a login whose token the service refused before it expired. Returns whether there is a new token."""
    name = request.profile or DEFAULT_PROFILE
    found = _login(name)
    if isinstance(found, Failure) or not found.is_renewable:
        return False
    from clustercert.cli.login.renewal import renewed

    try:
        renewed(name, found, refused=found.token)
    except ClustercertError:
        return False
    return True


def log_in(request: "Request") -> Failure | None:
    """Let the user log in with one browser window, for this call and all calls that wait. Returns why that failed."""
    from clustercert.cli.login.window import WindowFailed, log_in_by_window

    try:
        log_in_by_window(request.profile or DEFAULT_PROFILE)
    except WindowFailed as error:
        return Failure(error.exit_code, error.message)
    except ClustercertError as error:
        return Failure(exit_code(error), error.message)
    except KeyboardInterrupt:
        return Failure(INTERRUPTED, "Interrupted.")
    return None


def obtain(request: "Request") -> Credential | Failure:
    """Request a certificate. Reports every error as a Failure."""
    state = cache.login_state(str(profile.path_of(request.profile or DEFAULT_PROFILE, os.environ)))
    return _with_login(request, lambda found: Credential.of(_request(request, found), state))


def _with_login(request: "Request", question: Callable[[Profile], T]) -> T | Failure:
    """Ask the service with the saved login. Reports every error as a Failure."""
    name = request.profile or DEFAULT_PROFILE
    found = _login(name)
    if isinstance(found, Failure):
        return found
    if found.has_expired:
        return _log_in_again(name, f"Your login at {found.url} expired", cache_helps=True)
    try:
        return question(found)
    except (ClustercertError, typer.BadParameter) as error:
        return _failure(error, name, found)


def _failure(error: ClustercertError | typer.BadParameter, name: str, found: Profile) -> Failure:
    match error:
        case ApiError(http_status=401):
            reason = ": an operator sees why with `clustercert identity explain`" if found.oidc else ""
            failure = _log_in_again(name, f"{found.url} refused your login{reason}", cache_helps=False)
            return failure._replace(is_refused=True)
        case ApiError(http_status=status):
            temporary = status >= _FIRST_SERVER_ERROR or status in _TEMPORARY
            return Failure(exit_code(error), error.message, cache_helps=temporary)
        case typer.BadParameter():
            return Failure(USAGE, error.message)
        case _:
            return Failure(exit_code(error), error.message, cache_helps=isinstance(error, ClientError))


def _request(request: "Request", found: Profile) -> IssuedKubeconfig:
    wanted = CertificateRequest(
        request.project or "",
        request.cluster or "",
        LifetimeOptions(expires_in=request.expires_in),
        local_key=not request.service_key,
    )
    with found.client() as client:
        return wanted.send(client)


def _login(name: str) -> Profile | Failure:
    try:
        is_saved = profile.path_of(name, os.environ).exists()
    except CommandError as error:
        return Failure(exit_code(error), error.message)
    try:
        return profile.load(name, os.environ)
    except CommandError as error:
        if is_saved:
            return Failure(NOT_LOGGED_IN, error.message)
    return Failure(
        NOT_LOGGED_IN,
        f"You are not logged in (profile {name}). Run `clustercert login URL{profile.option(name)}`.",
    )


def _log_in_again(name: str, problem: str, *, cache_helps: bool) -> Failure:
    """Name the command that creates this login again: the profile has the address and the user."""
    return Failure(NOT_LOGGED_IN, f"{problem}. {profile.log_in_again(name)}", cache_helps)
