"""The outermost layer: request id, one log line and one count a request, bounds, and the last word on errors."""

import asyncio
import functools
import os
import time
from collections.abc import Callable

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clustercert import log, metrics
from clustercert.errors import ClustercertError, HeaderTooLarge, InvalidRequest, Unauthenticated, Unavailable
from clustercert.model import Origin
from clustercert.web import render

logger = structlog.get_logger("clustercert.request")

# What a path that no route has, and a method that is none of HTTP's, are counted as: both are the caller's to choose,
# and labels are not.
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNAUTHORIZED, SERVER_ERRORS = 401, 500

# Beyond this many at once a request would wait for longer than its client does; it is told so at once instead.
MAX_IN_FLIGHT = 512
# Of a request: target and header fields together in bytes, and how many fields.
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADER_FIELDS = 100
# Characters of a path in the log.
MAX_LOGGED_PATH = 1024
ALIVE = "/healthz"
# API servers have as much room again: one that gets an error may let in what is revoked.
API_SERVERS = "/clustercert/v1/kubernetes/"


class Edge:
    """Wraps the application.

    Attributes:
        timeout: seconds until a request is given up.
        not_let_in: is told of every request that proved nothing: the address, and the id of the known user or access
            key that it named, or nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        timeout: float,
        max_in_flight: int = MAX_IN_FLIGHT,
        not_let_in: Callable[[str, str], None] = lambda _address, _known: None,
    ) -> None:
        self._app = app
        self._timeout = timeout
        self._not_let_in = not_let_in
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._exchange(scope, receive, send)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request and its answer."""
        started = time.perf_counter()
        client = scope.get("client")
        request_id = os.urandom(16).hex()
        log.request_id.set(request_id)
        scope["clustercert.origin"] = Origin(
            address=client[0] if client else "unknown", request_id=request_id
        )
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            failure = await self._run(scope, receive, send_marked)
            # An answer that has begun can't be replaced; the connection's end tells the client.
            if failure is not None and not status:
                await failed(scope, failure)(scope, receive, send_marked)
        finally:
            _account(scope, status, time.perf_counter() - started)
            if status == UNAUTHORIZED:
                self._not_let_in(scope["clustercert.origin"].address, scope.get("clustercert.known", ""))

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> ClustercertError | None:
        """Let the application answer; what it could not answer comes back."""
        in_flight = False

        async def receive_counted() -> Message:
            nonlocal in_flight
            message = await receive()
            if not in_flight and not message.get("more_body", False):
                in_flight = self._enter(scope["path"])
            return message

        try:
            if not _check(scope):
                in_flight = self._enter(scope["path"])
            async with asyncio.timeout(self._timeout) as deadline:
                scope["clustercert.renew"] = functools.partial(_renew, deadline, self._timeout)
                await self._app(scope, receive_counted, send)
        except TimeoutError:
            return Unavailable("The request took too long and was given up. Try again in a moment.")
        except ClustercertError as failure:
            return failure
        except Exception:
            logger.exception("unexpected failure")
            return ClustercertError()
        finally:
            self._in_flight -= in_flight
        return None

    def _enter(self, path: str) -> bool:
        """Count a request that is there as a whole: one whose body never comes takes nobody's place."""
        bound = 2 * self._max_in_flight if path.startswith(API_SERVERS) else self._max_in_flight
        if self._in_flight >= bound and path != ALIVE:
            raise Unavailable(
                "More requests are under way than can be answered in time. Try again in a moment."
            )
        self._in_flight += 1
        return True


def _renew(deadline: asyncio.Timeout, seconds: float) -> None:
    """Give a request its time anew: its body goes on arriving."""
    deadline.reschedule(asyncio.get_running_loop().time() + seconds)


def _check(scope: Scope) -> bool:
    """Whether a body follows. Raises ClustercertError for a header block that is not taken."""
    fields = scope["headers"]
    names = [name for name, _ in fields]
    size = len(scope["path"]) + len(scope["query_string"]) + sum([len(n) + len(v) + 4 for n, v in fields])
    if size > MAX_HEADER_BYTES or len(fields) > MAX_HEADER_FIELDS:
        raise HeaderTooLarge(
            f"The request's target and header fields are larger than {MAX_HEADER_BYTES} bytes or more than "
            f"{MAX_HEADER_FIELDS}. Send less."
        )
    # RFC 9112 3.2 and 6.1: a proxy and we might each believe another one of them.
    if names.count(b"host") > 1:
        raise InvalidRequest("The request has several Host headers. Send one.")
    chunked, counted = b"transfer-encoding" in names, b"content-length" in names
    if chunked and counted:
        raise InvalidRequest("The request has Content-Length and Transfer-Encoding. Send one of them.")
    return chunked or counted


def failed(scope: Scope, failure: ClustercertError) -> Response:
    """The answer to a failure; why, beyond what the caller is told, goes into the request's log line."""
    said = {"error": type(failure).__name__, "reason": getattr(failure, "reason", failure.message)}
    if failure.__cause__ is not None:
        # What a caller sent wrongly may be a secret in the wrong place, and stand in the cause's text.
        caused_by_us = failure.status >= SERVER_ERRORS
        said["cause"] = repr(failure.__cause__) if caused_by_us else type(failure.__cause__).__name__
    if isinstance(failure, Unauthenticated):
        scope["clustercert.known"] = failure.known
    scope.setdefault("clustercert.log", {}).update(said)
    return render.error(failure, scope["path"], scope["clustercert.origin"].request_id)


def _account(scope: Scope, status: int, elapsed: float) -> None:
    """One count and one log line."""
    route = str(getattr(scope.get("route"), "path", OTHER))
    method = scope["method"] if scope["method"] in METHODS else OTHER
    metrics.request(route, method, status, elapsed)
    say = logger.debug if scope.get("clustercert.quiet") else logger.info
    if status >= SERVER_ERRORS or not status:
        say = logger.error
    say(
        "request",
        method=scope["method"],
        path=scope["path"][:MAX_LOGGED_PATH],
        status=status,
        ms=round(elapsed * 1000, 1),
        source=scope["clustercert.origin"].address,
        **scope.get("clustercert.log", {}),
    )
