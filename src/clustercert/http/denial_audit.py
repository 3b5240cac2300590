"""Records denied requests from authenticated callers, and counts failed authentications, for every route."""

from starlette.types import Scope

from clustercert.audit.refusals import DenialAudit, FailedAuthentications
from clustercert.http.context import context_of
from clustercert.http.dependencies import WEBHOOK_PREFIX
from clustercert.limits.failures import FailureLimit
from clustercert.model import Caller
from clustercert.model.errors import (
    ClustercertError,
    NoCredential,
    TooManyFailures,
    TooManyRequests,
    Unauthenticated,
)


async def record_denial(denials: DenialAudit, scope: Scope, failure: ClustercertError) -> None:
    """Record the failure if it denies an authenticated caller's request. Raises Unavailable."""
    context = context_of(scope)
    caller = context.caller
    if caller is None and isinstance(failure, TooManyRequests) and failure.user is not None:
        caller = Caller(failure.user, {}, "login", context.origin)
    if caller is None or context.dry_run:
        return
    if context.certificate_of is not None:
        await denials.certificate(caller, *context.certificate_of, context.issue_request, failure)
        return
    project_id = str(scope.get("path_params", {}).get("project_id", ""))
    await denials.request(caller, scope["method"], scope["path"], project_id, failure)


def count_failed_authentication(
    failures: FailedAuthentications,
    limit: FailureLimit,
    scope: Scope,
    failure: Unauthenticated | TooManyFailures,
) -> None:
    """Count a failed authentication for the audit log and, if it may have been a guess, for the limit."""
    origin = context_of(scope).origin
    failures.count(origin.address, failure.known)
    # API servers may share their address with people, so a wrong webhook token must not lock those out.
    if not isinstance(failure, NoCredential | TooManyFailures) and not scope["path"].startswith(
        WEBHOOK_PREFIX
    ):
        limit.count(origin)
