"""Limits that uvicorn and uvloop lack: for connections, header blocks, trailers and TLS handshakes.

Only this module extends a class of uvicorn that is not public API. A test fails if that class changes.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, ClassVar

import structlog
import uvloop
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from clustercert.http import responses
from clustercert.http.middleware import OTHER
from clustercert.http.user_agents import is_huawei_sdk
from clustercert.model import new_id
from clustercert.model.errors import ClustercertError, HeaderTooLarge, InvalidRequest, RequestTimeout
from clustercert.observability import metrics

logger = structlog.get_logger()

# Limits for a request line together with the header fields. The same limits apply to a chunk extension, to trailers,
# and to the part of a chunked body that is parsed after the response.
MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 100
HEAD_SECONDS = 10.0
# The parser would read requests in HTTP/0.9 and HTTP/2.0 as if they were HTTP/1.1.
VERSIONS = ("1.0", "1.1")
# Maximum number of pipelined requests: requests that a client sends before it has the response to the previous request.
# Clients rarely send even two.
MAX_PIPELINED = 16
# Maximum number of connections of a worker, not counting unfinished TLS handshakes.
MAX_CONNECTIONS = 2048
# Maximum number of unfinished TLS handshakes of a worker. Each unfinished handshake takes about 76 KB of memory. A
# genuine handshake lasts only milliseconds.
MAX_HANDSHAKES = 2048
HANDSHAKE_SECONDS = 5.0
# Delay before a server that can't accept connections tries again.
PAUSE_SECONDS = 1.0
# Maximum number of connections of a worker whose client does not read its response. Each such connection keeps a
# response of up to about 1 MiB in memory; with TLS, several copies of the response.
MAX_UNREAD = 128
# If more unsent bytes than this are in memory, the application waits until the client reads. uvloop's default with TLS
# is 512 KiB.
WRITE_BUFFER = 64 * 1024
# After a refusal, or a response before the end of a body, the server discards the rest of the request: at most
# MAX_DISCARDED bytes in at most LATE_SECONDS. It stops earlier if the client is silent for LINGER_SECONDS. Closing the
# connection at once would reset the connection, and a client that sends everything before it reads would not see the
# response.
LINGER_SECONDS = 2.0
LATE_SECONDS = 30.0
MAX_DISCARDED = 64 * 1024 * 1024
# Interval between log messages about the limit of connections.
REPORT_SECONDS = 60.0


class Loop(uvloop.Loop):
    """An event loop whose servers limit the number and the duration of TLS handshakes."""

    async def create_server(  # type: ignore[override]  # the options are uvloop's
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        *args: Any,
        ssl: ssl.SSLContext | None = None,
        **options: Any,
    ) -> Any:
        """Create a server, as uvloop does.

        With `ssl`, the options `sock` and `backlog` are required, and other options are not allowed.
        """
        if ssl is None:
            return await super().create_server(protocol_factory, *args, **options)
        return _TlsServer(self, protocol_factory, ssl, *args, **options)


class _TlsServer:
    """Accepts connections with TLS. At the limit of unfinished handshakes, each new handshake ends the oldest one.

    uvloop's own server does not say which connections have unfinished handshakes.
    """

    def __init__(
        self,
        loop: Loop,
        protocol_factory: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        sock: socket.socket,
        backlog: int,
    ) -> None:
        self._loop = loop
        self._protocol_factory = protocol_factory
        self._context = context
        self._socket = sock
        # The connections with unfinished handshakes, the oldest first.
        self._unfinished: dict[socket.socket, asyncio.Task[None]] = {}
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(backlog)
        self._start()

    def close(self) -> None:
        """Accept no more connections. Handshakes and connections continue."""
        self._loop.remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Return at once: uvicorn has already waited until the connections are closed."""

    def _start(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            # Another worker accepted the connection, or the client is gone.
            return
        except OSError as error:
            # Connections can't be accepted, for example, because too many files are open. Pause, because otherwise the
            # event loop would call this method again at once.
            if not self._make_room():
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(PAUSE_SECONDS, self._start)
                logger.error("connections can't be accepted", cause=str(error))  # noqa: TRY400 - a traceback would add nothing
            return
        if len(self._unfinished) >= MAX_HANDSHAKES:
            self._make_room()
        self._unfinished[connection] = self._loop.create_task(self._handshake(connection))

    def _make_room(self) -> bool:
        """Close the connection with the oldest unfinished handshake. Returns whether there was such a connection."""
        if not self._unfinished:
            return False
        self._unfinished.pop(next(iter(self._unfinished))).cancel()
        metrics.CONNECTIONS_CLOSED.labels("handshakes").inc()
        return True

    async def _handshake(self, connection: socket.socket) -> None:
        try:
            # Ignore failures, because any client can cause them.
            with contextlib.suppress(OSError):
                await self._loop.connect_accepted_socket(
                    self._protocol_factory,
                    connection,
                    ssl=self._context,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                )
        finally:
            self._unfinished.pop(connection, None)


class _Part(Enum):
    """The part of a request that arrives next."""

    START = auto()
    HEAD = auto()
    BODY = auto()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with a limit for each part of a request.

    The parser copies an incomplete header value with each piece that arrives, so the bytes are counted before they are
    parsed.

    Attributes:
        waiting: connections of this worker that wait for their client to send or to read, the longest waiting first.
        unread: connections of this worker that wait for their client to read, the longest waiting first.
    """

    waiting: ClassVar[dict["BoundedProtocol", None]] = {}
    unread: ClassVar[dict["BoundedProtocol", None]] = {}
    _reported: ClassVar[float] = -REPORT_SECONDS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.url = b""
        self._part = _Part.START
        # Bytes received since a part of a request, or a piece of a body, was last completed.
        self._received = 0
        self._fields = 0
        # Bytes of a body received after the response.
        self._late = 0
        self._timer: asyncio.TimerHandle | None = None
        self._failure: ClustercertError | None = None
        # The number of bytes that were discarded so far; `None` while incoming data is still parsed.
        self._discarded: int | None = None
        # When to stop discarding, by the loop's clock.
        self._discard_until = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection.

        At the limit of connections, closes the connection that has waited longest for its client, or the new connection
        if no other connection is waiting.
        """
        super().connection_made(transport)
        transport.set_write_buffer_limits(WRITE_BUFFER)
        # uvicorn itself starts the keep-alive timer only after a response.
        self._set_keep_alive_timer()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()
        self.waiting[self] = None

    def _make_room(self) -> None:
        longest = next(iter(self.waiting), self)
        self.waiting.pop(longest, None)
        longest.transport.abort()
        metrics.CONNECTIONS_CLOSED.labels("connections").inc()
        now = time.monotonic()
        if now - BoundedProtocol._reported >= REPORT_SECONDS:
            BoundedProtocol._reported = now
            logger.warning(
                "connection limit reached",
                limit=MAX_CONNECTIONS,
                advice="find out which clients hold connections; a proxy can limit them for each address",
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.waiting.pop(self, None)
        self.unread.pop(self, None)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data in pieces, and refuse a part of a request that exceeds its limit."""
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED:
                self.transport.abort()
            else:
                self._linger()
            return
        while data and not self._is_over():
            piece = data[: MAX_HEAD_BYTES - self._received]
            data = data[len(piece) :]
            # Callbacks set `_received` to 0 when a part of the request is complete. The rest of this piece of data is
            # then not counted.
            self._received += len(piece)
            super().data_received(piece)
            if self._received >= MAX_HEAD_BYTES:
                self._refuse(_too_large())
            elif self._part is _Part.BODY and not self._is_busy():
                # The application does not read this body, so nothing else limits the body's size. Parsing many chunks
                # of one byte each takes long. After a body with a Content-Length, the connection can be used again.
                self._late += len(piece)
                limit = MAX_DISCARDED if self._has_content_length() else MAX_HEAD_BYTES
                if self._late > limit and not self._is_over():
                    self._discard()
        self._set_timer()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._unset_keepalive_if_required()
        self._part = _Part.HEAD
        self._fields = 0
        self._late = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field. Trailers are dropped: the application has checked the header fields already."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            self._fail(_too_large())
        if self._part is _Part.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the application, or queue the request."""
        version = self.parser.get_http_version()
        if version not in VERSIONS:
            self._fail(InvalidRequest(f"HTTP/{version} is not supported. Send the request with HTTP/1.1."))
        if self.parser.should_upgrade() and self._announces_body():
            # httptools skips the body of such a request, and would parse the body as the next request. Behind a proxy,
            # this hidden request would seem to come from the proxy.
            self._fail(
                InvalidRequest(
                    "A request with a body can't change the protocol. Send the request without the header "
                    "Upgrade: with version(HTTP_1_1) of Java's HttpClient, or with curl --http1.1."
                )
            )
        if len(self.pipeline) >= MAX_PIPELINED:
            self._fail(
                InvalidRequest(
                    "Too many requests are waiting for a response. Read responses before you send more."
                )
            )
        # uvicorn raises an error for some targets, such as `http://`. The failure is then the response to this request.
        super().on_headers_complete()
        self._part = _Part.BODY
        self._received = 0

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body to the application."""
        self._received = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request. From now on, the connection waits for the application, or for the next request."""
        self._part = _Part.START
        self._received = 0
        if self._is_busy():
            self.waiting.pop(self, None)
        else:
            # The data of this body has stopped the timer that was started after the response.
            self._set_keep_alive_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next request, or wait for it."""
        super().on_response_complete()
        if not self._is_busy() and not self.transport.is_closing():
            self.waiting.setdefault(self)
            self._set_timer()

    def pause_writing(self) -> None:
        """Wait for the client to read. At the limit of unread connections, close the longest waiting connection."""
        self.waiting.setdefault(self)
        self.unread[self] = None
        if len(self.unread) > MAX_UNREAD:
            longest = next(iter(self.unread))
            del self.unread[longest]
            longest.transport.abort()
            metrics.CONNECTIONS_CLOSED.labels("unread").inc()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Continue after the client has read."""
        self.unread.pop(self, None)
        if self._is_busy() and self._part is _Part.START:
            self.waiting.pop(self, None)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that the parser or one of its callbacks has rejected."""
        self._refuse(self._failure or InvalidRequest(f"{msg} Send a request that follows RFC 9112."))

    def _set_keep_alive_timer(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _has_content_length(self) -> bool:
        return any(name == b"content-length" for name, _ in self.headers)

    def _announces_body(self) -> bool:
        """Whether the header fields of the request that is arriving say that a body follows."""
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in self.headers
        )

    def _is_busy(self) -> bool:
        """Whether the application is still responding to the last request."""
        return not getattr(self.cycle, "response_complete", True)

    def _is_over(self) -> bool:
        """Whether the connection is closing, or all data that still arrives is discarded."""
        return self._discarded is not None or self.transport.is_closing()

    def _fail(self, failure: ClustercertError) -> None:
        """Stop the parser. uvicorn then calls `send_400_response`."""
        self._failure = failure
        raise failure

    def _set_timer(self) -> None:
        """Run the timer while a part of a request is incomplete.

        The application itself limits the time in which the body must arrive.
        """
        if self._discarded is not None:
            return
        if self._is_busy():
            begun = self._part is _Part.BODY and self._received > 0
        else:
            begun = self._part is not _Part.START or self._received > 0
        if not begun:
            self._stop_timer()
        elif self._timer is None:
            is_late = self._part is _Part.BODY and not self._is_busy()
            self._timer = self.loop.call_later(LATE_SECONDS if is_late else HEAD_SECONDS, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._refuse(
            RequestTimeout(
                f"The request did not arrive within {HEAD_SECONDS:g} seconds. Send the request again."
            )
        )

    def _refuse(self, failure: ClustercertError) -> None:
        """Send the failure as the response if a response is due now, and close the connection."""
        if self._is_over():
            return
        metrics.REQUESTS.labels(OTHER, OTHER, str(failure.status)).inc()
        if not self._owes_response():
            self.transport.close()
            return
        if self._is_busy():
            # Otherwise the application would send its own response as well.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(self._rendered(failure))
        self._discard()

    def _discard(self) -> None:
        """Discard the data that still arrives, and close the connection when the client is silent."""
        self._discarded = 0
        self._discard_until = self.loop.time() + LATE_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._linger()

    def _linger(self) -> None:
        """Close the connection after LINGER_SECONDS, but not after the end of LATE_SECONDS."""
        self._stop_timer()
        end = min(self.loop.time() + LINGER_SECONDS, self._discard_until)
        self._timer = self.loop.call_at(end, self.transport.abort)

    def _owes_response(self) -> bool:
        """Whether the next response on this connection belongs to the request that is arriving."""
        if self._is_busy():
            return self._part is _Part.BODY and not self.cycle.response_started and not self.pipeline
        return self._part is not _Part.BODY

    def _rendered(self, failure: ClustercertError) -> bytes:
        request_id = new_id()
        # The path is empty if the parser has not accepted the request line.
        path = self.url.partition(b"?")[0].decode("latin-1")
        # Before the first request of the connection, there is no list of headers.
        for_huawei_sdk = is_huawei_sdk(self.headers or ())
        response = responses.error(failure, path, request_id, for_huawei_sdk=for_huawei_sdk)
        fields = [
            *self.server_state.default_headers,
            *response.raw_headers,
            *responses.BROWSER_RULES,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in fields]
        return b"".join([STATUS_LINE[failure.status], *lines, b"\r\n", bytes(response.body)])


def _too_large() -> HeaderTooLarge:
    return HeaderTooLarge(
        f"The request target and headers exceed {MAX_HEAD_BYTES} bytes or {MAX_FIELDS} header fields. "
        "Send a smaller request."
    )
