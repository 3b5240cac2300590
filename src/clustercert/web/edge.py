"""The outermost layer: request id, one log line and one count a request, bounds, and the last word on errors."""

import asyncio
import os
import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clustercert import metrics
from clustercert.errors import ClustercertError, InvalidRequest, Unavailable
from clustercert.model import Origin
from clustercert.web import render

logger = structlog.get_logger("clustercert.request")

# What a path that no route has is counted as: paths are the caller's to choose, labels are ours.
NO_ROUTE = "none"


class Edge:
    """Wraps the application.

    Attributes:
        timeout: seconds until a request is given up.
    """

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Exchange(scope, self._timeout).run(self._app, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, timeout: float) -> None:
        client = scope.get("client")
        self._scope = scope
        self._timeout = timeout
        self._started = time.perf_counter()
        self._status: int | None = None
        self._origin = Origin(address=client[0] if client else "unknown", request_id=os.urandom(16).hex())
        scope["clustercert.origin"] = self._origin

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = self._origin.request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=self._origin.request_id):
            try:
                self._check_host()
                async with asyncio.timeout(self._timeout):
                    await app(self._scope, receive, send_marked)
            except TimeoutError:
                late = Unavailable("The request took too long and was given up. Try again in a moment.")
                await self._answer(late, receive, send_marked)
            except ClustercertError as failure:
                await self._answer(failure, receive, send_marked)
            except Exception:
                logger.exception("unexpected failure")
                await self._answer(ClustercertError(), receive, send_marked)
            finally:
                self._account()

    def _check_host(self) -> None:
        # RFC 9112 3.2: a proxy and we might each believe another one.
        if sum(name == b"host" for name, _ in self._scope["headers"]) > 1:
            raise InvalidRequest("The request has several Host headers. Send one.")

    async def _answer(self, failure: ClustercertError, receive: Receive, send: Send) -> None:
        # An answer that has begun can't be replaced; the connection's end tells the client.
        if self._status is None:
            response = render.error(failure, self._scope["path"], self._origin.request_id)
            await response(self._scope, receive, send)

    def _account(self) -> None:
        elapsed = time.perf_counter() - self._started
        request = Request(self._scope)
        route = getattr(self._scope.get("route"), "path", NO_ROUTE)
        metrics.REQUESTS.labels(route, request.method, self._status or 0).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(elapsed)
        log = logger.error if (self._status or 500) >= 500 else logger.info  # noqa: PLR2004 - HTTP's own border
        log(
            "request",
            method=request.method,
            path=self._scope["path"],
            status=self._status,
            ms=round(elapsed * 1000, 1),
            source=self._origin.address,
            **self._scope.get("clustercert.log", {}),
        )
