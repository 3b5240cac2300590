"""The outermost middleware: request context, limits, error responses, one log line and metric for each request."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import unquote_to_bytes

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clustercert.audit.refusals import DenialAudit, FailedAuthentications
from clustercert.http import responses
from clustercert.http.context import RequestContext, attach, context_of, log_caller
from clustercert.http.dependencies import WEBHOOK_PREFIX, base_url
from clustercert.http.query import check_query
from clustercert.http.source_address import HEADER, SourceAddresses, peer_address
from clustercert.http.user_agents import is_huawei_sdk
from clustercert.limits.failures import FailureLimit
from clustercert.model import Caller, Origin, new_id
from clustercert.model.errors import (
    ClustercertError,
    InvalidRequest,
    NoCredential,
    TooManyFailures,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from clustercert.observability import log, metrics, tracing
from clustercert.observability.tracing import Tracer

logger = structlog.get_logger("clustercert.request")

# The metric label for unknown paths and methods: callers choose them freely, but a metric needs few label values.
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SERVER_ERRORS = 500

AuthenticationFailure = Unauthenticated | TooManyFailures

# The maximum number of concurrent requests. Clients would time out with more requests, so excess requests get
# 503 at once.
MAX_IN_FLIGHT = 512
# Longer paths are truncated in the log.
MAX_LOGGED_PATH = 1024
ALIVE = "/healthz"
# The paths of frequent requests by programs. These requests have metrics instead of traces.
UNTRACED = frozenset({ALIVE, "/readyz", "/metrics"})
TRACEPARENT = b"traceparent"
# The maximum length of the header. In all versions of W3C Trace Context so far, the header has 55 bytes.
MAX_TRACEPARENT = 128
# The character that a decoder writes for bytes that are not UTF-8.
REPLACEMENT = "\ufffd"
# A longer response body is sent in pieces of this size. With TLS, uvloop accepts a piece of any size before it makes
# the application wait for a client that does not read.
PIECE_BYTES = 64 * 1024


class RequestMiddleware:
    """Wraps the application.

    Attributes:
        timeout: seconds until a request is cancelled.
        record_denial: called with each failure before the response is sent; may raise Unavailable.
        on_authentication_failure: called after the response to each failed authentication, and before its log line.
        sources: determines the source address of a request that a trusted proxy sent; `None` without trusted proxies.
        tracer: begins the traces of requests; `None` without traces.
        prepare: called before each request, when the context is attached; may choose how failures are answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        timeout: float,
        record_denial: Callable[[Scope, ClustercertError], Awaitable[None]],
        on_authentication_failure: Callable[[Scope, AuthenticationFailure], None],
        max_in_flight: int = MAX_IN_FLIGHT,
        sources: SourceAddresses | None = None,
        tracer: Tracer | None = None,
        prepare: Callable[[Scope], None] | None = None,
    ) -> None:
        self.app = app
        self._timeout = timeout
        self._record_denial = record_denial
        self._on_authentication_failure = on_authentication_failure
        self._max_in_flight = max_in_flight
        self._sources = sources
        self._tracer = tracer
        self._prepare = prepare
        self._in_flight = 0
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            path = scope["path"]
            if self._tracer is None or path in UNTRACED or path.startswith(WEBHOOK_PREFIX):
                await self._exchange(scope, receive, send)
                return
            with tracing.request(self._tracer, self._traceparent(scope)):
                await self._exchange(scope, receive, send)

    def _traceparent(self, scope: Scope) -> str | None:
        """Return the trace that a trusted proxy began. Other senders could have every request of theirs recorded."""
        sent = [value for name, value in scope["headers"] if name == TRACEPARENT]
        if len(sent) != 1 or len(sent[0]) > MAX_TRACEPARENT:
            return None
        trusted = self._sources is not None and self._sources.trusts(peer_address(scope))
        return sent[0].decode("latin-1") if trusted else None

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        deadline = asyncio.timeout(self._timeout)
        context = _new_context(scope, deadline, self._timeout)
        if self._prepare is not None:
            self._prepare(scope)
        request_id = context.origin.request_id.encode()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                fields = message.get("headers", ())
                rules = context.browser_rules or responses.BROWSER_RULES
                message["headers"] = [*fields, *rules, (b"x-request-id", request_id)]
            body = message.get("body", b"")
            start = 0
            while len(body) - start > PIECE_BYTES:
                piece = body[start : start + PIECE_BYTES]
                await send({"type": message["type"], "body": piece, "more_body": True})
                start += PIECE_BYTES
            await send({**message, "body": body[start:]} if start else message)

        failure: ClustercertError | None = None
        try:
            failure = await self._run(scope, receive, send_with_id, deadline)
            # If the response has begun, only closing the connection can signal the failure.
            if failure is not None and not status:
                await _error_response(failure, scope, context)(scope, receive, send_with_id)
        finally:
            elapsed = time.perf_counter() - started
            if isinstance(failure, AuthenticationFailure):
                self._on_authentication_failure(scope, failure)
            _account(scope, context, status, elapsed, failure)

    async def _run(
        self, scope: Scope, receive: Receive, send: Send, deadline: asyncio.Timeout
    ) -> ClustercertError | None:
        """Run the application. Returns the failure of the request, or None if it succeeded."""
        in_flight = False

        async def receive_counted() -> Message:
            nonlocal in_flight
            message = await receive()
            if not in_flight and not message.get("more_body", False):
                in_flight = self._enter(scope["path"])
            return message

        try:
            if self._sources is not None:
                context = context_of(scope)
                context.origin = replace(context.origin, address=self._sources.address_of(scope))
            names = [name for name, _ in scope["headers"]]
            if HEADER in names:
                self._report_ignored_forwarding(scope)
            if not _check(scope, names):
                in_flight = self._enter(scope["path"])
            async with deadline:
                try:
                    await self.app(scope, receive_counted, send)
                except ClustercertError as failure:
                    await self._record_denial(scope, failure)
                    raise
        except TimeoutError:
            return Unavailable("The request took too long and was cancelled. Try again in a moment.")
        except ClustercertError as failure:
            return failure
        except Exception:
            logger.exception("unexpected error")
            return ClustercertError()
        finally:
            self._in_flight -= in_flight
        return None

    def _report_ignored_forwarding(self, scope: Scope) -> None:
        """Count a forwarding header that is ignored because its sender is not a trusted proxy.

        The first time, logs a warning, because the settings may lack a proxy.
        """
        peer = peer_address(scope)
        if self._sources is not None and self._sources.trusts(peer):
            return
        metrics.FORWARDING_IGNORED.inc()
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "forwarding header ignored: peer is not a trusted proxy",
                peer=peer,
                advice="if it is your proxy, add it to server.trusted_proxies",
            )

    def _enter(self, path: str) -> bool:
        """Count a request as in flight. Raises Unavailable if too many requests are in flight.

        Call this only when the request has arrived completely, so that slow senders do not use up the limit.
        """
        # After an error, an API server may accept a revoked certificate, so webhooks have a higher limit.
        limit = 2 * self._max_in_flight if path.startswith(WEBHOOK_PREFIX) else self._max_in_flight
        if self._in_flight >= limit and path != ALIVE:
            raise Unavailable("Too many requests are in progress. Try again in a moment.")
        self._in_flight += 1
        return True


def _new_context(scope: Scope, deadline: asyncio.Timeout, seconds: float) -> RequestContext:
    request_id = new_id()
    log.begin_request(request_id)

    def extend_deadline() -> None:
        deadline.reschedule(asyncio.get_running_loop().time() + seconds)

    origin = Origin(address=peer_address(scope), request_id=request_id)
    context = RequestContext(origin, extend_deadline)
    attach(scope, context)
    return context


def _check(scope: Scope, names: list[bytes]) -> bool:
    """Check path, query and header fields. Returns whether a body follows. Raises InvalidRequest.

    `server.connection_limits` has already limited the size and number of the fields while they arrived.
    """
    # RFC 9112, sections 3.2 and 6.1. If a request states its host or its length twice, a proxy might use one value and
    # this service the other.
    hosts = names.count(b"host")
    if hosts > 1 or (hosts == 0 and scope.get("http_version") == "1.1"):
        raise InvalidRequest("The request must have exactly one Host header.")
    chunked, counted = b"transfer-encoding" in names, b"content-length" in names
    if chunked and counted:
        raise InvalidRequest(
            "The request has Content-Length and Transfer-Encoding. Send only one of these headers."
        )
    if chunked:
        _require_chunked_only(scope)
    # Most paths do not have this character, and searching for it costs little.
    if REPLACEMENT in scope["path"]:
        _require_utf8_path(scope)
    if scope["query_string"]:
        check_query(scope["query_string"])
    return chunked or counted


def _require_utf8_path(scope: Scope) -> None:
    """Raise InvalidRequest if the path has a percent-encoding that is not UTF-8.

    The HTTP server has replaced such bytes with `REPLACEMENT`, so different paths would name the same object.
    """
    try:
        unquote_to_bytes(scope["raw_path"]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("The path has a percent-encoding that is not UTF-8. Use UTF-8.") from error


def _require_chunked_only(scope: Scope) -> None:
    """Raise InvalidRequest if the body has a transfer coding other than chunked, such as gzip.

    The HTTP server decodes only chunked, so the application would read a compressed body as if it was not compressed.
    """
    codings = [value.strip().lower() for name, value in scope["headers"] if name == b"transfer-encoding"]
    if codings != [b"chunked"]:
        raise InvalidRequest(
            "The body has a transfer coding that this service does not support. Send the body with"
            " Content-Length, or with Transfer-Encoding: chunked."
        )


def _error_response(failure: ClustercertError, scope: Scope, context: RequestContext) -> Response:
    """Return the response to a failure, and add details to the log line that the response does not contain."""
    context.log_fields |= {
        "error": type(failure).__name__,
        "reason": getattr(failure, "reason", failure.message),
    }
    if failure.trace:
        unmet = getattr(failure, "unmet_conditions", None)
        context.log_fields["trace"] = {
            **failure.trace,
            **({"unmet_conditions": dict(unmet)} if unmet else {}),
        }
    if failure.__cause__ is not None:
        # For a client error, log only the type of the cause. The text of the cause may contain a secret that the caller
        # sent in the wrong field.
        ours = failure.status >= SERVER_ERRORS
        context.log_fields["cause"] = repr(failure.__cause__) if ours else type(failure.__cause__).__name__
    if context.error_page is not None:
        return context.error_page(failure)
    path, more_headers = scope["path"], None
    if isinstance(failure, Unauthenticated) and responses.is_of_keystone(path):
        more_headers = responses.keystone_challenge(base_url(Request(scope)))
    return responses.error(
        failure,
        path,
        context.origin.request_id,
        more_headers,
        for_huawei_sdk=is_huawei_sdk(scope["headers"]),
    )


def _account(
    scope: Scope, context: RequestContext, status: int, elapsed: float, failure: ClustercertError | None
) -> None:
    route = str(getattr(scope.get("route"), "path", OTHER))
    method = scope["method"] if scope["method"] in METHODS else OTHER
    metrics.request(route, method, status, elapsed)
    tracing.describe_request(route, method, status, failure)
    write = logger.debug if context.quiet else logger.info
    if status >= SERVER_ERRORS or not status:
        write = logger.error
    write(
        "request",
        method=scope["method"],
        path=scope["path"][:MAX_LOGGED_PATH],
        status=status,
        ms=round(elapsed * 1000, 1),
        source=context.origin.address,
        **context.log_fields,
    )


async def record_denial(denials: DenialAudit, scope: Scope, failure: ClustercertError) -> None:
    """Record the failure if it denies an authenticated caller's request. Raises Unavailable."""
    context = context_of(scope)
    caller = context.caller
    if caller is None and isinstance(failure, TooManyRequests) and failure.user is not None:
        caller = Caller(failure.user, {}, "login", context.origin)
        log_caller(failure.user)
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
    name_hash: Callable[[str], str],
    scope: Scope,
    failure: Unauthenticated | TooManyFailures,
) -> None:
    """Count a failed authentication for the audit log and, if it may have been a guess, for the limit on failures.

    Names the account in the log line. Call this only after the response, so that its time reveals nothing.
    """
    context = context_of(scope)
    origin, unknown = context.origin, name_hash(failure.unknown) if failure.unknown else ""
    if failure.known:
        context.log_fields["account_id"] = failure.known
    if unknown:
        context.log_fields["unknown_account"] = unknown
    failures.count(origin.address, failure.known, unknown)
    # API servers may share their address with people, so a wrong webhook token must not lock these people out.
    if not isinstance(failure, NoCredential | TooManyFailures) and not scope["path"].startswith(
        WEBHOOK_PREFIX
    ):
        limit.count(origin, failure.known)
