"""The state of one request, which the middleware and the routes share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from clustercert.authn.credentials import UnverifiedCredential
from clustercert.model import Caller, IssueRequest, Origin, User
from clustercert.model.errors import ClustercertError
from clustercert.observability import log

_KEY = "clustercert.context"


@dataclass(slots=True)
class RequestContext:
    """The context of one request. The middleware creates the context, and routes add fields to it.

    Attributes:
        extend_deadline: restarts the request's time limit.
        credential: the credential of a request that this process sends to itself; `None` if the credential is in the
            headers.
        caller: the authenticated caller; `None` before authentication.
        certificate_of: the project id and cluster id in a request for a certificate; `None` for other requests.
        issue_request: the parsed request for a certificate; `None` until its body is parsed.
        dry_run: whether the request is a dry run: nothing is issued, and denials are not recorded.
        log_fields: fields to add to the request's log line. Names of fields about what the request acts on begin with
            `target_`. The caller is not among these fields: see `log_caller`.
        quiet: whether to log the request at level debug if it succeeds.
        browser_rules: header fields of the response that browsers obey, in place of `responses.BROWSER_RULES`.
        error_page: returns the response to a failure, in place of the JSON of the API.
    """

    origin: Origin
    extend_deadline: Callable[[], None]
    credential: UnverifiedCredential | None = None
    caller: Caller | None = None
    certificate_of: tuple[str, str] | None = None
    issue_request: IssueRequest | None = None
    dry_run: bool = False
    log_fields: dict[str, object] = field(default_factory=dict)
    quiet: bool = False
    browser_rules: tuple[tuple[bytes, bytes], ...] | None = None
    error_page: Callable[[ClustercertError], Response] | None = None


def attach(scope: Scope, context: RequestContext) -> None:
    scope[_KEY] = context


def context_of(request: Request | Scope) -> RequestContext:
    """Return the context that the middleware attached to the request."""
    scope = request.scope if isinstance(request, Request) else request
    return cast("RequestContext", scope[_KEY])


def log_caller(user: User) -> None:
    """Add the request's authenticated user to all further log lines of the request, as `caller_id` and `caller`."""
    log.set_caller(user.id, user.shown_name)
