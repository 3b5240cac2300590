"""What comes over real sockets: what is refused, whoever refuses it, and what is waited for."""

import json
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from support.chromium import chromium, program
from support.demo_process import Demo, demo
from support.wait import SECONDS, eventually

HOST = b"Host: a\r\n"
CLOSE = b"Host: a\r\nConnection: close\r\n\r\n"
FIELDS = {"errorCode", "errorMessage", "error_code", "error_msg", "message", "request_id"}
# What asks for one's roles has a body, and shows that it was read.
TOKENS = b"POST /v3/auth/tokens HTTP/1.1\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    env = os.environ | {"CLUSTERCERT_SERVER__BODY_TIMEOUT": str(SECONDS)}
    with demo(tmp_path_factory.mktemp("server") / "data", env=env) as one:
        yield one


def connected(running: Demo) -> socket.socket:
    host, port = running.said["url"].removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def asked(running: Demo, request: bytes) -> bytes:
    """All that is answered until the server closes the connection."""
    with connected(running) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, header fields and what follows."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


def assert_refused_by_us(answer: bytes, status: int) -> None:
    got, headers, body = parsed(answer)
    assert got == status, answer
    failure = json.loads(body)
    assert failure.keys() == FIELDS
    assert failure["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"hello\r\n\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\n" + CLOSE,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: a\nConnection: close\n\n",
        b"GET /healthz HTTP/1.1\r\nX-A: a\r\n b\r\n" + CLOSE,
        b"GET /healthz HTTP/1.1\r\nX-A: a\x00b\r\n" + CLOSE,
        b"GET /healthz HTTP/1.1\r\nX-A : a\r\n" + CLOSE,
        b"GET http:// HTTP/1.1\r\n" + CLOSE,
        b"GET http://a:99999/ HTTP/1.1\r\n" + CLOSE,
        b"CONNECT a:443 HTTP/1.1\r\n" + CLOSE,
    ],
)
def test_what_is_no_http_is_refused(running: Demo, request_: bytes) -> None:
    assert_refused_by_us(asked(running, request_), 400)


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
def test_nothing_after_a_request_with_an_ambiguous_end_is_answered(
    running: Demo, head: bytes, body: bytes
) -> None:
    smuggled = b"GET /healthz HTTP/1.1\r\n" + CLOSE
    answer = asked(running, TOKENS + head + HOST + b"\r\n" + body + smuggled)
    assert parsed(answer)[0] == 400
    assert b"\r\n\r\nok\n" not in answer


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /healthz?" + b"a" * 66_000 + b" HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 66_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"X-A: 1\r\n" * 100,
    ],
)
def test_a_header_block_over_its_bound_is_refused(running: Demo, begin: bytes) -> None:
    assert_refused_by_us(asked(running, begin + CLOSE), 431)


def test_http_1_1_without_a_host_is_refused(running: Demo) -> None:
    without = CLOSE.replace(b"Host: a\r\n", b"")
    assert without != CLOSE
    assert_refused_by_us(asked(running, b"GET /healthz HTTP/1.1\r\n" + without), 400)


def test_a_second_host_is_refused(running: Demo) -> None:
    assert_refused_by_us(asked(running, b"GET /healthz HTTP/1.1\r\nHost: b\r\n" + CLOSE), 400)


def test_a_body_that_does_not_come_in_time_is_told_so(tmp_path: Path) -> None:
    env = os.environ | {"CLUSTERCERT_SERVER__BODY_TIMEOUT": "1"}
    with demo(tmp_path / "data", env=env) as running:
        path = running.clustercert_path.encode()
        head = b"POST " + path + b" HTTP/1.1\r\nContent-Length: 10\r\n" + CLOSE
        assert_refused_by_us(asked(running, head + b"{"), 408)


def test_a_large_body_is_not_read_to_its_end(running: Demo) -> None:
    path = running.clustercert_path.encode()
    head = b"POST " + path + b" HTTP/1.1\r\nContent-Length: 70000\r\n" + CLOSE
    assert_refused_by_us(asked(running, head), 413)


@pytest.mark.parametrize("framing", ["counted", "chunked"])
def test_a_client_that_sends_20_mb_before_it_reads_is_told_the_limit(running: Demo, framing: str) -> None:
    size = 20_000_000
    head = b"POST " + running.clustercert_path.encode() + b" HTTP/1.1\r\nHost: a\r\n"
    if framing == "counted":
        request = head + b"Content-Length: %d\r\n\r\n" % size + bytes(size)
    else:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n"
    with connected(running) as connection:
        connection.sendall(request)
        answer = connection.recv(65536)
        while not answer.endswith(b"}") and (more := connection.recv(65536)):
            answer += more
    assert_refused_by_us(answer, 413)


def test_a_client_that_waits_is_told_to_continue(running: Demo) -> None:
    with connected(running) as connection:
        connection.sendall(TOKENS + b"Expect: 100-continue\r\nContent-Length: 2\r\n" + CLOSE)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert parsed(connection.recv(65536))[0] == 400


def test_an_offer_to_upgrade_is_ignored(running: Demo) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nHost: a\r\n\r\n"
    with connected(running) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + offer)
        answer = connection.recv(65536)
        # The head may come by itself.
        while not answer.endswith(b"ok\n") and (more := connection.recv(65536)):
            answer += more
    status, _, body = parsed(answer)
    assert (status, body) == (200, b"ok\n")


@pytest.mark.full
@pytest.mark.skipif(program() is None, reason="Chromium is not installed")
def test_a_browser_shows_the_documentation_and_calls_the_api(running: Demo) -> None:
    operation = "#operations-Operations-healthz_healthz_get"
    answer = f"{operation} .live-responses-table .response .response-col_status"
    status_shown = f"document.querySelector('{answer}')?.innerText"
    with chromium() as browser:
        browser.open(f"{running.said['url']}/docs")
        eventually(lambda: browser.evaluate(f"!!document.querySelector('{operation}')"))
        browser.evaluate(
            "refusals = []; document.addEventListener('securitypolicyviolation', it => refusals.push(it.blockedURI))"
        )
        for button in (".opblock-summary-control", ".try-out__btn", ".execute"):
            found = f"document.querySelector('{operation} {button}')"
            eventually(partial(browser.evaluate, f"!!{found}"))
            browser.evaluate(f"{found}.click()")
        eventually(lambda: str(browser.evaluate(status_shown)).startswith("200"))
        assert browser.evaluate("refusals") == []


def test_requests_on_one_connection_are_answered_in_order(running: Demo) -> None:
    first, second = b"GET /v3 HTTP/1.1\r\n" + HOST + b"\r\n", b"GET /healthz HTTP/1.1\r\n" + CLOSE
    answers = asked(running, first + second).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200"]
    assert answers[1].endswith(b"ok\n")
