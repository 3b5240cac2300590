"""Gets a new credential for the exec plugin, and caches it.

Of many parallel calls, one asks the service, and the others wait for its result. Without a terminal, no call waits for
input: a missing login is an error that names the command to run.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from clustercert.cli.credential import cache
from clustercert.cli.credential.cache import Entry
from clustercert.cli.credential.lock import Lock, LockTimeout, locked
from clustercert.cli.exit_codes import FAILED, UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from clustercert.cli.credential.entry import Request
    from clustercert.cli.credential.source import Credential

T = TypeVar("T")

NETWORK_SECONDS = 10.0
# If a renewal fails while the certificate is valid, the next call uses the cache for this long.
_RETRY_SECONDS = 60


class Failure(NamedTuple):
    """Why there is no credential.

    Attributes:
        exit_code: see `exit_codes`.
        cache_helps: whether a cached certificate that is still valid can be used meanwhile.
        needs_user: whether a login in a browser window would help.
        is_refused: whether the service refused the login.
    """

    exit_code: int
    message: str
    cache_helps: bool = False
    needs_user: bool = False
    is_refused: bool = False


def renew(request: "Request") -> str | Failure:
    """Return the response for kubectl. Asks the service, unless a parallel call did."""
    completed = _completed(request)
    if isinstance(completed, Failure):
        return completed
    result = _renew(request)
    if not isinstance(result, Failure) or not result.needs_user:
        return result
    # Don't hold the lock here, because other calls for this cluster may wait for the user too.
    from clustercert.cli.credential.source import log_in

    return log_in(request) or _renew(request)


def _renew(request: "Request") -> str | Failure:
    if (failure := _identified(request)) is not None:
        return failure
    path = request.cache_path()
    if path is not None:
        make_folder(path)
    try:
        with locked(path) as lock:
            return _renew_locked(request, path, lock)
    except LockTimeout:
        return Failure(FAILED, f"Another clustercert holds {path}.lock. End it, and try again.")


def _renew_locked(request: "Request", path: str | None, lock: Lock) -> str | Failure:
    cached = cache.read(path) if path is not None else None
    now = time.time()
    if cached is not None and cached.is_fresh(now) and not request.refresh:
        return cached.body
    if (failed := lock.failure_meanwhile()) is not None:
        return Failure(*failed)
    from clustercert.cli.credential.source import obtain
    from clustercert.cli.session import warn_in_client

    warn_in_client(os.environ)
    result = _ask(obtain, request)
    if not isinstance(result, Failure):
        return store(path, result)
    if result.cache_helps and cached is not None and cached.is_usable(now) and not request.refresh:
        cached.renew = min(int(now) + _RETRY_SECONDS, cached.expires)
        _write(path, cached)
        return cached.body
    if not result.needs_user:
        lock.record_failure(result.exit_code, result.message)
    return result


def store(path: str | None, credential: "Credential") -> str:
    """Cache a credential, and return the response for kubectl."""
    entry = credential.cache_entry(time.time())
    if path is not None:
        make_folder(path)
        _write(path, entry)
    return entry.body


def _completed(request: "Request") -> Failure | None:
    """Fill in the profile and the project if the call does not name them."""
    if request.cluster is None:
        return Failure(
            2, "No cluster is named. Run `clustercert credential CLUSTER`, or set provideClusterInfo: true."
        )
    if request.profile is None or request.project is None:
        from clustercert.cli.credential.source import complete

        return complete(request)
    return None


def _identified(request: "Request") -> Failure | None:
    """Replace names by ids, so that each cluster has one credential, however it is named."""
    from clustercert.cli.credential.source import identify, is_identified

    if is_identified(request):
        return None
    found = _ask(identify, request)
    if isinstance(found, Failure):
        return found
    request.project, request.cluster = found
    return None


def _ask(question: "Callable[[Request], T | Failure]", request: "Request") -> "T | Failure":
    """Ask the service. Renews a login at an OIDC issuer if necessary."""
    from clustercert.cli.credential.source import renew_login, renew_refused_login

    # A renewal has no time limit: a new refresh token must be saved before the process ends.
    if (failure := renew_login(request)) is not None:
        return failure
    result = _with_time_limit(question, request)
    if isinstance(result, Failure) and result.is_refused and renew_refused_login(request):
        result = _with_time_limit(question, request)
    return result


def _with_time_limit(question: "Callable[[Request], T | Failure]", request: "Request") -> "T | Failure":
    """Ask the service in a thread, because a name lookup can't be interrupted."""
    results: list[T | Failure] = []
    thread = threading.Thread(target=lambda: results.append(question(request)), daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    if results:
        return results[0]
    if not thread.is_alive():
        return Failure(FAILED, "The credential could not be requested.")
    return Failure(
        UNAVAILABLE, f"The service did not answer within {NETWORK_SECONDS:.0f} seconds.", cache_helps=True
    )


def make_folder(path: str) -> None:
    """Create the cache's folder if that is possible."""
    from clustercert.secure_file import make_private_folder

    with contextlib.suppress(OSError):
        make_private_folder(Path(path).parent)


def _write(path: str | None, entry: Entry) -> None:
    """Write the cache file. If that fails, kubectl still gets the credential."""
    from clustercert.secure_file import write_private

    _, _, login = entry.login.partition(" ")
    if path is None or "\n" in login or not os.path.isabs(login) or not login.isascii():  # noqa: PTH117
        return
    with contextlib.suppress(OSError):
        write_private(Path(path), cache.rendered(entry))
