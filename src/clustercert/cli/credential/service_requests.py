"""What the exec plugin and `refresh` ask the service, with a saved login or in a job."""

import os
import threading
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

from clustercert.cli.credential import access_request as requests
from clustercert.cli.credential import cache
from clustercert.cli.credential.certificate import Credential
from clustercert.cli.credential.needed_login import merge_command, merged_cluster, needed_login
from clustercert.cli.credential.request import CredentialRequest
from clustercert.cli.kubeconfig.request import CertificateRequest, kind_of, token_notes
from clustercert.cli.kubeconfig.validation import ValidatedKubeconfig
from clustercert.cli.login import profile
from clustercert.cli.login.profile import DEFAULT_PROFILE, Profile
from clustercert.cli.lookup import full_name, reachable_cluster
from clustercert.cli.options import (
    FAILED,
    FORBIDDEN,
    INTERRUPTED,
    NOT_LOGGED_IN,
    UNAVAILABLE,
    USAGE,
    CommandError,
    InvalidOption,
    LifetimeOptions,
    exit_code,
)
from clustercert.cli.session import CLUSTER_ID
from clustercert.client.connection import ApiError, ClientError
from clustercert.model.errors import ClustercertError
from clustercert.model.ids import is_id

T = TypeVar("T")

# How long a call of the exec plugin waits for the service.
NETWORK_SECONDS = 10.0
# HTTP statuses below 500 that mean a temporary error.
_TEMPORARY = frozenset({408, 429})
_FIRST_SERVER_ERROR = 500
# HTTP statuses with which the service refuses a request for a project in which the user has no role.
_REFUSED = frozenset({401, 403, 404})
_NO_PROJECT = (
    "Add --project ID, because your login has no project. `clustercert clusters -o json` shows the ids."
)


class Failure(NamedTuple):
    """The reason why the exec plugin has no credential for kubectl.

    Attributes:
        exit_code: see `options`.
        cache_helps: whether a valid cached certificate may be used instead.
        needs_user: whether a login in a browser window would help.
        is_refused: whether the service refused the login.
        status: the HTTP status of the service's response, if it refused the request.
    """

    exit_code: int
    message: str
    cache_helps: bool = False
    needs_user: bool = False
    is_refused: bool = False
    status: int | None = None


def credential_of(kubeconfig: ValidatedKubeconfig, login: str, user: str) -> Credential:
    """Return the credential in a kubeconfig. For `login` and `user`, see `Credential`."""
    content = kubeconfig.credential
    certificate, key = (
        b64decode(content.get(name, "")).decode() for name in ("client-certificate-data", "client-key-data")
    )
    return Credential(
        certificate,
        key,
        kubeconfig.lifetime,
        kubeconfig.not_after,
        login,
        user,
        access_request=kubeconfig.access_request,
        token=content.get("token"),
        notes=tuple(token_notes(kubeconfig)),
    )


def issued_for_job(request: CredentialRequest) -> Credential | Failure:
    from clustercert.cli.login import environment

    try:
        # Raises UsageError if only one of CLUSTERCERT_URL and CLUSTERCERT_TOKEN is set.
        environment.is_used(os.environ)
        found = environment.log_in(os.environ)
        if not is_identified(request):
            request.project, request.cluster = ids_of(request, found)
        if request.access_request is not None:
            with found.client() as client:
                request.access_request = requests.full_id(client, request.access_request)
        return credential_of(_request(request, found), "", found.shown_user)
    except ClustercertError as error:
        return Failure(exit_code(error), error.message)
    except InvalidOption as error:
        return Failure(USAGE, error.message)


def ask_service(
    question: Callable[[CredentialRequest], T | Failure],
    request: CredentialRequest,
    seconds: float | None = None,
) -> T | Failure:
    """Ask the service. Renews an expired or refused login at an OIDC issuer.

    Args:
        seconds: the time limit for one answer; by default NETWORK_SECONDS.
    """
    # Renew the login without a time limit: a new refresh token must be saved before the process exits.
    if (failure := renew_login(request)) is not None:
        return failure
    result = with_time_limit(question, request, seconds)
    if isinstance(result, Failure) and result.is_refused and renew_refused_login(request):
        result = with_time_limit(question, request, seconds)
    return result


def with_time_limit(
    question: Callable[[CredentialRequest], T | Failure],
    request: CredentialRequest,
    seconds: float | None = None,
) -> T | Failure:
    """Ask the service in a thread with a time limit, because a DNS lookup can't be interrupted."""
    results: list[T | Failure] = []
    thread = threading.Thread(target=lambda: results.append(question(request)), daemon=True)
    thread.start()
    limit = NETWORK_SECONDS if seconds is None else seconds
    thread.join(limit)
    if results:
        return results[0]
    if not thread.is_alive():
        return Failure(FAILED, "The credential could not be requested.")
    return Failure(
        UNAVAILABLE,
        f"The service did not answer within {limit:.0f} seconds. Check the network, and try again later.",
        cache_helps=True,
    )


def complete(request: CredentialRequest) -> Failure | None:
    """Fill in a missing profile. Also fills in a missing project, if the cluster is given by id."""
    try:
        request.profile = request.profile or profile.current(os.environ)
    except CommandError as error:
        return Failure(exit_code(error), error.message)
    found = saved_login(request.profile)
    if isinstance(found, Failure):
        return found
    if request.project is None and _is_cluster_id(request):
        request.project = found.project_id
        if request.project is None:
            return Failure(USAGE, _NO_PROJECT)
    return None


def is_identified(request: CredentialRequest) -> bool:
    """Whether the cluster and its project are given by id."""
    return _is_cluster_id(request) and request.project is not None and is_id(request.project)


def _is_cluster_id(request: CredentialRequest) -> bool:
    return CLUSTER_ID.fullmatch(request.cluster or "") is not None


def identify(request: CredentialRequest) -> tuple[str, str] | Failure:
    """Find the ids of the project and the cluster. Returns a Failure for every error."""
    return with_login(request, lambda found: ids_of(request, found))


def ids_of(request: CredentialRequest, found: Profile) -> tuple[str, str]:
    """Find the ids of the project and the cluster, and note the kind of the cluster's credentials.

    Raises ClustercertError.
    """
    with found.client() as client:
        cluster = reachable_cluster(client, found, request.cluster or "", request.project)
    request.kind = kind_of(cluster)
    return str(cluster["project_id"]), str(cluster["id"])


def renewed_for(request: CredentialRequest) -> str:
    """Return the user and the cluster of a renewed certificate: `DOMAIN/NAME in DOMAIN/PROJECT/CLUSTER`.

    Without --profile, the current profile is used. A user with several profiles must see if this was the wrong profile.
    """

    def ask(found: Profile) -> str:
        with found.client() as client:
            cluster = reachable_cluster(client, found, request.cluster or "", request.project)
        return f"{found.shown_user} in {full_name(cluster)}"

    found = ask_service(partial(with_login, question=ask), request)
    return f"the profile {request.profile} in {request.cluster}" if isinstance(found, Failure) else found


def renew_login(request: CredentialRequest) -> Failure | None:
    """Renew an expired login at an OIDC issuer. Returns a Failure if the renewal fails."""
    name = request.profile or DEFAULT_PROFILE
    found = saved_login(name)
    if isinstance(found, Failure):
        return found
    if found.oidc is None:
        return None
    from clustercert.cli.login import renewal as login_renewal

    try:
        login_renewal.renew(name, found)
    except login_renewal.LoginNeeded as error:
        return Failure(
            NOT_LOGGED_IN, error.message, cache_helps=True, needs_user=login_renewal.may_open_window(found)
        )
    except ClustercertError as error:
        code = exit_code(error)
        return Failure(code, error.message, cache_helps=code == UNAVAILABLE)
    return None


def renew_refused_login(request: CredentialRequest) -> bool:
    """Renew a login whose token the service refused before the token expired. Returns whether there is a new token."""
    name = request.profile or DEFAULT_PROFILE
    found = saved_login(name)
    if isinstance(found, Failure) or not found.is_renewable:
        return False
    from clustercert.cli.login import renewal as login_renewal

    try:
        login_renewal.renew(name, found, refused=found.token)
    except ClustercertError:
        return False
    return True


def log_in(request: CredentialRequest) -> Failure | None:
    """Let the user log in once in a browser. All parallel calls of the plugin then use this login.

    Returns a Failure if the login fails.
    """
    from clustercert.cli.login.renewal import WindowFailed, log_in_by_window

    try:
        log_in_by_window(request.profile or DEFAULT_PROFILE)
    except WindowFailed as error:
        return Failure(error.exit_code, error.message)
    except ClustercertError as error:
        return Failure(exit_code(error), error.message)
    except KeyboardInterrupt:
        return Failure(INTERRUPTED, "Interrupted.")
    return None


def obtain(request: CredentialRequest) -> Credential | Failure:
    """Request a certificate. Returns a Failure for every error."""
    state = cache.login_state(str(profile.path_of(request.profile or DEFAULT_PROFILE, os.environ)))

    def ask(found: Profile) -> Credential:
        credential = credential_of(_request(request, found), state, found.shown_user)
        return replace(credential, login_ends_at=found.ends_at)

    return with_login(request, ask)


def with_login(request: CredentialRequest, question: Callable[[Profile], T]) -> T | Failure:
    """Ask the service, with the saved login as authentication. Returns a Failure for every error."""
    name = request.profile or DEFAULT_PROFILE
    found = saved_login(name)
    if isinstance(found, Failure):
        return found
    if (failure := other_user(request, found)) is not None:
        return failure
    if found.has_expired:
        return _log_in_again(name, f"Your login at {found.url} expired", cache_helps=True)
    try:
        return question(found)
    except (ClustercertError, InvalidOption) as error:
        if getattr(error, "http_status", None) in _REFUSED and (
            failure := _wrong_login(request, name, found)
        ):
            return failure
        return _failure(error, name, found)


def other_user(request: CredentialRequest, found: Profile) -> Failure | None:
    """Return a Failure if the context needs the login of a user who is not logged in.

    A different user may have logged in with the profile since `kubeconfig merge`.
    """
    if request.user in (None, found.shown_user):
        return None
    name = request.profile or DEFAULT_PROFILE
    ref = merged_cluster(request)
    cluster = ref.shown_name if ref is not None else str(request.cluster)
    return Failure(
        FORBIDDEN,
        f"{found.shown_user} is logged in at {found.url} (profile {name}). "
        f"{needed_login(found, str(request.user), cluster)} If {found.shown_user} has a role in the project, you can "
        f"instead run {merge_command(cluster, name)}.",
    )


def _wrong_login(request: CredentialRequest, name: str, found: Profile) -> Failure | None:
    """Return a Failure if the user who is logged in has no role in the requested project."""
    try:
        with found.client() as client:
            caller = client.caller()
    except ClustercertError:
        return None
    if any(request.project in (each.id, each.name, each.shown_name) for each in caller.projects):
        return None
    ref = merged_cluster(request)
    project = f"{ref.domain}/{ref.project}" if ref is not None else request.project
    advice = (
        needed_login(found, ref.login, ref.shown_name)
        if ref is not None and ref.login != caller.shown_name
        else "Ask an operator for a role, or choose another login with --profile NAME."
    )
    return Failure(
        FORBIDDEN,
        f"{caller.shown_name} is logged in at {found.url} (profile {name}), and has no role in the project {project}. "
        f"{advice}",
    )


def _failure(error: ClustercertError | InvalidOption, name: str, found: Profile) -> Failure:
    match error:
        case ApiError(http_status=401):
            reason = ": an operator sees why with `clustercert identity explain`" if found.oidc else ""
            failure = _log_in_again(name, f"{found.url} refused your login{reason}", cache_helps=False)
            return failure._replace(is_refused=True)
        case ApiError(http_status=status):
            temporary = status >= _FIRST_SERVER_ERROR or status in _TEMPORARY
            return Failure(exit_code(error), error.message, cache_helps=temporary, status=status)
        case InvalidOption():
            return Failure(USAGE, error.message)
        case _:
            return Failure(exit_code(error), error.message, cache_helps=isinstance(error, ClientError))


def _request(request: CredentialRequest, found: Profile) -> ValidatedKubeconfig:
    certificate_request = CertificateRequest(
        request.project or "",
        request.cluster or "",
        LifetimeOptions(expires_in=request.expires_in),
        local_key=not request.service_key,
        access_request=request.access_request,
        kind=request.kind,
    )
    with found.client() as client:
        return certificate_request.send(client)


def saved_login(name: str) -> Profile | Failure:
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
    """Return a Failure that tells the user to run `clustercert login` again, without an address or a user name."""
    return Failure(NOT_LOGGED_IN, f"{problem}. {profile.log_in_again(name)}", cache_helps)
