"""Uses a saved login to get a new certificate for the exec plugin, and caches the certificate.

If several calls of the plugin run in parallel, one call asks the service, and the other calls wait for the result.
Without a terminal, the plugin never waits for input: if the login is missing, the error message says which command to
run.
"""

import contextlib
import json
import os
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from clustercert.cli.credential import access_request as requests
from clustercert.cli.credential import cache
from clustercert.cli.credential.access_request import RequestState
from clustercert.cli.credential.cache import CachedCredential, RequestMark
from clustercert.cli.credential.certificate import Credential, due_time, next_check
from clustercert.cli.credential.request import CredentialRequest
from clustercert.cli.credential.service_requests import (
    Failure,
    ask_service,
    complete,
    identify,
    is_identified,
    issued_for_job,
    log_in,
    obtain,
    other_user,
    saved_login,
    with_login,
    with_time_limit,
)
from clustercert.cli.file_lock import Lock, LockTimeout, locked
from clustercert.cli.login.profile import DEFAULT_PROFILE, Profile
from clustercert.cli.lookup import reachable_cluster
from clustercert.cli.options import FAILED, USAGE
from clustercert.client.connection import ApiError
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from cryptography import x509

# If a renewal fails while the cached certificate is valid, try again only after this many seconds.
_RETRY_SECONDS = 60
# HTTP statuses with which the service refuses a certificate because of the access request.
_NO_ACCESS = frozenset({403, 404, 409})
_FORBIDDEN, _NOT_FOUND = 403, 404
# Don't renew a certificate of an access request if the renewal would add less than this time.
_MIN_GAIN = timedelta(minutes=1)


_NO_CLUSTER = Failure(
    USAGE,
    "No cluster is named. Run `clustercert credential CLUSTER`, or set provideClusterInfo: true in the kubeconfig.",
)


def renew(request: CredentialRequest) -> str | Failure:
    """Return the response for kubectl. Asks the service, unless a parallel call has cached a response."""
    completed = _completed(request)
    if isinstance(completed, Failure):
        return completed
    if request.refresh:
        from clustercert.cli.login.renewal import forget_failures

        forget_failures(request.profile or DEFAULT_PROFILE)
    result = _renew(request)
    if not isinstance(result, Failure) or not result.needs_user:
        return result
    # Don't hold the cache file's lock during the login, because other calls for this cluster may wait for the user too.
    return log_in(request) or _renew(request)


def _renew(request: CredentialRequest) -> str | Failure:
    # Parallel calls share a failure. A failure because of the user is only for calls that need the same user.
    found = saved_login(request.profile or DEFAULT_PROFILE)
    if isinstance(found, Profile) and (failure := other_user(request, found)) is not None:
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


def _renew_locked(request: CredentialRequest, path: str | None, lock: Lock) -> str | Failure:
    cached = cache.read(path, request.user) if path is not None else None
    if path is None:
        return _cached_or_new(request, path, lock, cached)
    cached, mark = _after_question(request, path, cached)
    if mark is None and _needs_service(request, cached) and lock.failure_meanwhile() is None:
        mark = _mark_open_request(request, path)
    result = _cached_or_new(request, path, lock, cached)
    if mark is None:
        return result
    if _refuses_access(result, request):
        result = _without_access(request, path, lock, cached, mark, result)
    elif mark.is_usable and cached is not None and not cached.access_request and result == cached.body:
        # The service could not issue a certificate with the request, so use only the standing groups for a while.
        requests.note_failure(path, mark, requests.AFTER_SILENCE_SECONDS)
    if isinstance(result, Failure) and result.status == _FORBIDDEN and not mark.is_usable:
        shown = requests.shown_id(mark.request)
        return result._replace(
            message=f"{result.message} `clustercert request show {shown}` shows how far your access request is."
        )
    return result


def _refuses_access(result: str | Failure, request: CredentialRequest) -> TypeGuard[Failure]:
    """Whether the service refused a certificate because of its access request.

    It may issue a certificate without the request.
    """
    return request.access_request is not None and isinstance(result, Failure) and result.status in _NO_ACCESS


def _without_access(
    request: CredentialRequest,
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
    request: CredentialRequest, path: str, cached: CachedCredential | None
) -> tuple[CachedCredential | None, RequestMark | None]:
    """If it is time, ask about the user's access request.

    If the access request is usable, `request` names it afterwards.

    Returns the cached certificate, unless its access request has ended, and the mark of an open access request.
    """
    found = saved_login(request.profile or DEFAULT_PROFILE)
    mark = requests.mark_of(path, cached, found.shown_user) if isinstance(found, Profile) else None
    if mark is None:
        return cached, None
    if cached is not None and cached.access_request not in ("", mark.request):
        # The cached certificate has the groups of an earlier request. The earlier request must have ended before this
        # request was created.
        cached = None
    if request.refresh or mark.is_due(time.time()):
        state = ask_service(partial(_state_of, request_id=mark.request), request, requests.ANSWER_SECONDS)
        if isinstance(state, Failure):
            requests.note_answer(path, mark, None)
        elif state is None or state.until is None:
            why = state.next if state is not None else "The service does not know it."
            _note(f"The access request {requests.shown_id(mark.request)} is over. {why}")
            return _forget_access(path, cached), None
        else:
            requests.note_answer(path, mark, state)
            _keep_until_end(path, cached, state.until)
    request.access_request = mark.request if mark.is_usable else None
    return cached, mark


def _needs_service(request: CredentialRequest, cached: CachedCredential | None) -> bool:
    return request.refresh or cached is None or not cached.is_fresh(time.time())


def _mark_open_request(request: CredentialRequest, path: str) -> RequestMark | None:
    """Ask whether the user has an open access request for the cluster, such as one created in the console.

    If there is one, marks it. If it is usable, `request` names it afterwards.
    """
    found = saved_login(request.profile or DEFAULT_PROFILE)
    if isinstance(found, Failure):
        return None
    opened = ask_service(_open_request, request, requests.ANSWER_SECONDS)
    if opened is None or isinstance(opened, Failure):
        return None
    request_id, state = opened
    mark = RequestMark(request=request_id, user=found.shown_user)
    requests.note_answer(path, mark, state)
    request.access_request = mark.request if mark.is_usable else None
    return mark


def _open_request(request: CredentialRequest) -> tuple[str, RequestState] | Failure | None:
    def ask(found: Profile) -> tuple[str, RequestState] | None:
        with found.client() as client:
            return requests.open_request(client, request.cluster or "")

    return with_login(request, ask)


def _state_of(request: CredentialRequest, request_id: str) -> RequestState | Failure | None:
    """Ask about an access request. Returns `None` if no access request has this id."""

    def ask(found: Profile) -> RequestState | None:
        try:
            with found.client() as client:
                return requests.read_state(client, request_id)
        except ApiError as error:
            if error.http_status == _NOT_FOUND:
                return None
            raise

    return with_login(request, ask)


def _keep_until_end(path: str, cached: CachedCredential | None, until: datetime | None) -> None:
    """If a cached certificate is valid until its access request ends, don't renew it for the next minute."""
    now = time.time()
    if cached is None or not cached.access_request or until is None or now < cached.renew:
        return
    if until - datetime.fromtimestamp(cached.not_after, UTC) < _MIN_GAIN:
        cached.renew = min(int(now) + _RETRY_SECONDS, cached.expires)
        _write(path, cached)


def _cached_or_new(
    request: CredentialRequest, path: str | None, lock: Lock, cached: CachedCredential | None
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
    if cached is not None:
        request.kind = "token" if cached.is_token else "certificate"
    is_usable = cached is not None and cached.is_usable(now) and not request.refresh
    is_early = False
    if (
        cached is not None
        and is_usable
        and is_asked_for
        and now < (due := due_time(cached.issued, cached.expires))
    ):
        # The certificate is not due, but its CA may be about to be replaced. If the service does not answer, use the
        # certificate.
        if ask_service(partial(_is_of_current_ca, cached), request) is not False:
            cached.renew = next_check(int(now), due)
            _write(path, cached)
            return cached.body
        is_early = True
    result = ask_service(obtain, request)
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


def _report(request: CredentialRequest, cached: CachedCredential | None, issued: Credential) -> None:
    """Say that the certificate is the first one with an access request, and that the login ends soon."""
    if issued.access_request is not None and (cached is None or not cached.access_request):
        _note(
            f"kubectl uses the access request {requests.shown_id(issued.access_request)} now. The certificate is valid"
            f" until {rfc3339(datetime.now(UTC) + issued.lifetime)}."
        )
    if issued.notes and _is_new_note(request, issued.notes):
        for note in issued.notes:
            _note(note)
    now = time.time()
    if issued.cache_entry(now).is_reminder_due(now):
        from clustercert.cli.credential.reminder import remind_of_login

        remind_of_login(request.profile or DEFAULT_PROFILE, issued.login)


def _is_new_note(request: CredentialRequest, notes: tuple[str, ...]) -> bool:
    """Whether notes about a token were not shown for this credential before. Records that they are shown now."""
    from clustercert.cli.terminal import notices

    path = request.cache_path()
    return path is not None and notices.is_new(Path(path).name, "\n".join(notes))


def issue_for_job(request: CredentialRequest) -> str | Failure:
    """Get a certificate with the token in CLUSTERCERT_TOKEN. Returns the response for kubectl. Caches nothing."""
    from clustercert.cli.session import warn_in_client

    if request.cluster is None:
        return _NO_CLUSTER
    warn_in_client(os.environ)
    result = with_time_limit(issued_for_job, request)
    if isinstance(result, Failure):
        return result
    for note in result.notes:
        _note(note)
    return result.cache_entry(time.time()).body


def _note(text: str) -> None:
    """Print a message on kubectl's terminal."""
    from clustercert.cli.terminal.output import print_note

    print_note(f"clustercert: {text}")


def store(path: str | None, credential: "Credential") -> str:
    """Cache a credential, and return the response for kubectl."""
    entry = credential.cache_entry(time.time())
    if path is not None:
        make_folder(path)
        _write(path, entry)
    return entry.body


def _completed(request: CredentialRequest) -> Failure | None:
    """Check that a cluster is given, and fill in a missing profile and project. See `complete`."""
    if request.cluster is None:
        return _NO_CLUSTER
    if request.profile is None or request.project is None:
        return complete(request)
    return None


def _identified(request: CredentialRequest) -> Failure | None:
    """Replace names in a request by ids, so that a cluster has one cached credential, whether given by name or id."""
    if is_identified(request):
        return None
    found = ask_service(identify, request)
    if isinstance(found, Failure):
        return found
    request.project, request.cluster = found
    return None


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


def _is_of_current_ca(cached: CachedCredential, request: CredentialRequest) -> bool | Failure:
    """Whether the CA that signed a cached certificate is the CA that signs the cluster's certificates now.

    Returns True if the certificate does not name its CA, and a Failure for every error.
    """

    def ask(found: Profile) -> bool:
        with found.client() as client:
            cluster = reachable_cluster(client, found, request.cluster or "", request.project)
        key_id = _ca_key_id(cached)
        return key_id is None or cluster.get("client_ca_key_id") in (None, key_id)

    return with_login(request, ask)


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
