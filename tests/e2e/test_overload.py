"""More at once than can be answered in time, and connections that say nothing."""

import contextlib
import socket
import time
from pathlib import Path

import httpx

from clustercert.web.edge import MAX_IN_FLIGHT
from running import demo

SILENT_SECONDS = 15


def test_who_is_over_the_bound_is_told_at_once_and_the_others_are_answered(tmp_path: Path) -> None:
    with demo(tmp_path / "data") as running, contextlib.ExitStack() as stack:
        host, port = running.said["url"].removeprefix("http://").split(":")
        head = (
            f"POST {running.clustercert_path} HTTP/1.1\r\nHost: {host}\r\nX-Auth-Token: {running.said['token']}\r\n"
            "Content-Type: application/json\r\nContent-Length: 15\r\n\r\n"
        ).encode()
        waiting = []
        for _ in range(MAX_IN_FLIGHT):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            connection.sendall(head)
            waiting.append(connection)
        with running.client() as client:
            deadline = time.monotonic() + 8
            while (answer := client.get("/v3")).status_code == 200 and time.monotonic() < deadline:
                pass
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, 503)
            assert int(answer.headers["Retry-After"]) >= 1
            assert client.get("/healthz").status_code == 200
        for connection in waiting[:5]:
            connection.sendall(b'{"duration": 1}')
            assert connection.recv(12) == b"HTTP/1.1 200"


def test_silent_connections_are_closed_and_keep_nobody_out(tmp_path: Path) -> None:
    with demo(tmp_path / "data") as running, contextlib.ExitStack() as stack:
        host, port = running.said["url"].removeprefix("http://").split(":")
        silent = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=SILENT_SECONDS))
            for _ in range(600)
        ]
        assert (
            httpx.get(f"{running.said['url']}/v3", timeout=SILENT_SECONDS, trust_env=False).status_code == 200
        )
        assert silent[0].recv(1) == b""
