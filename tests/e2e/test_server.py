"""A worker's connections over real sockets: what is told to the application, and what never gets so far."""

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clustercert.certificate import chain_pem
from clustercert.keypair import key_pem, new_key
from clustercert.server.connection import Bounds
from clustercert.server.tls_files import Tls, new_server_certificate
from served import LARGE_BYTES, Served, everything, served

BOUNDS = Bounds(head_seconds=0.6, idle_seconds=1.5, linger_seconds=0.5, rest_seconds=0.5, connections=8)
HOST = b"Host: a\r\n"
CLOSE = b"Host: a\r\nConnection: close\r\n\r\n"
FIELDS = {"errorCode", "errorMessage", "error_code", "error_msg", "message", "request_id"}


@pytest.fixture(scope="module")
def worker() -> Iterator[Served]:
    with served(BOUNDS) as one:
        yield one


@pytest.fixture
def files(tmp_path: Path) -> Tls:
    key = new_key("ec-p256")
    now = datetime.now(UTC).replace(microsecond=0)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=2))
    (tmp_path / "tls.pem").write_bytes(chain_pem((leaf, ca)))
    (tmp_path / "tls.key").write_bytes(key_pem(key))
    (tmp_path / "ca.pem").write_bytes(chain_pem((ca,)))
    return Tls(tmp_path / "tls.pem", tmp_path / "tls.key", tmp_path / "ca.pem", "")


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, header fields and what follows."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


def answered(connection: socket.socket) -> bytes:
    """One answer and no more of what comes."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1)
    length = int(parsed(answer)[1]["content-length"])
    while length:
        answer += (chunk := connection.recv(length))
        length -= len(chunk)
    return answer


def told(worker: Served, request: bytes) -> dict[str, Any]:
    """What the application got of a request, which has to end its connection."""
    status, _, body = parsed(worker.asked(request))
    assert status == 200, body
    got: dict[str, Any] = json.loads(body)
    return got


def assert_refused(answer: bytes, status: int) -> None:
    got, headers, body = parsed(answer)
    assert got == status, answer
    assert headers["connection"] == "close"
    assert "date" in headers
    failure = json.loads(body)
    assert failure.keys() == FIELDS
    assert failure["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize(
    ("target", "raw_path", "path", "query"),
    [
        (b"/a%2Fb%20c/%C3%A4?x=%41&y=a+b&&z", "/a%2Fb%20c/%C3%A4", "/a/b c/ä", "x=%41&y=a+b&&z"),
        (b"//x//./../y", "//x//./../y", "//x//./../y", ""),
        (b"/a?", "/a", "/a", ""),
        (b"/%zz%?%zz", "/%zz%", "/%zz%", "%zz"),
        (b"/a:b@c?d=http://x/y?z", "/a:b@c", "/a:b@c", "d=http://x/y?z"),
        (b"/a?b#c", "/a", "/a", "b"),
        (b"http://a:80/x%20y?q=1", "/x%20y", "/x y", "q=1"),
        (b"http://a", "/", "/", ""),
        (b"http://a?x=/1", "/", "/", "x=/1"),
        (b"*", "*", "*", ""),
    ],
)
def test_targets_arrive_as_they_were_sent(
    worker: Served, target: bytes, raw_path: str, path: str, query: str
) -> None:
    got = told(worker, b"GET " + target + b" HTTP/1.1\r\n" + CLOSE)
    assert (got["raw_path"], got["path"], got["query_string"]) == (raw_path, path, query)


def test_names_of_headers_are_lower_case_and_values_are_bytes_without_blanks_around(worker: Served) -> None:
    got = told(worker, b"GET / HTTP/1.1\r\nX-A: \t caf\xe9  b \t\r\nX-a: 2\r\n" + CLOSE)
    assert got["headers"] == [["x-a", "caf\xe9  b"], ["x-a", "2"], ["host", "a"], ["connection", "close"]]


def test_the_clients_address_is_an_address_and_a_port(worker: Served) -> None:
    with worker.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + CLOSE)
        _, _, body = parsed(answered(connection))
        assert json.loads(body)["client"] == list(connection.getsockname())


def test_ipv6_is_listened_on() -> None:
    with served(BOUNDS, host="::1") as worker:
        assert told(worker, b"GET / HTTP/1.1\r\n" + CLOSE)["client"][0] == "::1"


def test_what_is_pipelined_is_answered_in_order_and_whole(worker: Served) -> None:
    requests = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\nHEAD /2 HTTP/1.1\r\n" + HOST
    requests += (
        b"\r\nPOST /3 HTTP/1.1\r\nContent-Length: 3\r\n" + HOST + b"\r\nabcGET /4 HTTP/1.1\r\n" + CLOSE
    )
    first, second, third, fourth = worker.asked(requests).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first.endswith(b'\r\n\r\n{"slow": true}')
    assert second.endswith(b"\r\n\r\n")
    assert json.loads(third.partition(b"\r\n\r\n")[2])["body"] == "abc"
    assert json.loads(fourth.partition(b"\r\n\r\n")[2])["path"] == "/4"


def test_too_much_is_not_pipelined(worker: Served) -> None:
    before = worker.counts()["requests"]
    answer = worker.asked(
        (b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n") + (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") * 40
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 1 + BOUNDS.pipelined
    assert_refused(answer[answer.rindex(b"HTTP/1.1 ") :], 400)
    assert worker.counts()["requests"] == before + BOUNDS.pipelined + 2


def test_a_client_that_waits_is_told_to_continue(worker: Served) -> None:
    with worker.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n" + CLOSE)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert json.loads(parsed(answered(connection))[2])["body"] == "abc"


def test_a_chunked_body_comes_whole_and_without_its_trailers(worker: Served) -> None:
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + CLOSE
    got = told(worker, head + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-Auth-Token: t\r\nHost: b\r\n\r\n")
    assert got["body"] == "abcde"
    assert got["headers"] == [["transfer-encoding", "chunked"], ["host", "a"], ["connection", "close"]]


def test_http_1_0_is_answered_and_closed(worker: Served) -> None:
    assert told(worker, b"GET /a HTTP/1.0\r\n\r\n")["http_version"] == "1.0"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_offer_to_upgrade_by_a_last_request_is_ignored_too(worker: Served, version: str) -> None:
    offer = b"Connection: close, Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\nHost: a\r\n\r\nabc"
    got = told(worker, f"POST / HTTP/{version}\r\n".encode() + offer)
    assert (got["http_version"], got["body"]) == (version, "abc")


def test_an_offer_to_upgrade_is_ignored_and_the_connection_goes_on(worker: Served) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    requests = b"GET /1 HTTP/1.1\r\n" + offer + HOST + b"\r\n"
    requests += b"POST /2 HTTP/1.1\r\nContent-Length: 3\r\n" + offer + HOST + b"\r\nabc"
    answers = worker.asked(requests + b"GET /3 HTTP/1.1\r\n" + CLOSE).split(b"HTTP/1.1 200 OK\r\n")[1:]
    got = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
    assert [(one["path"], one["body"]) for one in got] == [("/1", ""), ("/2", "abc"), ("/3", "")]


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"hello\r\n\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\n" + CLOSE,
        b"GET / HTTP/2.0\r\n" + CLOSE,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\n" + CLOSE,
        b"GET / HTTP/1.1\nHost: a\nConnection: close\n\n",
        b"GET / HTTP/1.1\r\nX-A: a\r\n b\r\n" + CLOSE,
        b"GET / HTTP/1.1\r\nX-A: a\x00b\r\n" + CLOSE,
        b"GET / HTTP/1.1\r\nX-A : a\r\n" + CLOSE,
    ],
)
def test_what_is_no_http_is_refused_in_our_form(worker: Served, request_: bytes) -> None:
    assert_refused(worker.asked(request_), 400)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"),
        (b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"),
        (b"Content-Length: 3, 3\r\n", b"abc"),
        (b"Content-Length: +3\r\n", b"abc"),
        (b"Content-Length: 0x3\r\n", b"abc"),
        (b"Content-Length: 99999999999999999999\r\n", b"abc"),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: gzip\r\n", b"abc"),
        (b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding:\x0bchunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"-1\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3 \r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nabcGET / HTTP/1.1\r\n\r\n"),
    ],
)
def test_a_request_whose_end_is_a_matter_of_opinion_is_refused(
    worker: Served, head: bytes, body: bytes
) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\n" + CLOSE
    answer = worker.asked(b"POST / HTTP/1.1\r\n" + head + HOST + b"\r\n" + body + smuggled)
    assert_refused(answer, 400)
    assert b"smuggled" not in answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\n" + CLOSE,
        b"GET /" + b"a" * 66_000,
        b"GET / HTTP/1.1\r\nX-A: " + b"a" * 66_000 + b"\r\n" + CLOSE,
        b"GET / HTTP/1.1\r\nX-A: " + b"a" * 66_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % number for number in range(100)) + CLOSE,
    ],
)
@pytest.mark.parametrize("piece", [10_000, 100_000])
def test_a_header_block_over_its_bound_is_refused(worker: Served, head: bytes, piece: int) -> None:
    with worker.connect() as connection:
        for start in range(0, len(head), piece):
            connection.sendall(head[start : start + piece])
            time.sleep(0.005)
        if not head.endswith(CLOSE):
            connection.sendall(b"a")
        assert_refused(everything(connection), 431)


def test_a_large_body_is_no_large_header_block(worker: Served) -> None:
    body = b"x" * 300_000
    head = b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n" + HOST + b"\r\n"
    with worker.connect() as connection:
        connection.sendall(head + body + head + body + b"GET /end HTTP/1.1\r\n" + CLOSE)
        answers = everything(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == 3


def test_endless_trailers_are_refused(worker: Served) -> None:
    with worker.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"\r\n3\r\nabc\r\n0\r\nX-A: "
        )
        for _ in range(64):
            connection.sendall(b"a" * 65536)
        assert_refused(answered(connection), 400)


def test_a_request_that_does_not_go_on_is_told_so(worker: Served) -> None:
    started = time.monotonic()
    assert_refused(worker.asked(b"GET / HTTP/1.1\r\nHost: a\r\n"), 408)
    assert time.monotonic() - started < 3


def test_so_is_one_that_comes_byte_by_byte(worker: Served) -> None:
    with worker.connect() as connection:
        deadline = time.monotonic() + 10
        with contextlib.suppress(ConnectionError):
            for byte in b"GET / HTTP/1.1\r\nX-A: " + b"a" * 200:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() < deadline
        with contextlib.suppress(ConnectionError):
            assert_refused(answered(connection), 408)


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
def test_who_says_nothing_is_hung_up_on(worker: Served, sent: bytes) -> None:
    started = time.monotonic()
    assert worker.asked(sent) == b""
    assert time.monotonic() - started < 3


def test_an_idle_connection_is_kept_for_a_while(worker: Served) -> None:
    with worker.connect() as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            assert answered(connection).startswith(b"HTTP/1.1 200")
            time.sleep(BOUNDS.head_seconds + 0.2)
        started = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("rest", [b"", b"b" * 9], ids=["never-comes", "comes"])
def test_a_request_answered_before_its_end_does_not_hold_its_connection_for_ever(
    worker: Served, rest: bytes
) -> None:
    with worker.connect() as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nContent-Length: 10\r\n" + HOST + b"\r\nb")
        assert answered(connection).startswith(b"HTTP/1.1 401")
        started = time.monotonic()
        connection.sendall(rest)
        assert connection.recv(1) == b""
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_reaches_who_still_sends_a_body_that_nobody_reads(worker: Served, version: str) -> None:
    started = time.monotonic()
    for size in (10, 200_000, 3_000_000):
        head = f"POST /unread HTTP/{version}\r\nContent-Length: {size}\r\n".encode() + CLOSE
        status, headers, body = parsed(worker.asked(head + bytes(size)))
        assert (status, headers["connection"], body) == (401, "close", b"{}")
    assert time.monotonic() - started < 3


def test_the_connection_goes_on_behind_a_body_that_nobody_read(worker: Served) -> None:
    with worker.connect() as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nContent-Length: 10\r\n" + HOST + b"\r\nb")
        assert answered(connection).startswith(b"HTTP/1.1 401")
        connection.sendall(b"b" * 9 + b"GET / HTTP/1.1\r\n" + CLOSE)
        assert answered(connection).startswith(b"HTTP/1.1 200")


def test_who_goes_in_the_middle_of_a_body_is_missed(worker: Served) -> None:
    before = worker.counts()["disconnected"]
    with worker.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n" + HOST + b"\r\nb")
    deadline = time.monotonic() + 5
    while worker.counts()["disconnected"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_slow_reader_is_waited_for_and_not_written_ahead_of(worker: Served) -> None:
    with worker.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(b"GET /large HTTP/1.1\r\n" + CLOSE)
        time.sleep(BOUNDS.head_seconds)
        assert worker.counts()["large"] < LARGE_BYTES / 2
        head, _, body = b"".join(iter(lambda: connection.recv(1 << 20), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert len(body) == LARGE_BYTES


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_a_last_answer_is_not_cut_off_where_its_reader_is_slow(files: Tls, *, secured: bool) -> None:
    context = ssl.create_default_context(cafile=files.ca)
    with served(replace(BOUNDS, idle_seconds=20), files=files if secured else None) as worker:
        connection = worker.connect()
        if secured:
            connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
        with connection:
            connection.sendall(b"GET /page HTTP/1.1\r\n" + CLOSE)
            time.sleep(4 * BOUNDS.linger_seconds)
            assert len(everything(connection).partition(b"\r\n\r\n")[2]) == LARGE_BYTES


@pytest.mark.parametrize("path", [b"/page", b"/large"], ids=["at once", "in pieces"])
def test_who_reads_nothing_of_an_answer_is_hung_up_on_in_the_end(worker: Served, path: bytes) -> None:
    with worker.connect() as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\n" + CLOSE)
        time.sleep(2 * BOUNDS.idle_seconds + 1)
        with contextlib.suppress(ConnectionError):
            assert len(everything(connection)) < LARGE_BYTES


def test_an_api_server_is_heard_at_once(worker: Served) -> None:
    ask = b"POST /clustercert/v1/kubernetes/busy HTTP/1.1\r\n" + HOST + b"\r\n"
    with worker.connect() as connection:
        started = time.monotonic()
        for _ in range(5):
            connection.sendall(ask)
            assert answered(connection).startswith(b"HTTP/1.1 503")
        assert time.monotonic() - started < BOUNDS.rest_seconds


def test_who_is_told_to_come_back_later_is_not_heard_until_then(worker: Served) -> None:
    ask = b"GET /busy HTTP/1.1\r\n" + HOST + b"\r\n"
    with worker.connect() as connection:
        # The second half of them comes while the first is answered, and waits as well.
        connection.sendall(ask + ask)
        started = time.monotonic()
        assert answered(connection).startswith(b"HTTP/1.1 503")
        assert time.monotonic() - started < BOUNDS.rest_seconds / 2
        for number in (1, 2):
            connection.sendall(ask)
            assert answered(connection).startswith(b"HTTP/1.1 503")
            assert time.monotonic() - started >= number * BOUNDS.rest_seconds * 0.95
        assert time.monotonic() - started < 10


def test_those_over_the_bound_wait_and_idle_ones_make_room() -> None:
    patient = replace(BOUNDS, head_seconds=20, idle_seconds=20, crowded_seconds=0.3)
    with served(patient) as worker, contextlib.ExitStack() as stack:
        held = [stack.enter_context(worker.connect()) for _ in range(BOUNDS.connections + 3)]
        for connection in held:
            connection.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        # All are answered, if not at once: who has got an answer and asks nothing more makes room.
        for connection in held:
            assert answered(connection).startswith(b"HTTP/1.1 200")
        late = stack.enter_context(worker.connect())
        late.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answered(late).startswith(b"HTTP/1.1 200")


def test_a_request_in_flight_is_finished_and_idle_connections_are_closed() -> None:
    with (
        served(replace(BOUNDS, idle_seconds=20)) as worker,
        worker.connect() as idle,
        worker.connect() as busy,
    ):
        idle.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answered(idle).startswith(b"HTTP/1.1 200")
        busy.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        time.sleep(0.2)
        worker.process.terminate()
        assert idle.recv(1) == b""
        status, headers, _ = parsed(answered(busy))
        assert (status, headers["connection"]) == (200, "close")
        with pytest.raises(ConnectionRefusedError):
            worker.connect()


def test_http_1_1_is_agreed_upon_over_tls_and_strangers_leave_no_trace(
    files: Tls, capfd: pytest.CaptureFixture[str]
) -> None:
    context = ssl.create_default_context(cafile=files.ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with served(BOUNDS, files=files) as worker:
        for strange in (b"GET / HTTP/1.1\r\n" + CLOSE, b"\x16\x03\x01", b"", bytes(2000)):
            with worker.connect() as connection, contextlib.suppress(ConnectionError):
                connection.sendall(strange)
                assert b"HTTP" not in connection.recv(65536)
        with context.wrap_socket(worker.connect(), server_hostname="127.0.0.1") as connection:
            assert connection.selected_alpn_protocol() == "http/1.1"
            connection.sendall(b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n")
            assert json.loads(parsed(answered(connection))[2])["scheme"] == "https"
            connection.sendall(b"nonsense\r\n\r\n")
            assert_refused(answered(connection), 400)
    assert [line for line in capfd.readouterr().err.splitlines() if not _of_coverage(line)] == []


def _of_coverage(line: str) -> bool:
    """Whether a line is a warning of what measures the tests, in a process that they start."""
    return "CoverageWarning" in line or line.strip().startswith("self.warn(")
