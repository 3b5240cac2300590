"""Connections that say nothing, and requests whose bodies never come, keep nobody out."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustercert.http.middleware import MAX_IN_FLIGHT
from support.demo_process import Demo, demo
from support.open_files import as_many_as_possible
from support.wait import SECONDS

SILENT = 1100
UNFINISHED = 600


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    # No body may be given up while a slow machine opens connections.
    env = os.environ | {"CLUSTERCERT_SERVER__BODY_TIMEOUT": str(SECONDS)}
    with demo(tmp_path_factory.mktemp("overload") / "data", env=env) as one:
        yield one


@contextlib.contextmanager
def attacked(running: Demo, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """So many connections, on each of which this was sent and nothing more."""
    host, port = running.said["url"].removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=SECONDS))
            connection.sendall(sent)
            connections.append(connection)
        yield connections


@pytest.fixture(autouse=True)
def _open_files() -> Iterator[None]:
    with as_many_as_possible():
        yield


def head(running: Demo) -> bytes:
    return (
        f"POST {running.clustercert_path} HTTP/1.1\r\nHost: a\r\nX-Auth-Token: {running.said['token']}\r\n"
        "Content-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    ).encode()


def test_connections_that_send_nothing_keep_nobody_out(running: Demo) -> None:
    with attacked(running, SILENT, b""), running.client() as client:
        assert client.post(running.clustercert_path, json={"duration": 1}).status_code == 200


def test_requests_without_their_bodies_keep_nobody_out(running: Demo) -> None:
    assert UNFINISHED > MAX_IN_FLIGHT
    with attacked(running, UNFINISHED, head(running)) as waiting:
        with running.client() as client:
            assert client.post(running.clustercert_path, json={"duration": 1}).status_code == 200
        for connection in (*waiting[:5], *waiting[-5:]):
            connection.sendall(b'{"duration": 1}')
            assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_a_header_block_without_an_end_is_refused(tmp_path: Path, workers: str) -> None:
    begun = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 20_000
    with (
        demo(tmp_path / "data", "--workers", workers) as running,
        attacked(running, 8, begun) as connections,
        running.client() as client,
    ):
        for connection in connections:
            assert connection.recv(12) == b"HTTP/1.1 431"
        assert client.post(running.clustercert_path, json={"duration": 1}).status_code == 200


def test_a_header_block_of_a_megabyte_is_refused(running: Demo) -> None:
    with running.client() as client:
        assert client.get("/healthz", headers={"X-Large": "a" * 1_000_000}).status_code == 431
        assert client.get("/healthz").status_code == 200
