"""uvicorn with our protocol and event loop, on real sockets, in front of a small application."""

import asyncio
import contextlib
import errno
import gc
import hashlib
import inspect
import json
import random
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http import httptools_impl

from clustercert.http.middleware import PIECE_BYTES
from clustercert.observability import metrics
from clustercert.server import connection_limits
from clustercert.server.connection_limits import BoundedProtocol, Loop
from clustercert.server.tls_context import TlsContext
from support.log_capture import captured_logs
from support.wait import SECONDS, eventually
from unit.test_tls_context import tls_context

# SHA-256 of the source of what BoundedProtocol extends and calls, in uvicorn 0.54.0.
UVICORN = "70e7393260abf01c74b912ad453c795995fdb0908020fbf68c9f1d87f4a47a2f"
ENDLESS = 4 * 1024 * 1024
# More than sockets on loopback buffer.
LARGE = 5 * ENDLESS
HEAD = b"POST /v1 HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n"
UNREAD = b"POST /unread HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CLOSE = b"Connection: close\r\n\r\n"
LIMIT = connection_limits.MAX_HEAD_BYTES


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes of the body; `/unread` without reading it, `/large` with more."""
    if scope["type"] == "lifespan":
        message: Message = {"type": ""}
        while message["type"] != "lifespan.shutdown":
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    length, more = 0, scope["path"] != "/unread"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message["body"])
        more = message["more_body"]
    fields = [name.decode() for name, _ in scope["headers"]]
    body = json.dumps({"path": scope["path"], "body": length, "fields": fields}).encode()
    if scope["path"] == "/large":
        body = bytes(LARGE)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    # In pieces, as our middleware does.
    for start in range(0, len(body), PIECE_BYTES):
        piece = body[start : start + PIECE_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class Server:
    """uvicorn in a thread."""

    def __init__(self, tls: TlsContext | None = None, keep_alive: int = 100) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            application,
            interface="asgi3",
            http="clustercert.server.connection_limits:BoundedProtocol",
            loop="clustercert.server.connection_limits:Loop",
            ws="none",
            log_config=None,
            log_level="error",
            timeout_keep_alive=keep_alive,
            timeout_graceful_shutdown=1,
            ssl_context_factory=tls,
        )
        self.has_tls = tls is not None
        self.server = uvicorn.Server(config)
        self.factory = config.get_loop_factory()
        self._address = self.socket.getsockname()

    def connect(self) -> socket.socket:
        """A connection, without a handshake."""
        return socket.create_connection(self._address, timeout=SECONDS)

    def client(self) -> socket.socket:
        """A connection, after the handshake if there is TLS."""
        if not self.has_tls:
            return self.connect()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(self.connect())

    def exchange(self, sent: bytes) -> bytes:
        """What the server sends after this, until it closes the connection."""
        with self.connect() as client:
            client.sendall(sent)
            return received(client)

    def connection(self) -> Any:
        """The server's side of its only connection."""
        eventually(lambda: len(self.server.server_state.connections) == 1)
        [connection] = self.server.server_state.connections
        return connection

    def run(self) -> None:
        with asyncio.Runner(loop_factory=self.factory) as runner:
            runner.run(self.server.serve([self.socket]))


@contextlib.contextmanager
def serving(tls: TlsContext | None = None, keep_alive: int = 100) -> Iterator[Server]:
    server = Server(tls, keep_alive)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.server.started)
        yield server
    finally:
        server.server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """For tests that look at their own connections only."""
    with serving() as running:
        yield running


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """For tests that count connections, which all servers of a process count together."""
    eventually(lambda: not server.server.server_state.connections)
    with serving() as running:
        yield running


@pytest.fixture
def tls(tmp_path: Path) -> TlsContext:
    return tls_context(tmp_path)


@pytest.fixture
def secured(tls: TlsContext) -> Iterator[Server]:
    with serving(tls) as running:
        yield running


def received(client: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            said += part
    return said


def answered(client: socket.socket, sent: bytes) -> int:
    """The status of the application's answer, after which the connection stays open."""
    client.sendall(sent)
    said = b""
    while not said.endswith(b"}"):
        part = client.recv(65536)
        assert part
        said += part
    return status(said)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def content(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@contextlib.contextmanager
def sending(client: socket.socket, data: bytes) -> Iterator[None]:
    """Send it in a thread: the server may stop reading before its end."""

    def send() -> None:
        with contextlib.suppress(OSError):
            client.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    yield
    sender.join()


def repeat(part: bytes) -> bytes:
    return part * (ENDLESS // len(part))


def closed(limit: str) -> float:
    [family] = metrics.CONNECTIONS_CLOSED.labels(limit).collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_total"))


def test_uvicorn_is_what_this_module_extends() -> None:
    """If it fails: read what changed in uvicorn, run this module and e2e/test_server.py, then store the new hash."""
    source = "".join(
        inspect.getsource(each)
        for each in (httptools_impl.HttpToolsProtocol, httptools_impl.RequestResponseCycle)
    )
    assert hashlib.sha256(source.encode()).hexdigest() == UVICORN


def test_the_loop_is_the_one_with_a_handshake_limit(server: Server) -> None:
    assert server.factory is Loop


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"", b"\r\n"),
        (b"GET /", b"a"),
        (b"GET /?", b"a=1&"),
        (HEAD, b"a:\r\n"),
        (HEAD, b"a: b\r\n"),
        (HEAD, b"a"),
        (HEAD + b"a: ", b"a"),
        (HEAD + b"a:", b" "),
        (CHUNKED + b"1", b"0"),
        (CHUNKED + b"1;", b"a"),
        (CHUNKED + b"1;", b"a=b;"),
        (CHUNKED + b"1;a=", b"b"),
        (CHUNKED + b'1;a="', b"b"),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n"),
        (CHUNKED + b"1\r\na\r\n0\r\na: ", b"a"),
        (CHUNKED + b"1\r\na\r\n0\r\na", b"a"),
    ],
)
def test_what_never_ends_is_refused_while_it_arrives(server: Server, begin: bytes, more: bytes) -> None:
    with server.connect() as client, sending(client, begin + repeat(more)):
        answer = received(client)
    # A malformed part of a request is a 400 before it is too large.
    assert status(answer) in {400, 431}
    assert b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower()
    assert content(answer)["error_msg"]
    # This connection is gone, others are served.
    assert status(server.exchange(HEAD + CLOSE)) == 200


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what the parser got."""
    sizes: list[int] = []
    feed = httptools_impl.HttpToolsProtocol.data_received

    def counted(self: httptools_impl.HttpToolsProtocol, data: bytes) -> None:
        feed(self, data)
        sizes.append(len(data))

    monkeypatch.setattr(httptools_impl.HttpToolsProtocol, "data_received", counted)
    return sizes


def test_no_more_than_the_limit_reaches_the_parser(server: Server, fed: list[int]) -> None:
    assert status(server.exchange(HEAD + b"a: " + b"b" * ENDLESS)) == 431
    assert sum(fed) == LIMIT


def padded(size: int) -> bytes:
    """A request with so many bytes in its head."""
    return HEAD + b"X: " + b"a" * (size - len(HEAD + b"X: \r\n" + CLOSE)) + b"\r\n" + CLOSE


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (padded(LIMIT), 200),
        (padded(LIMIT + 1), 431),
        (HEAD + b"a: b\r\n" * 98 + CLOSE, 200),
        (HEAD + b"a: b\r\n" * 99 + CLOSE, 431),
        *((GET.replace(b"1.1", version) + CLOSE, 200) for version in (b"1.0", b"1.1")),
        *((GET.replace(b"1.1", version) + CLOSE, 400) for version in (b"0.9", b"1.2", b"2.0", b"3.0")),
    ],
)
def test_bytes_fields_and_versions_have_exact_limits(server: Server, sent: bytes, expected: int) -> None:
    assert status(server.exchange(sent)) == expected


def test_trailers_reach_no_application(server: Server) -> None:
    head = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = server.exchange(head + b"1\r\na\r\n0\r\nX-Auth-Token: a\r\n\r\n")
    assert content(answer)["fields"] == ["host", "connection", "transfer-encoding"]


@pytest.mark.parametrize("framing", [b"Content-Length: 32", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_the_body_of_a_request_with_an_upgrade_is_no_request(
    server: Server, framing: bytes, protocol: bytes
) -> None:
    """The parser would skip the body, and take what arrives later for the next request on the connection."""
    offer = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n"
    with server.connect() as client:
        client.sendall(HEAD + offer + framing + b"\r\n\r\n")
        answer = client.recv(65536)
        client.sendall(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        answer += received(client)
    assert (status(answer), answer.count(b"HTTP/1.1 ")) == (400, 1)
    said = content(answer)["error_msg"]
    assert all(text in said for text in ("without the header Upgrade", "version(HTTP_1_1)", "--http1.1"))
    assert b"/smuggled" not in answer


@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n"])
def test_an_upgrade_of_a_request_without_a_body_is_ignored(server: Server, length: bytes) -> None:
    with server.connect() as client:
        assert answered(client, HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + length + b"\r\n") == 200
        client.sendall(HEAD + CLOSE)
        assert received(client).count(b"HTTP/1.1 200 ") == 1


def test_a_refusal_is_not_the_response_to_an_earlier_request(server: Server) -> None:
    answer = server.exchange(HEAD + b"\r\nPOST http:// HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("sent", [b"POST http://", b"CONNECT http://", b"POST a:443", b"CONNECT a:443"])
def test_a_target_without_a_path_is_refused(server: Server, sent: bytes) -> None:
    answer = server.exchange(sent + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status(answer) == 400
    assert content(answer)["error_msg"]


@pytest.mark.parametrize("version", ["0.9", "2.0"])
def test_the_refusal_of_a_version_names_it(server: Server, version: str) -> None:
    answer = server.exchange(GET.replace(b"1.1", version.encode()) + CLOSE)
    assert content(answer)["error_msg"] == (
        f"HTTP/{version} is not supported. Send the request with HTTP/1.1."
    )


def test_huawei_clouds_sdks_get_each_text_of_a_refusal_once(server: Server) -> None:
    head = HEAD + b"User-Agent: huaweicloud-usdk-java/3.0\r\n"
    answer = server.exchange(head + b"a: " + b"b" * ENDLESS)
    said = content(answer)
    assert status(answer) == 431
    assert said["error_msg"] == said["errorMessage"]
    assert "message" not in said


@pytest.mark.parametrize(
    ("target", "fault", "code"),
    [
        (b"/v3/auth/tokens", b"a: " + b"b" * ENDLESS, 431),
        *(
            (each, b"X A: b", 400)
            for each in (b"/v3/auth/tokens", b"/v3", b"/v3?a=b", b"/v3/auth/tokens?a=b")
        ),
    ],
)
def test_a_refusal_under_v3_is_one_of_keystone(
    server: Server, target: bytes, fault: bytes, code: int
) -> None:
    answer = server.exchange(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n" + fault + b"\r\n\r\n")
    assert content(answer)["error"]["code"] == code


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"", b"G"),
        (b"", b"\r\n"),
        (b"", HEAD),
        (b"", HEAD + b"a: b"),
        (CHUNKED + b"1;", b"a"),
        (CHUNKED + b"1\r\na\r\n0\r\na: ", b"b"),
    ],
)
def test_what_does_not_arrive_in_time_is_refused(
    server: Server, fed: list[int], monkeypatch: pytest.MonkeyPatch, begin: bytes, more: bytes
) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.05)
    with server.connect() as client:
        client.sendall(begin)
        eventually(lambda: sum(fed) == len(begin))
        client.sendall(more)
        assert status(received(client)) == 408


def test_a_header_block_that_trickles_in_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.1)
    with server.connect() as client:
        client.sendall(HEAD + b"a: ")
        client.settimeout(0.01)
        for _ in range(10_000):
            try:
                answer = client.recv(65536)
                break
            except TimeoutError:
                client.sendall(b"b")
    assert status(answer) == 408


def test_a_body_that_nobody_reads_ends_the_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "LATE_SECONDS", 0.05)
    answer = server.exchange(UNREAD + b"Content-Length: 10\r\n\r\n")
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1") == 1


def test_a_chunked_body_that_goes_on_after_the_response_is_not_parsed(server: Server, fed: list[int]) -> None:
    with server.connect() as client:
        assert answered(client, UNREAD + b"Transfer-Encoding: chunked\r\n\r\n") == 200
        before = sum(fed)
        with sending(client, repeat(b"1\r\na\r\n")):
            assert b"HTTP/1.1" not in received(client)
    assert sum(fed) - before <= 2 * LIMIT


@pytest.mark.parametrize("has_tls", [False, True])
@pytest.mark.parametrize("framing", ["counted", "chunked"])
def test_a_client_that_sends_a_large_body_before_it_reads_sees_the_response(
    tls: TlsContext, framing: str, *, has_tls: bool
) -> None:
    body = bytes(LARGE)
    head = b"Content-Length: %d\r\n\r\n" % LARGE
    if framing == "chunked":
        head, body = b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n" % LARGE + body + b"\r\n0\r\n\r\n"
    with serving(tls if has_tls else None) as server, server.client() as client:
        client.sendall(UNREAD + head)
        # The response is on its way, but the client does not read it yet.
        for start in range(0, len(body), 1 << 20):
            client.sendall(body[start : start + (1 << 20)])
        assert answered(client, b"") == 200
        if framing == "counted":
            # The connection can be used again.
            client.sendall(HEAD + CLOSE)
            assert status(received(client)) == 200


def test_a_client_may_be_slow_to_send_what_nobody_reads(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part that arrives keeps the connection open, but not for longer than a limit."""
    monkeypatch.setattr(connection_limits, "LINGER_SECONDS", 1000.0)
    monkeypatch.setattr(connection_limits, "LATE_SECONDS", 3000.0)
    with own_server.connect() as client:
        assert answered(client, UNREAD + b"Transfer-Encoding: chunked\r\n\r\n") == 200
        connection = own_server.connection()
        client.sendall(b"%x\r\n" % LARGE + bytes(2 * LIMIT))
        assert received(client) == b""

        def end_after_another_part() -> float:
            """When the connection will be closed, by the clock of the event loop."""
            timer = connection._timer
            client.sendall(b"a")
            eventually(lambda: connection._timer not in {None, timer})
            return float(connection._timer.when())

        assert end_after_another_part() < end_after_another_part() < connection._discard_until
        monkeypatch.setattr(connection_limits, "LINGER_SECONDS", 5000.0)
        assert end_after_another_part() == pytest.approx(connection._discard_until, abs=1e-6)
        monkeypatch.setattr(connection_limits, "LINGER_SECONDS", 0.0)
        client.sendall(b"a")
        eventually(lambda: not own_server.server.server_state.connections)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 99999999999\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n"]
)
def test_what_is_discarded_has_a_limit(
    server: Server, monkeypatch: pytest.MonkeyPatch, framing: bytes
) -> None:
    monkeypatch.setattr(connection_limits, "MAX_DISCARDED", ENDLESS)
    with server.connect() as client:
        client.sendall(UNREAD + framing)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100 * ENDLESS:
                sent += client.send(bytes(1 << 20))
    # Sockets buffer some megabytes.
    assert ENDLESS <= sent < 10 * ENDLESS


def test_after_a_body_that_nobody_read_the_connection_is_idle_and_may_be_closed(own_server: Server) -> None:
    with own_server.connect() as client:
        assert answered(client, UNREAD + b"Content-Length: 5\r\n\r\n") == 200
        connection = own_server.connection()
        connection.timeout_keep_alive = 0.05
        client.sendall(b"hello")
        assert received(client) == b""
        assert connection._part is connection_limits._Part.START


def test_a_request_after_a_body_that_nobody_read_may_take_longer_than_an_idle_connection(
    own_server: Server,
) -> None:
    with own_server.connect() as client:
        assert answered(client, UNREAD + b"Content-Length: 5\r\n\r\n") == 200
        connection = own_server.connection()
        # The application waits for the body of the next request.
        client.sendall(b"hello" + HEAD + b"Connection: close\r\nContent-Length: 1\r\n\r\n")
        eventually(connection._is_busy)
        assert connection.timeout_keep_alive_task is None
        client.sendall(b"a")
        assert status(received(client)) == 200


def test_a_connection_is_kept_after_a_short_body_that_nobody_read(server: Server) -> None:
    with server.connect() as client:
        # The body may arrive after the head.
        assert answered(client, UNREAD + b"Content-Length: 40000\r\n\r\n") == 200
        client.sendall(b"a" * 40_000 + HEAD + CLOSE)
        assert status(received(client)) == 200


def test_a_connection_that_sends_nothing_ends_like_an_idle_one() -> None:
    with serving(keep_alive=0) as server:
        assert server.exchange(b"") == b""


def test_many_requests_before_the_first_response_end_the_connection(server: Server) -> None:
    waiting = HEAD + b"Content-Length: 1\r\n\r\na"
    assert server.exchange(waiting * 1000).count(b"HTTP/1.1 200") < 1000
    assert status(server.exchange(HEAD + CLOSE)) == 200


REQUESTS = (
    (GET + b"\r\n", ("/a", 0)),
    (HEAD + b"Content-Length: 5\r\n\r\nhello", ("/v1", 5)),
    (CHUNKED + b"5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\nX-A: b\r\n\r\n", ("/v1", 8)),
    (
        HEAD + b"X: " + b"a" * 40_000 + b"\r\nContent-Length: 200000\r\n\r\n" + b"a" * 200_000,
        ("/v1", 200_000),
    ),
    (UNREAD + b"Content-Length: 3\r\n\r\nabc", ("/unread", 0)),
)


@pytest.mark.parametrize("seed", range(12))
def test_requests_are_answered_however_they_are_cut(server: Server, seed: int) -> None:
    """Up to 8 requests on one connection, cut at random places, each response read before the next request or not."""
    chance = random.Random(seed)
    chosen = chance.choices(REQUESTS, k=8)

    def cut(stream: bytes) -> None:
        while stream:
            size = chance.choice((1, 7, 100, 5_000, 70_000, 300_000))
            client.sendall(stream[:size])
            stream = stream[size:]

    with server.connect() as client:
        sender = threading.Thread(target=cut, args=(b"".join(request for request, _ in chosen),))
        sender.start()
        answers = b""
        while answers.count(b"}") < len(chosen) and (part := client.recv(65536)):
            answers += part
        sender.join()
    bodies = [content(each) for each in answers.split(b"HTTP/1.1 200 OK")[1:]]
    assert [(body["path"], body["body"]) for body in bodies] == [expected for _, expected in chosen]


def test_at_the_limit_the_connection_that_waits_longest_is_closed(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(BoundedProtocol, "_reported", -connection_limits.REPORT_SECONDS)
    before = closed("connections")
    with contextlib.ExitStack() as stack, captured_logs(connection_limits) as log:
        busy = stack.enter_context(own_server.connect())
        busy.sendall(HEAD + b"Content-Length: 2\r\n\r\na")
        held = [stack.enter_context(own_server.connect()) for _ in range(40)]
        for client in held[-10:]:
            client.sendall(GET + CLOSE)
            assert status(received(client)) == 200
        assert received(held[0]) == b""
    assert closed("connections") > before
    assert [line["event"] for line in log] == ["connection limit reached"]
    eventually(lambda: not own_server.server.server_state.connections)
    assert not BoundedProtocol.waiting


def read_slowly(client: socket.socket) -> None:
    """Request more than sockets buffer, and read the beginning only."""
    client.sendall(GET.replace(b"/a", b"/large") + b"\r\n")
    assert client.recv(1) == b"H"


def test_a_client_that_does_not_read_makes_room(own_server: Server) -> None:
    with own_server.connect() as client:
        read_slowly(client)
        eventually(lambda: len(BoundedProtocol.waiting) == 1)
        [connection] = BoundedProtocol.waiting
        assert connection.flow.write_paused


@pytest.mark.parametrize("has_tls", [False, True])
def test_responses_that_nobody_reads_are_limited(
    tls: TlsContext, monkeypatch: pytest.MonkeyPatch, has_tls: bool
) -> None:
    """Otherwise, each of 2,048 connections could hold a response for as long as its client likes."""
    monkeypatch.setattr(connection_limits, "MAX_UNREAD", 4)
    before = closed("unread")
    with serving(tls if has_tls else None) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(server.client()) for _ in range(10)]
        for client in held:
            read_slowly(client)
        eventually(lambda: len(server.server.server_state.connections) == 4)
        assert len(BoundedProtocol.unread) == 4
        assert closed("unread") == before + 6
        left = LARGE
        while left > 0:
            part = held[-1].recv(1 << 20)
            assert part
            left -= len(part)
        eventually(lambda: len(BoundedProtocol.unread) == 3)
    assert not BoundedProtocol.unread


def test_with_tls_no_more_waits_for_a_client_than_without(secured: Server) -> None:
    with secured.client() as client:
        client.sendall(HEAD)
        limits = secured.connection().transport.get_write_buffer_limits()
        assert limits[1] == connection_limits.WRITE_BUFFER


def test_a_header_block_without_an_end_is_refused_over_tls_too(secured: Server) -> None:
    with secured.client() as client:
        client.sendall(HEAD + b"a: " + b"b" * 1_000_000)
        assert status(client.recv(65536)) == 431


# The first bytes that clients with unfinished handshakes send.
PARTIAL = (b"", b"\x16\x03\x01")


@pytest.mark.parametrize("sent", [*PARTIAL, b"GET / HTTP/1.1\r\n\r\n"])
def test_an_unfinished_handshake_is_ended(
    secured: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    monkeypatch.setattr(connection_limits, "HANDSHAKE_SECONDS", 0.1)
    # What is not TLS is answered with an alert.
    assert secured.exchange(sent) in {b"", b"\x15\x03\x01\x00\x02\x02\x46"}
    gc.collect()
    assert not caplog.records


def is_served(server: Server) -> bool:
    with server.client() as client:
        client.sendall(HEAD + CLOSE)
        return status(client.recv(65536)) == 200


def test_a_genuine_client_is_served_while_others_hold_unfinished_handshakes(
    secured: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, chance, before = 50, random.Random(0), closed("handshakes")
    monkeypatch.setattr(connection_limits, "MAX_HANDSHAKES", limit)
    monkeypatch.setattr(connection_limits, "HANDSHAKE_SECONDS", 1000.0)
    ended = 0
    with contextlib.ExitStack() as stack:
        held: deque[socket.socket] = deque()
        for _ in range(800):
            full = len(held) == limit
            if chance.random() < 0.05:
                assert is_served(secured)
            else:
                held.append(stack.enter_context(secured.connect()))
                held[-1].sendall(chance.choice(PARTIAL))
            if full:
                with held.popleft() as oldest:
                    assert received(oldest) == b""
                ended += 1
        assert closed("handshakes") - before == ended > 600
        for client in held:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)


def test_handshakes_of_reset_connections_do_not_count(secured: Server) -> None:
    unfinished = secured.server.servers[0]._unfinished  # type: ignore[attr-defined]  # it is our own server
    for _ in range(3):
        with secured.connect() as client:
            eventually(lambda: len(unfinished) == 1)
            # Closing it then resets the connection.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        eventually(lambda: not unfinished)


def test_the_server_stops_while_a_handshake_is_unfinished(tls: TlsContext) -> None:
    with contextlib.ExitStack() as stack:
        with serving(tls) as server:
            client = stack.enter_context(server.connect())
            # It was accepted before this one.
            assert is_served(server)
        assert received(client) == b""


def failing_accept(monkeypatch: pytest.MonkeyPatch, times: int) -> list[None]:
    """Let `accept` fail so many times. Returns a list with an item for each of its calls."""
    calls: list[None] = []
    accept = socket.socket.accept

    def counted(self: socket.socket) -> tuple[socket.socket, object]:
        calls.append(None)
        if len(calls) <= times:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", counted)
    return calls


def test_without_file_descriptors_room_is_made_and_accepting_tried_again(
    secured: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "PAUSE_SECONDS", 0.0)
    with secured.connect() as held, captured_logs(connection_limits) as log:
        # The client above was accepted before this one.
        assert is_served(secured)
        failing_accept(monkeypatch, times=3)
        assert is_served(secured)
        assert received(held) == b""
    assert [line["event"] for line in log] == ["connections can't be accepted"] * 2


def test_without_file_descriptors_the_server_does_not_spin(
    secured: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "PAUSE_SECONDS", 1000.0)
    with secured.client() as kept:
        assert answered(kept, HEAD + b"\r\n") == 200
        calls = failing_accept(monkeypatch, times=1000)
        with secured.connect():
            eventually(lambda: bool(calls))
            assert [answered(kept, HEAD + b"\r\n") for _ in range(10)] == [200] * 10
    assert len(calls) == 1
