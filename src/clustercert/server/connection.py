"""A client's connection: uvicorn's HTTP/1.1 over httptools, with the bounds that it lacks and refusals in our form."""

import asyncio
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn import Config
from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Scope,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from clustercert import metrics
from clustercert.errors import ClustercertError, HeaderTooLarge, InvalidRequest, RequestTimeout
from clustercert.server.answers import head, retry_after, whole
from clustercert.server.outbox import Held, Outbox
from clustercert.web import render
from clustercert.web.edge import API_SERVERS, MAX_IN_FLIGHT, OTHER

UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a client may have of a worker.

    Attributes:
        head_bytes: of the request target and the header fields together; head_fields: how many of them.
        framing_bytes: of a request's body, what is not the body itself: sizes of chunks, trailers.
        pipelined: requests that wait on a connection for the answer to the one before.
        head_seconds: from the opening or a request's first byte to the end of its header block. The rest of a request
            whose answer did not wait for it has as long again.
        idle_seconds: between two requests, more than the 60 s after which load balancers by default drop what they have
            open and so never send into a connection that ends just then; and for who reads nothing of an answer.
        crowded_seconds: the same where there are as many connections as there may be.
        linger_seconds: for the client to close a connection on which nothing follows.
        rest_seconds: for how long, at most, nothing is read from who was told to try again later (503).
        connections: more than are answered: who is over `edge`'s bound is told so, instead of waiting in the dark.
    """

    head_bytes: int = 64 * 1024
    head_fields: int = 100
    framing_bytes: int = 1024 * 1024
    pipelined: int = 16
    head_seconds: float = 10
    idle_seconds: float = 75
    crowded_seconds: float = 1
    linger_seconds: float = 2
    rest_seconds: float = 1
    connections: int = 2 * MAX_IN_FLIGHT


class Connections(ServerState):
    """A worker's connections; `on_full` is called at each that reaches or exceeds their bound."""

    def __init__(self, *, on_full: Callable[[], None]) -> None:
        super().__init__()
        self.on_full = on_full
        self.outbox = Outbox()


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()  # a request's header block
    ANSWER = auto()  # ours
    REST = auto()  # the end of a request that is answered already
    IDLE = auto()  # the next request, or none
    RESTING = auto()  # the end of the pause that it was told to make
    CLOSING = auto()  # the client to read what was written last, and to close


class Connection(HttpToolsProtocol):
    """Asyncio's protocol of one connection; everything runs in the loop's thread.

    uvicorn's callbacks do the work; what is added to each is described here.
    """

    server_state: Connections

    def __init__(
        self, config: Config, server_state: Connections, app_state: dict[str, Any], *, bounds: Bounds
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._bounds = bounds
        self._phase, self._since = Phase.HEAD, 0.0
        self._in_message = self._in_head = False
        self._head_bytes = self._framing_bytes = 0
        self._refusal: ClustercertError | None = None
        self._rest_seconds = 0.0
        self._closes = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Stop accepting where this was the last that may be."""
        super().connection_made(Held(transport, self.server_state.outbox))
        self._enter(Phase.HEAD)
        if len(self.connections) >= self._bounds.connections:
            self.server_state.on_full()

    def data_received(self, data: bytes) -> None:
        """Refuse what is no HTTP/1.1 or too much of it."""
        if self._refusal is not None:
            return
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEAD)
        began_in_message, began_in_head = self._in_message, self._in_head
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            ours = error.__context__
            self._refuse(
                ours
                if isinstance(ours, ClustercertError)
                else InvalidRequest("This is no request of HTTP/1.1. Send one.")
            )
            return
        if self._in_head and (began_in_head or not began_in_message):
            self._head_bytes += len(data)
            if self._head_bytes > self._bounds.head_bytes:
                self._refuse(self._too_large())
        elif self._in_message and began_in_message and not self._in_head:
            self._framing_bytes += len(data)
            if self._framing_bytes > self._bounds.framing_bytes:
                self._refuse(InvalidRequest("The request's body has more chunks and trailers than body."))

    def _feed(self, data: bytes) -> None:
        """Parse it all.

        An offer to upgrade isn't taken up (RFC 9110 7.8). The parser takes what follows the header block for the other
        protocol's, a body too; a new one gets the request without the offer.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_offer() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                # As uvicorn's: what comes behind a last request is no error, and not answered.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    def _without_offer(self) -> bytes:
        """The header block that was just parsed."""
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return line + b"".join(fields) + b"\r\n"

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._head_bytes = self._framing_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep fields of the header block without the blanks behind them, and no trailers (RFC 9110 5.5 and 6.5.1)."""
        if self._in_head:
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Refuse what can't be answered, before the application sees it."""
        objection = self._objection()
        if objection is not None:
            # It stops the parser, and comes out of it as the context of an HttpParserError.
            raise objection
        if self.parser.should_upgrade():
            return
        if not self.url.startswith((b"/", b"*")):
            self.url = _origin_form(self.url)
        super().on_headers_complete()
        self._in_head = False
        self._enter(Phase.ANSWER)

    def _objection(self) -> ClustercertError | None:
        fields = self.headers
        # Of each, `: ` and the end of its line.
        size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in fields])
        if size > self._bounds.head_bytes or len(fields) > self._bounds.head_fields:
            return self._too_large()
        if self.parser.get_http_version() not in ("1.1", "1.0") or self.parser.get_method() == b"CONNECT":
            return InvalidRequest("This server speaks HTTP/1.1. Send a request of it.")
        if len(self.pipeline) >= self._bounds.pipelined:
            return InvalidRequest("Too many requests were sent without waiting for an answer.")
        return None

    def _too_large(self) -> ClustercertError:
        return HeaderTooLarge(
            f"The request's target and header fields are larger than {self._bounds.head_bytes} bytes or more than "
            f"{self._bounds.head_fields}. Send less."
        )

    def on_body(self, body: bytes) -> None:
        """Count what isn't body: not this."""
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin to be idle where the answer did not wait for this."""
        if self._in_head:
            # It was offered an upgrade, and comes again without.
            return
        super().on_message_complete()
        self._in_message = False
        if self._phase is Phase.REST:
            self._wait_for_the_next()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Have the application answer a request."""
        super()._start_asgi_task(cycle, functools.partial(self._answer, cycle, app))

    async def _answer(
        self,
        cycle: RequestResponseCycle,
        app: ASGI3Application,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        """The application's answer; what it means for the connection is noted."""
        # An API server that waits for its answer may let in what is revoked: it is always heard.
        is_api_server = scope["type"] == "http" and scope["path"].startswith(API_SERVERS)
        start: HTTPResponseStartEvent | None = None

        async def noting(message: ASGISendEvent) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                if message["status"] == UNAVAILABLE and not is_api_server:
                    self._rest_seconds = min(
                        self._bounds.rest_seconds, retry_after(message.get("headers", ()))
                    )
                start = message
                return
            if start is not None:
                begun, start = start, None
                if message["type"] == "http.response.body" and self._wrote_whole(cycle, begun, message):
                    return
                await send(begun)
            if self._in_message and message["type"] == "http.response.body":
                self._close_gently(last=not message.get("more_body", False))
            await send(message)

        await app(scope, receive, noting)
        if start is not None:
            # There is no body, and uvicorn says what it thinks of that.
            await send(start)

    def _wrote_whole(
        self, cycle: RequestResponseCycle, start: HTTPResponseStartEvent, end: HTTPResponseBodyEvent
    ) -> bool:
        """Whether the answer could be written with one system call, which uvicorn's way has for its head alone."""
        if cycle.scope["method"] == "HEAD" or cycle.disconnected or self.flow.write_paused:
            return False
        answer = whole(start, end, self.server_state.default_headers, keep_alive=cycle.keep_alive)
        if answer is None:
            return False
        if self._in_message:
            self._close_gently(last=True)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self.transport.write(answer)
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def _close_gently(self, *, last: bool) -> None:
        """Before the end of an answer: not close at once where there is something unread.

        The system would throw away what was written. RFC 9112 9.6.
        """
        if last and not self._in_head and not self.pipeline and not self.cycle.keep_alive:
            self.cycle.keep_alive = self._closes = True

    def on_response_complete(self) -> None:
        """Go on to the next request.

        A client that was told to come back later and repeats at once is not read from until then: else those who are
        refused would take the time of those who are answered.
        """
        if self._rest_seconds and not self.transport.is_closing():
            self.flow.pause_reading()
            self._enter(Phase.RESTING)
            self.loop.call_later(self._rest_seconds, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._rest_seconds = 0
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._refusal is not None:
            self._tell(self._refusal)
        elif self._in_message:
            self._enter(Phase.HEAD if self._in_head else Phase.REST)
            if self._closes:
                self._say_no_more()
        else:
            self._wait_for_the_next()

    def _wait_for_the_next(self) -> None:
        if self._closes:
            self.transport.close()
        else:
            self._enter(Phase.IDLE)

    def _say_no_more(self) -> None:
        """Close our side of the connection, as far as TLS knows such a thing."""
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _refuse(self, failure: ClustercertError) -> None:
        """Answer no more requests on this connection than have come whole; then tell why, and close it."""
        self._refusal = failure
        if self._phase not in (Phase.ANSWER, Phase.RESTING):
            self._tell(failure)
        elif self._in_message and not self._in_head:
            # The one that is being answered is what's wrong.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started or self.pipeline:
                self.transport.close()
            else:
                self._tell(failure)

    def _tell(self, failure: ClustercertError) -> None:
        """Answer what never became a request, and close the connection once the client had time to read that."""
        if self.transport.is_closing():
            return
        metrics.request(OTHER, OTHER, failure.status, 0)
        request_id = os.urandom(16).hex()
        # There may be no path yet, so that no API's form is asked for.
        response = render.error(failure, "", request_id)
        fields = [
            *self.server_state.default_headers,
            *response.raw_headers,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        self.transport.write(head(failure.status, fields) + bytes(response.body))
        self._enter(Phase.CLOSING)
        self._say_no_more()

    def look(self, now: float, *, crowded: bool) -> None:
        """Close the connection if its time is up. `now` is the loop's; `crowded`: others wait for its place."""
        if self._phase is not Phase.CLOSING and self.transport.is_closing():
            self._enter(Phase.CLOSING)
        if now - self._since < self._allowed(crowded=crowded):
            return
        if self._phase is Phase.CLOSING:
            self.transport.abort()
        elif self._phase is Phase.HEAD and self._in_head:
            self._refuse(RequestTimeout("The request's header block did not arrive in time. Send it again."))
        else:
            self.transport.close()

    def _allowed(self, *, crowded: bool) -> float:
        """Seconds for the phase that the connection is in; who still reads an answer is given the longer time."""
        unread = self.transport.get_write_buffer_size() > 0
        match self._phase:
            case Phase.HEAD | Phase.REST:
                return self._bounds.head_seconds
            case Phase.IDLE:
                return self._bounds.crowded_seconds if crowded and not unread else self._bounds.idle_seconds
            case Phase.CLOSING:
                return self._bounds.idle_seconds if unread else self._bounds.linger_seconds
            case Phase.ANSWER if self.flow.write_paused:
                # Ours waits for the client to read what it was answered before.
                return self._bounds.idle_seconds
            case _:
                return float("inf")

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since = phase, self.loop.time()


def _origin_form(target: bytes) -> bytes:
    """Path and query of an absolute target, RFC 9112 3.2.2; anything else as it is."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or not scheme.isalpha():
        return target
    authority_end = min((rest.find(mark) for mark in b"/?#" if mark in rest), default=len(rest))
    path = rest[authority_end:]
    return path if path.startswith(b"/") else b"/" + path
