"""What wrk is told to do and what is made of it, against a server that answers as it is told."""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from bench import wrk
from bench.peers import Peer, djangoca
from bench.traffic import http

HOST = "127.0.0.1"
SIGN = "/django_ca/api/ca/0A1B/sign/"
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="the benchmark's load generator")

# Each loads a server for a second.
pytestmark = pytest.mark.slow

Answer = tuple[int, bytes]


def _load(
    answer: Callable[[str], Answer], requests: Sequence[bytes], connections: int, conversation: Path | None
) -> tuple[wrk.Load, list[bytes]]:
    """One second of load on a server that answers to a request's first line; all heads that it got."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionResetError):
                break
            _, _, length = head.lower().partition(b"content-length: ")
            await reader.readexactly(int(length.split(b"\r\n")[0]) if length else 0)
            heads.append(head)
            status, body = answer(head.split(b" HTTP/1.1")[0].decode())
            writer.write(b"HTTP/1.1 %d Word\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    async def run() -> wrk.Load:
        server = await asyncio.start_server(serve, HOST, 0)
        url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
        peer = Peer(url, requests, [], conversation)
        async with server:
            return await asyncio.to_thread(peer.load, connections, 1)

    return asyncio.run(run()), heads


def _ordering() -> bytes:
    headers = {"Content-Type": "application/json", "Authorization": "Basic Yg=="}
    return http("POST", SIGN, HOST, headers, b'{"csr": "of somebody"}')


class _DjangoCa:
    """Orders of which each is pending for one question; counts the certificates that it hands out."""

    def __init__(self, *, refuses: bool = False) -> None:
        self._refuses = refuses
        self._asked: dict[str, int] = {}
        self.ordered = self.handed_out = 0

    def __call__(self, line: str) -> Answer:
        method, path = line.split()
        base = SIGN.removesuffix("sign/")
        if (method, path) == ("POST", SIGN):
            self.ordered += 1
            return 200, b'{"slug": "s%d", "status": "pending", "serial": null}' % self.ordered
        if self._refuses:
            return 404, b"{}"
        what, name = path.removeprefix(base).strip("/").split("/")
        if what == "orders":
            self._asked[name] = self._asked.get(name, 0) + 1
            if self._asked[name] == 1:
                return 200, b'{"slug": "%b", "status": "pending", "serial": null}' % name.encode()
            return 200, b'{"slug": "%b", "status": "issued", "serial": "F%b"}' % (
                name.encode(),
                name[1:].encode(),
            )
        assert what == "certs"
        assert self._asked["s" + name[1:]] == 2
        self.handed_out += 1
        return 200, b'{"pem": "-----BEGIN CERTIFICATE-----"}'


@needs_wrk
def test_an_order_counts_once_its_certificate_is_there() -> None:
    server = _DjangoCa()
    load, heads = _load(server, [_ordering()], 3, djangoca.WHOLE_ORDER)
    assert load.errors == 0
    counted = round(load.rate * load.seconds)
    # What is under way at the end, one for each connection at most, is not counted.
    assert 0 <= server.handed_out - counted <= 3
    assert 0 <= server.ordered - server.handed_out <= 3
    assert counted > 3
    assert 0 < load.p50_ms <= load.p99_ms <= load.max_ms
    gets = [head for head in heads if head.startswith(b"GET")]
    assert all(b"Authorization: Basic Yg==\r\n" in head and b"Content-" not in head for head in gets)


@needs_wrk
def test_an_order_that_is_refused_is_an_error() -> None:
    server = _DjangoCa(refuses=True)
    load, _ = _load(server, [_ordering()], 2, djangoca.WHOLE_ORDER)
    assert load.rate == 0
    assert 0 <= server.ordered - load.errors <= 2
    assert load.errors > 2


@needs_wrk
def test_without_a_script_requests_go_in_turn_and_each_answer_counts() -> None:
    requests = [http("GET", f"/{number}", HOST, {}) for number in range(5)]
    load, heads = _load(lambda line: (503 if line.endswith("/3") else 200, b""), requests, 1, None)
    numbers = [int(head.split()[1][1:]) for head in heads]
    assert all(after == (before + 1) % 5 for before, after in pairwise(numbers))
    assert abs(load.errors - numbers.count(3)) <= 1
    assert abs(round(load.rate * load.seconds) + numbers.count(3) - len(numbers)) <= 2


def test_a_pause_leaves_room_for_the_answer() -> None:
    class Slow(Peer):
        def load(self, connections: int, seconds: float, pause_ms: float = 0) -> wrk.Load:
            assert pause_ms == connections / 2000 * 1000
            return wrk.Load(connections, seconds, 1900, 28, 20, 90, 99, 350, 0, 0)

    peer = Slow("", [], [])
    assert peer.pause_ms(2000, 256) == 100
    # Never none at all, which would be as many requests as there can be.
    assert peer.pause_ms(2000, 32) == 1
