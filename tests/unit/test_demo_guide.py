"""The demo's first client, where the server stops under it."""

import dataclasses
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustercert.demo.guide import Guide
from clustercert.demo.tenants import Tenant
from support.wait import SECONDS

TENANT = Tenant(**{field.name: "x" for field in dataclasses.fields(Tenant)})
READY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def answer(listener: socket.socket, answers: list[bytes]) -> None:
    """Give each connection the next answer; an empty one closes it without an answer."""
    for each in answers:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(each)


@pytest.fixture
def interrupts() -> Iterator[list[int]]:
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: received.append(number))
    yield received
    signal.signal(signal.SIGINT, before)


def test_a_connection_that_ends_while_the_server_stops_is_no_failure(
    tmp_path: Path, interrupts: list[int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Ends the thread if nothing comes.
        listener.settimeout(SECONDS)
        server = threading.Thread(target=answer, args=(listener, [READY, b"", READY, UNAUTHORIZED]))
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        guide = Guide(url, None, tmp_path, (TENANT,), as_json=True, say=print)
        guide.show()
        # It began again after the connection that ended, and stopped the server only for an answer.
        assert guide.failure is not None
        assert "401" in guide.failure.message
        server.join()
    assert interrupts == [signal.SIGINT]
