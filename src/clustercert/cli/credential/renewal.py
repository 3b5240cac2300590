"""Uses a saved login to get a new certificate for the exec plugin, and caches the certificate.

If several calls of the plugin run in parallel, one call asks the service, and the other calls wait for the result.
Without a terminal, the plugin never waits for input: if the login is missing, the error message says which command to
run.
"""

import contextlib
import json
import os
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard, TypeVar

from clustercert.cli.credential import access_request as requests
from clustercert.cli.credential import cache
from clustercert.cli.credential.access_request import RequestState
from clustercert.cli.credential.cache import CachedCredential, RequestMark
from clustercert.cli.credential.needed_login import merge_command, merged_cluster, needed_login
from clustercert.cli.file_lock import Lock, LockTimeout, locked
from clustercert.cli.kubeconfig.request import CertificateRequest
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
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from cryptography import x509

    from clustercert.cli.credential.entry import CredentialRequest

T = TypeVar("T")

# How long a call of the exec plugin waits for the service.
NETWORK_SECONDS = 10.0
# If a renewal fails while the cached certificate is valid, try again only after this many seconds.
_RETRY_SECONDS = 60
# Tell kubectl that the certificate expires this much earlier, so that kubectl asks for a new certificate in time.
_EARLY = timedelta(seconds=60)
_MIN_LEFT = timedelta(minutes=5)
# How often to ask whether the CA of a long-lived certificate is being replaced. Certificates of the default lifetime
# are renewed sooner.
_CA_CHECK = timedelta(hours=8)
# How long before the end of a login the plugin reminds the user.
_REMINDER = timedelta(hours=1)
# HTTP statuses below 500 that mean a temporary error.
_TEMPORARY = frozenset({408, 429})
_FIRST_SERVER_ERROR = 500
# HTTP statuses with which the service refuses a request for a project in which the user has no role.
_REFUSED = frozenset({401, 403, 404})
# HTTP statuses with which the service refuses a certificate because of the access request.
_NO_ACCESS = frozenset({403, 404, 409})
_FORBIDDEN, _NOT_FOUND = 403, 404
# Don't renew a certificate of an access request if the new one would be valid for less than this time longer.
_MIN_GAIN = timedelta(minutes=1)
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


_NO_CLUSTER = Failure(
    USAGE,
    "No cluster is named. Run `clustercert credential CLUSTER`, or set provideClusterInfo: true in the kubeconfig.",
)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its key, in PEM.

    Attributes:
        lifetime: the time from the certificate's issue to its expiry.
        login: a string that identifies the version of the login's file, from `cache.login_state`.
        user: the user who was logged in, as DOMAIN/NAME.
        login_ends_at: when the login ends; `None` if the login renews itself, or does not end.
        access_request: the id of the access request whose groups the certificate has; `None` if there is none.
    """

    certificate_pem: str
    key_pem: str
    lifetime: timedelta
    login: str
    user: str
    login_ends_at: datetime | None = None
    access_request: str | None = None

    @classmethod
    def from_kubeconfig(cls, kubeconfig: ValidatedKubeconfig, login: str, user: str) -> "Credential":
        content = kubeconfig.credential
        certificate, key = content["client-certificate-data"], content["client-key-data"]
        pair = b64decode(certificate).decode(), b64decode(key).decode()
        return cls(*pair, kubeconfig.lifetime, login, user, access_request=kubeconfig.access_request)

    def cache_entry(self, now: float) -> CachedCredential:
        """Return the cache entry of a certificate that was issued at `now`, in seconds by this machine's clock.

        See `_due` and `_CA_CHECK` for the time of the renewal.
        """
        expires = datetime.fromtimestamp(now, UTC) + self.lifetime
        status = {
            "clientCertificateData": self.certificate_pem,
            "clientKeyData": self.key_pem,
            "expirationTimestamp": rfc3339(expires - _EARLY),
        }
        body = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status}
        return CachedCredential(
            issued=int(now),
            renew=_next_check(int(now), _due(int(now), int(expires.timestamp()))),
            expires=int(expires.timestamp()),
            remind=int((self.login_ends_at - _REMINDER).timestamp()) if self.login_ends_at else 0,
            user=self.user,
            access_request=self.access_request or "",
            login=self.login,
            body=json.dumps(body, separators=(",", ":")) + "\n",
        )


def _due(issued: int, expires: int) -> int:
    """Return when to renew a certificate, in seconds since the epoch.

    A certificate is renewed when a fifth of its lifetime or 5 minutes is left, whichever is longer, but never in the
    first half of the lifetime.
    """
    lifetime = timedelta(seconds=expires - issued)
    left = min(max(lifetime / 5, _MIN_LEFT), lifetime / 2)
    return expires - int(left.total_seconds())


def _next_check(now: int, due: int) -> int:
    """Return when to ask the service again, about the CA or for a new certificate."""
    return min(due, now + int(_CA_CHECK.total_seconds()))


def renew(request: "CredentialRequest") -> str | Failure:
    """Return the response for kubectl. Asks the service, unless a parallel call has cached a response."""
    completed = _completed(request)
    if isinstance(completed, Failure):
        return completed
    result = _renew(request)
    if not isinstance(result, Failure) or not result.needs_user:
        return result
    # Don't hold the cache file's lock during the login, because other calls for this cluster may wait for the user too.
    return log_in(request) or _renew(request)


def _renew(request: "CredentialRequest") -> str | Failure:
    # Parallel calls share a failure, but only those calls that need the same user may fail because of the user.
    found = _login(request.profile or DEFAULT_PROFILE)
    if isinstance(found, Profile) and (failure := _other_user(request, found)) is not None:
        return failure
    if (failure := _identified(request)) is not None:
        return failure
    path = request.cache_path()
    if path is not None:
        make_folder(path)
    try:
        with locked(path) as lock:
            return _renew_locked(request, path, lock)
    except LockTimeout:
        return Failure(
            FAILED, f"Another clustercert process holds {path}.lock. End that process, and try again."
        )


def _renew_locked(request: "CredentialRequest", path: str | None, lock: Lock) -> str | Failure:
    cached = cache.read(path, request.user) if path is not None else None
    if path is None:
        return _cached_or_new(request, path, lock, cached)
    cached, mark = _after_question(request, path, cached)
    result = _cached_or_new(request, path, lock, cached)
    if mark is None:
        return result
    if _refuses_access(result, request):
        result = _without_access(request, path, lock, cached, mark, result)
    elif mark.is_usable and cached is not None and not cached.access_request and result == cached.body:
        # The service could not issue a certificate with the request, so use the standing one for a while.
        requests.note_failure(path, mark, requests.AFTER_SILENCE_SECONDS)
    if isinstance(result, Failure) and result.status == _FORBIDDEN and not mark.is_usable:
        shown = requests.shown_id(mark.request)
        return result._replace(
            message=f"{result.message} `clustercert request show {shown}` shows how far your access request is."
        )
    return result


def _refuses_access(result: str | Failure, request: "CredentialRequest") -> TypeGuard[Failure]:
    """Whether the service refused a certificate that has an access request, so that one without may be issued."""
    return request.access_request is not None and isinstance(result, Failure) and result.status in _NO_ACCESS


def _without_access(
    request: "CredentialRequest",
    path: str,
    lock: Lock,
    cached: CachedCredential | None,
    mark: RequestMark,
    refusal: Failure,
) -> str | Failure:
    """Use only the standing groups, because the service refuses a certificate with the access request."""
    _note(f"The access request {requests.shown_id(mark.request)} was not used: {refusal.message}")
    if refusal.status == _FORBIDDEN:
        # The policy may have a condition on the time.
        requests.note_failure(path, mark, requests.AFTER_REFUSAL_SECONDS)
    else:
        cached = _forget_access(path, cached)
    request.access_request = None
    return _cached_or_new(request, path, lock, None if cached and cached.access_request else cached)


def _forget_access(path: str, cached: CachedCredential | None) -> CachedCredential | None:
    """Delete the mark, and the cached certificate if it has the groups of an access request.

    Returns the cached certificate if it was not deleted.
    """
    requests.unmark(path)
    if cached is None or not cached.access_request:
        return cached
    with contextlib.suppress(OSError):
        Path(path).unlink()
    return None


def _after_question(
    request: "CredentialRequest", path: str, cached: CachedCredential | None
) -> tuple[CachedCredential | None, RequestMark | None]:
    """Ask about the user's access request, if it is time, and let `request` name the access request if it is usable.

    Returns the cached certificate, unless its access request has ended, and the mark of an open access request.
    """
    found = _login(request.profile or DEFAULT_PROFILE)
    mark = requests.mark_of(path, cached, found.shown_user) if isinstance(found, Profile) else None
    if mark is None:
        return cached, None
    if cached is not None and cached.access_request not in ("", mark.request):
        # The cached certificate has the groups of an earlier request. It must have ended before this one was created.
        cached = None
    if request.refresh or mark.is_due(time.time()):
        state = _ask(partial(_state_of, request_id=mark.request), request, requests.ANSWER_SECONDS)
        if isinstance(state, Failure):
            requests.note_answer(path, mark, None)
        elif state is None or not state.is_open:
            why = state.next if state is not None else "The service does not know it."
            _note(f"The access request {requests.shown_id(mark.request)} is over. {why}")
            return _forget_access(path, cached), None
        else:
            requests.note_answer(path, mark, state)
            _keep_until_end(path, cached, state.until)
    request.access_request = mark.request if mark.is_usable else None
    return cached, mark


def _state_of(request: "CredentialRequest", request_id: str) -> RequestState | Failure | None:
    """Ask about an access request. Returns `None` if there is none with this id, or a Failure."""

    def ask(found: Profile) -> RequestState | None:
        try:
            with found.client() as client:
                return requests.read_state(client, request_id)
        except ApiError as error:
            if error.http_status == _NOT_FOUND:
                return None
            raise

    return _with_login(request, ask)


def _keep_until_end(path: str, cached: CachedCredential | None, until: datetime | None) -> None:
    """If a cached certificate is valid until its access request ends, don't renew it for the next minute."""
    now = time.time()
    if cached is None or not cached.access_request or until is None or now < cached.renew:
        return
    leaf = _leaf(cached)
    if leaf is not None and until - leaf.not_valid_after_utc < _MIN_GAIN:
        cached.renew = min(int(now) + _RETRY_SECONDS, cached.expires)
        _write(path, cached)


def _cached_or_new(
    request: "CredentialRequest", path: str | None, lock: Lock, cached: CachedCredential | None
) -> str | Failure:
    """Return a cached response, or ask the service for a certificate."""
    now = time.time()
    is_asked_for = cached is not None and cached.access_request == (request.access_request or "")
    if cached is not None and is_asked_for and cached.is_fresh(now) and not request.refresh:
        return cached.body
    if (failed := lock.failure_meanwhile()) is not None:
        return Failure(*failed)
    from clustercert.cli.session import warn_in_client

    warn_in_client(os.environ)
    is_usable = cached is not None and cached.is_usable(now) and not request.refresh
    is_early = False
    if (
        cached is not None
        and is_usable
        and is_asked_for
        and now < (due := _due(cached.issued, cached.expires))
    ):
        # The certificate is not due, but its CA may be on its way out. A failure of this question changes nothing.
        if _ask(partial(_is_of_current_ca, cached), request) is not False:
            cached.renew = _next_check(int(now), due)
            _write(path, cached)
            return cached.body
        is_early = True
    result = _ask(obtain, request)
    if not isinstance(result, Failure):
        _report(request, cached, result)
        return store(path, result)
    if (result.cache_helps or is_early) and cached is not None and is_usable:
        if is_asked_for:
            cached.renew = min(int(now) + _RETRY_SECONDS, cached.expires)
            _write(path, cached)
        return cached.body
    if not result.needs_user and not _refuses_access(result, request):
        lock.record_failure(result.exit_code, result.message)
    return result


def _report(request: "CredentialRequest", cached: CachedCredential | None, issued: Credential) -> None:
    """Say that the certificate is the first one with an access request, and that the login ends soon."""
    if issued.access_request is not None and (cached is None or not cached.access_request):
        _note(
            f"kubectl uses the access request {requests.shown_id(issued.access_request)} now. The certificate is valid"
            f" until {rfc3339(datetime.now(UTC) + issued.lifetime)}."
        )
    now = time.time()
    if issued.cache_entry(now).is_reminder_due(now):
        from clustercert.cli.credential.reminder import remind_of_login

        remind_of_login(request.profile or DEFAULT_PROFILE, issued.login)


def issue_for_job(request: "CredentialRequest") -> str | Failure:
    """Get a certificate with the token in CLUSTERCERT_TOKEN. Returns the response for kubectl. Caches nothing."""
    from clustercert.cli.session import warn_in_client

    if request.cluster is None:
        return _NO_CLUSTER
    warn_in_client(os.environ)
    result = _with_time_limit(_issued_for_job, request)
    return result if isinstance(result, Failure) else result.cache_entry(time.time()).body


def _issued_for_job(request: "CredentialRequest") -> Credential | Failure:
    from clustercert.cli.login import environment

    try:
        # Raises UsageError if only one of CLUSTERCERT_URL and CLUSTERCERT_TOKEN is set.
        environment.is_used(os.environ)
        found = environment.log_in(os.environ)
        if not is_identified(request):
            request.project, request.cluster = _ids(request, found)
        if request.access_request is not None:
            with found.client() as client:
                request.access_request = requests.full_id(client, request.access_request)
        return Credential.from_kubeconfig(_request(request, found), "", found.shown_user)
    except ClustercertError as error:
        return Failure(exit_code(error), error.message)
    except InvalidOption as error:
        return Failure(USAGE, error.message)


def _note(text: str) -> None:
    """Print a message on kubectl's terminal."""
    from clustercert.cli.output import print_note

    print_note(f"clustercert: {text}")


def store(path: str | None, credential: "Credential") -> str:
    """Cache a credential, and return the response for kubectl."""
    entry = credential.cache_entry(time.time())
    if path is not None:
        make_folder(path)
        _write(path, entry)
    return entry.body


def _completed(request: "CredentialRequest") -> Failure | None:
    """Check that a cluster is given, and fill in a missing profile and project. See `complete`."""
    if request.cluster is None:
        return _NO_CLUSTER
    if request.profile is None or request.project is None:
        return complete(request)
    return None


def _identified(request: "CredentialRequest") -> Failure | None:
    """Replace names in a request by ids, so that a cluster has one cached credential, whether given by name or id."""
    if is_identified(request):
        return None
    found = _ask(identify, request)
    if isinstance(found, Failure):
        return found
    request.project, request.cluster = found
    return None


def _ask(
    question: Callable[["CredentialRequest"], T | Failure],
    request: "CredentialRequest",
    seconds: float | None = None,
) -> T | Failure:
    """Ask the service. Renews an expired or refused login at an OIDC issuer.

    Args:
        seconds: the time limit for one answer; by default NETWORK_SECONDS.
    """
    # Renew the login without a time limit: a new refresh token must be saved before the process exits.
    if (failure := renew_login(request)) is not None:
        return failure
    result = _with_time_limit(question, request, seconds)
    if isinstance(result, Failure) and result.is_refused and renew_refused_login(request):
        result = _with_time_limit(question, request, seconds)
    return result


def _with_time_limit(
    question: Callable[["CredentialRequest"], T | Failure],
    request: "CredentialRequest",
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


def make_folder(path: str) -> None:
    """Create the folder of a cache file, if possible."""
    from clustercert.secure_file import make_private_folder

    with contextlib.suppress(OSError):
        make_private_folder(Path(path).parent)


def _write(path: str | None, entry: CachedCredential) -> None:
    """Write the cache file. Ignores errors, because kubectl gets the credential anyway."""
    from clustercert.secure_file import write_private

    _, _, login = entry.login.partition(" ")
    if path is None or "\n" in login or not os.path.isabs(login) or not login.isascii():  # noqa: PTH117
        return
    with contextlib.suppress(OSError):
        write_private(Path(path), cache.rendered(entry))


def complete(request: "CredentialRequest") -> Failure | None:
    """Fill in a missing profile. Also fills in a missing project, if the cluster is given by id."""
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


def is_identified(request: "CredentialRequest") -> bool:
    """Whether the cluster and its project are given by id."""
    return _is_cluster_id(request) and request.project is not None and is_id(request.project)


def _is_cluster_id(request: "CredentialRequest") -> bool:
    return CLUSTER_ID.fullmatch(request.cluster or "") is not None


def identify(request: "CredentialRequest") -> tuple[str, str] | Failure:
    """Find the ids of the project and the cluster. Returns a Failure for every error."""
    return _with_login(request, lambda found: _ids(request, found))


def _ids(request: "CredentialRequest", found: Profile) -> tuple[str, str]:
    """Find the ids of the project and the cluster. Raises ClustercertError."""
    with found.client() as client:
        cluster = reachable_cluster(client, found, request.cluster or "", request.project)
    return str(cluster["project_id"]), str(cluster["id"])


def renewed_for(request: "CredentialRequest") -> str:
    """Return whose certificate was renewed, and for which cluster: `DOMAIN/NAME in DOMAIN/PROJECT/CLUSTER`.

    Without --profile, the current profile decides. A user with several profiles must see if it was the wrong one.
    """

    def ask(found: Profile) -> str:
        with found.client() as client:
            cluster = reachable_cluster(client, found, request.cluster or "", request.project)
        return f"{found.shown_user} in {full_name(cluster)}"

    found = _ask(partial(_with_login, question=ask), request)
    return f"the profile {request.profile} in {request.cluster}" if isinstance(found, Failure) else found


def renew_login(request: "CredentialRequest") -> Failure | None:
    """Renew an expired login at an OIDC issuer. Returns a Failure if the renewal fails."""
    name = request.profile or DEFAULT_PROFILE
    found = _login(name)
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


def renew_refused_login(request: "CredentialRequest") -> bool:
    """Renew a login whose token the service refused before the token expired. Returns whether there is a new token."""
    name = request.profile or DEFAULT_PROFILE
    found = _login(name)
    if isinstance(found, Failure) or not found.is_renewable:
        return False
    from clustercert.cli.login import renewal as login_renewal

    try:
        login_renewal.renew(name, found, refused=found.token)
    except ClustercertError:
        return False
    return True


def log_in(request: "CredentialRequest") -> Failure | None:
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


def obtain(request: "CredentialRequest") -> Credential | Failure:
    """Request a certificate. Returns a Failure for every error."""
    state = cache.login_state(str(profile.path_of(request.profile or DEFAULT_PROFILE, os.environ)))

    def ask(found: Profile) -> Credential:
        credential = Credential.from_kubeconfig(_request(request, found), state, found.shown_user)
        return replace(credential, login_ends_at=found.ends_at)

    return _with_login(request, ask)


def _is_of_current_ca(cached: CachedCredential, request: "CredentialRequest") -> bool | Failure:
    """Whether the CA that signed a cached certificate is the CA with which its cluster's certificates are signed now.

    Returns True if the certificate does not name its CA, and a Failure for every error.
    """

    def ask(found: Profile) -> bool:
        with found.client() as client:
            cluster = reachable_cluster(client, found, request.cluster or "", request.project)
        key_id = _ca_key_id(cached)
        return key_id is None or cluster.get("client_ca_key_id") in (None, key_id)

    return _with_login(request, ask)


def _ca_key_id(cached: CachedCredential) -> str | None:
    """Return the authority key identifier of a cached certificate as lower-case hex, or `None` if it has none."""
    from clustercert.pki.certificates import issuer_key_id

    leaf = _leaf(cached)
    return issuer_key_id(leaf) if leaf is not None else None


def _leaf(cached: CachedCredential) -> "x509.Certificate | None":
    """Return a cached certificate, or `None` if it is damaged."""
    from cryptography import x509

    try:
        pem = json.loads(cached.body)["status"]["clientCertificateData"]
        return x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _with_login(request: "CredentialRequest", question: Callable[[Profile], T]) -> T | Failure:
    """Ask the service, with the saved login as authentication. Returns a Failure for every error."""
    name = request.profile or DEFAULT_PROFILE
    found = _login(name)
    if isinstance(found, Failure):
        return found
    if (failure := _other_user(request, found)) is not None:
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


def _other_user(request: "CredentialRequest", found: Profile) -> Failure | None:
    """Return a Failure if the context needs the login of another user than the one who is logged in.

    The profile may have got the login of another user after `kubeconfig merge`.
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


def _wrong_login(request: "CredentialRequest", name: str, found: Profile) -> Failure | None:
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


def _request(request: "CredentialRequest", found: Profile) -> ValidatedKubeconfig:
    certificate_request = CertificateRequest(
        request.project or "",
        request.cluster or "",
        LifetimeOptions(expires_in=request.expires_in),
        local_key=not request.service_key,
        access_request=request.access_request,
    )
    with found.client() as client:
        return certificate_request.send(client)


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
    """Return a Failure that tells the user to run `clustercert login` again, without an address or a user name."""
    return Failure(NOT_LOGGED_IN, f"{problem}. {profile.log_in_again(name)}", cache_helps)
