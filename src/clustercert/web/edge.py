"""The outermost layer: request id, one log line and one count a request, bounds, and the last word on errors."""

import os
import time
from collections.abc import Callable

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clustercert import log, metrics
from clustercert.errors import ClustercertError, InvalidRequest, Unauthenticated, Unavailable
from clustercert.model import Origin
from clustercert.web import render
from clustercert.web.deadlines import Deadlines

logger = structlog.get_logger("clustercert.request")

# What a path that no route has, and a method that is none of HTTP's, are counted as: both are the caller's to choose,
# and labels are not.
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNAUTHORIZED, SERVER_ERRORS = 401, 500

# Beyond this many at once a request would wait for longer than its client does; it is told so at once instead.
MAX_IN_FLIGHT = 512
ALIVE = "/healthz"
# API servers have as much room again: one that gets an error may let in what is revoked, and so nobody is to bring that
# about by sending bodies slowly. Whoever shows no token of a cluster is refused here before their body is read.
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
        self._deadlines = Deadlines()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            self._in_flight += 1
            try:
                await self._exchange(scope, receive, send)
            finally:
                self._in_flight -= 1

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request and its answer."""
        started = time.perf_counter()
        client = scope.get("client")
        request_id = os.urandom(16).hex()
        log.request_id.set(request_id)
        scope["clustercert.origin"] = Origin(
            address=client[0] if client else "unknown", request_id=request_id
        )
        scope["clustercert.deadlines"] = self._deadlines
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
        try:
            self._check(scope)
            with self._deadlines.within(self._timeout) as deadline:
                scope["clustercert.renew"] = deadline.renew
                await self._app(scope, receive, send)
        except TimeoutError:
            return Unavailable("The request took too long and was given up. Try again in a moment.")
        except ClustercertError as failure:
            return failure
        except Exception:
            logger.exception("unexpected failure")
            return ClustercertError()
        return None

    def _check(self, scope: Scope) -> None:
        names = [name for name, _ in scope["headers"]]
        # RFC 9112 3.2 and 6.1: a proxy and we might each believe another one of them.
        if names.count(b"host") > 1:
            raise InvalidRequest("The request has several Host headers. Send one.")
        if b"transfer-encoding" in names and b"content-length" in names:
            raise InvalidRequest("The request has Content-Length and Transfer-Encoding. Send one of them.")
        if self._in_flight > self._max_in_flight and not self._has_room(scope["path"]):
            raise Unavailable(
                "More requests are under way than can be answered in time. Try again in a moment."
            )

    def _has_room(self, path: str) -> bool:
        """Whether a request beyond the bound is let in all the same."""
        return path == ALIVE or (path.startswith(API_SERVERS) and self._in_flight <= 2 * self._max_in_flight)


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
    route = str(scope.get("clustercert.route") or getattr(scope.get("route"), "path", OTHER))
    method = scope["method"] if scope["method"] in METHODS else OTHER
    metrics.request(route, method, status, elapsed)
    say = logger.debug if scope.get("clustercert.quiet") else logger.info
    if status >= SERVER_ERRORS or not status:
        say = logger.error
    say(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        ms=round(elapsed * 1000, 1),
        source=scope["clustercert.origin"].address,
        **scope.get("clustercert.log", {}),
    )
