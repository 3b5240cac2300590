"""How the exec plugin uses an access request: the mark beside the cache file, and the service's answers.

`clustercert request create` writes the mark, and so does the plugin if it finds an open request of the user when it
needs a new certificate. While the mark exists, or the cached certificate has the request's groups,
the plugin asks the service before it uses the cache. So the plugin notices an approval and an early end by itself.
"""

import contextlib
import re
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustercert.cli.credential import cache
from clustercert.cli.credential.cache import CachedCredential, RequestMark
from clustercert.cli.file_lock import LockTimeout, locked
from clustercert.cli.options import CommandError, UnknownName
from clustercert.model.ids import is_id
from clustercert.model.times import parse_rfc3339
from clustercert.secure_file import make_private_folder, write_private

if TYPE_CHECKING:
    from clustercert.client.connection import ServiceClient
    from clustercert.model import JsonObject

# Ask the service about a request at most this often, also in parallel calls of the plugin.
ASK_AGAIN_SECONDS = 2
# How long to wait for the answer. Without an answer, the plugin uses a cached certificate.
ANSWER_SECONDS = 3.0
# If there was no answer, ask again after this many seconds.
AFTER_SILENCE_SECONDS = 10
# If the policy refuses a certificate with the request, use the standing groups for this many seconds.
AFTER_REFUSAL_SECONDS = 60
# The number of digits of an id in messages and tables. Commands accept these digits instead of the whole id.
SHOWN_DIGITS = 8
_DIGITS = re.compile(rf"[0-9a-f]{{{SHOWN_DIGITS},32}}", re.ASCII)
# The API path of access requests.
PATH = "access-requests"


@dataclass(frozen=True, slots=True)
class RequestState:
    """What the service says about a request.

    Attributes:
        is_usable: whether certificates can have the request's groups now.
        until: when the request changes by itself; `None` if it is closed. Certificates with the groups of an active
            request expire by then.
        next: a sentence that says what happens next.
    """

    is_usable: bool
    until: datetime | None
    next: str

    @classmethod
    def parse(cls, body: "JsonObject") -> "RequestState":
        """Parse a request from the API. Raises LookupError, TypeError or ValueError."""
        due_at = body["due_at"]
        until = parse_rfc3339(str(due_at)) if due_at is not None else None
        return cls(body["usable"] is True, until, str(body["next"]))


def read_state(client: "ServiceClient", request_id: str) -> RequestState:
    """Ask the service about a request. Raises ClientError."""
    from clustercert.client.administration import path_of
    from clustercert.client.connection import OWN

    body = client.exchange("GET", OWN + path_of(PATH, request_id)).body
    with client.check_format():
        return RequestState.parse(body)


def open_request(client: "ServiceClient", cluster_id: str) -> tuple[str, RequestState] | None:
    """Return the id and the state of the caller's open request for a cluster, or `None`. Raises ClientError."""
    found = next(
        client.list_all(f"/{PATH}", "access_requests", mine="true", state="open", cluster=cluster_id), None
    )
    if found is None:
        return None
    with client.check_format():
        return str(found["id"]), RequestState.parse(found)


def full_id(client: "ServiceClient", text: str) -> str:
    """Return the id of the access request whose id begins with a text. See `find_request`."""
    return text if is_id(text) else str(find_request(client, text)["id"])


def find_request(client: "ServiceClient", text: str) -> "JsonObject":
    """Return the access request whose id begins with a text. Raises ClientError, UnknownName or CommandError."""
    from clustercert.client.administration import path_of
    from clustercert.client.connection import OWN

    digits = text.lower()
    if is_id(digits):
        return client.exchange("GET", OWN + path_of(PATH, digits)).body
    if not _DIGITS.fullmatch(digits):
        raise UnknownName(
            f"{text} is not the id of an access request. Give the id, or at least its first {SHOWN_DIGITS} digits."
        )
    found = list(islice(client.list_all(f"/{PATH}", "access_requests", id=digits), 2))
    if not found:
        raise UnknownName(
            f"There is no access request {text} that you may see. `clustercert request list --all` lists the requests."
        )
    if len(found) > 1:
        raise CommandError(
            f"The ids of several access requests begin with {text}. Give more digits of the id."
        )
    return found[0]


def offers_of(client: "ServiceClient", cluster_id: str) -> "list[dict[str, Any]]":
    """Return what the caller can request for a cluster. Raises ClientError."""
    from clustercert.client.administration import path_of
    from clustercert.client.connection import OWN, json_object

    body: Any = client.exchange("GET", OWN + path_of("clusters", cluster_id, "offers")).body
    with client.check_format():
        return [json_object(each) for each in body["offers"]]


def shown_id(request_id: str) -> str:
    """Return the digits of a request's id that messages show."""
    return request_id[:SHOWN_DIGITS]


def mark(path: str, request_id: str, user: str) -> None:
    """Let the plugin use an access request. Raises OSError if the mark can't be written.

    Args:
        path: the cache file of the credential.
        user: the user who created the request, as DOMAIN/NAME.
    """
    make_private_folder(Path(path).parent)
    with contextlib.ExitStack() as stack:
        # A call of the plugin that holds the lock for long must not prevent the mark.
        with contextlib.suppress(LockTimeout):
            stack.enter_context(locked(path, ANSWER_SECONDS))
        write_private(
            Path(cache.mark_path(path)), cache.rendered_mark(RequestMark(request=request_id, user=user))
        )


def make_due(path: str, request_id: str) -> None:
    """If the mark beside a cache file names an access request, let the plugin's next call ask about this request."""
    found = cache.read_mark(path)
    if found is not None and found.request == request_id:
        _save(path, found, 0)


def unmark(path: str) -> None:
    """Delete the mark beside a cache file, if there is one."""
    with contextlib.suppress(OSError):
        Path(cache.mark_path(path)).unlink()


def mark_of(path: str, cached: CachedCredential | None, user: str) -> RequestMark | None:
    """Return the mark of a user beside a cache file, or a new mark if the cached certificate has a request's groups."""
    found = cache.read_mark(path)
    if found is not None and found.user == user:
        return found
    if cached is not None and cached.access_request:
        return RequestMark(request=cached.access_request, user=user, is_usable=True)
    return None


def note_answer(path: str, mark: RequestMark, state: RequestState | None) -> None:
    """Save what the service said about an open request.

    Args:
        state: the answer; `None` if the service did not answer.
    """
    if state is not None:
        mark.is_usable = state.is_usable
    _save(path, mark, AFTER_SILENCE_SECONDS if state is None else ASK_AGAIN_SECONDS)


def note_failure(path: str, mark: RequestMark, seconds: float) -> None:
    """Save that the service issues no certificates with the request for now, so that the plugin waits."""
    mark.is_usable = False
    _save(path, mark, seconds)


def _save(path: str, mark: RequestMark, seconds: float) -> None:
    mark.ask_at = time.time() + seconds
    # Without the mark, the next call asks again.
    with contextlib.suppress(OSError):
        write_private(Path(cache.mark_path(path)), cache.rendered_mark(mark))
