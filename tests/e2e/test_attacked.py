"""The webhook as a process of its own, behind deploy/haproxy.cfg: attacks on the API fail no review."""

import asyncio
import http.client
import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from bench import attacked, attacks, world
from bench.webhook import api_server

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
MEGABYTE = 1 << 20
OVERSIZED = 33 * MEGABYTE
# bench measures for longer, more of them, and how many come within the three seconds of an API server. Here it matters
# that all are answered, on a machine that does other things too.
SECONDS, RATE, PATIENCE_SECONDS = 2, 50, 30.0

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")


@pytest.mark.long
def test_no_review_fails_while_the_api_is_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacked, "RATE", RATE)
    monkeypatch.setattr(attacked, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(attacked, "GIVEN_UP_SECONDS", PATIENCE_SECONDS)
    rows = attacked.measure(tmp_path / "store", SECONDS)
    assert [row["attack"] for row in rows] == ["none", *attacks.ATTACKS, "slow database"]
    assert {row["reviews"] for row in rows} == {SECONDS * RATE}
    assert {row["failed"] for row in rows} == {0}


def test_an_oversized_review_is_denied_through_the_proxy(tmp_path: Path) -> None:
    """Also for a client that writes everything before it reads."""
    store = world.prepare(tmp_path / "store")
    server = asyncio.run(api_server(store, store.project_id, store.cluster_id))
    head = (
        f"POST {server.path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.token}\r\n"
        f"Content-Length: {OVERSIZED}\r\n\r\n"
    )
    with (
        attacked.in_front(store) as front,
        socket.create_connection(("127.0.0.1", front.webhook_port), timeout=300) as plain,
        front.files.context().wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(head.encode())
        for _ in range(OVERSIZED // MEGABYTE):
            connection.sendall(b"x" * MEGABYTE)
        # The proxy may keep the connection open afterwards.
        with http.client.HTTPResponse(connection, method="POST") as response:
            response.begin()
            status = json.load(response)["status"]
    assert status["denied"] is True
