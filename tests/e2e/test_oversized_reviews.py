"""Reviews that are too large, over TLS: the client sees the denial whenever it reads."""

import contextlib
import json
import os
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from clustercert.http.responses import MAX_DISCARDED
from clustercert.http.webhook import MAX_REVIEW
from support.demo_process import Demo, demo
from support.wait import SECONDS

MEGABYTE = 1 << 20
# As large as the review of a request whose selector fills an API server's header limit of 1 MB.
OVERSIZED = 33 * MEGABYTE


@dataclass(frozen=True)
class Webhook:
    """The webhook of a demo's cluster."""

    running: Demo
    token: str

    @contextlib.contextmanager
    def connected(self) -> Iterator[ssl.SSLSocket]:
        host, port = self.running.said["url"].removeprefix("https://").split(":")
        context = ssl.create_default_context(cafile=self.running.said["tls_ca"])
        with (
            socket.create_connection((host, int(port)), timeout=SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            yield connection

    def head(self, *fields: str) -> bytes:
        path = f"/clustercert/v1/kubernetes/clusters/{self.running.said['cluster_id']}/authorize"
        lines = (f"POST {path} HTTP/1.1", "Host: a", f"Authorization: Bearer {self.token}", *fields)
        return "\r\n".join((*lines, "", "")).encode()


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    env = os.environ | {"CLUSTERCERT_SERVER__BODY_TIMEOUT": str(SECONDS)}
    with demo(tmp_path_factory.mktemp("reviews") / "data", "--tls", env=env) as running:
        done = running.cli(
            "kubernetes", "token", "create", running.said["cluster_id"], "--local", "--output", "json"
        )
        assert done.returncode == 0, done.stderr
        yield Webhook(running, json.loads(done.stdout)["token"])


def answer_on(connection: ssl.SSLSocket) -> bytes:
    """Everything until the server ends the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def assert_denied(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    status = json.loads(body)["status"]
    assert (status["allowed"], status["denied"]) == (False, True)
    assert "too large" in status["reason"]


def written_first(webhook: Webhook, length: int) -> bytes:
    """What a client receives that sends the whole review before it reads."""
    chunk = b"x" * MEGABYTE
    with webhook.connected() as connection:
        connection.sendall(webhook.head(f"Content-Length: {length}"))
        for _ in range(length // MEGABYTE):
            connection.sendall(chunk)
        return answer_on(connection)


def test_a_client_that_writes_33_mib_before_it_reads_sees_the_denial(webhook: Webhook) -> None:
    assert_denied(written_first(webhook, OVERSIZED))


def test_several_oversized_reviews_at_once_take_no_memory(webhook: Webhook) -> None:
    before = peak_bytes(webhook.running)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda _: written_first(webhook, OVERSIZED), range(4)):
            assert_denied(answer)
    assert peak_bytes(webhook.running) - before < 2 * OVERSIZED


def peak_bytes(running: Demo) -> int:
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


@pytest.mark.parametrize(
    ("field", "before"),
    [(f"Content-Length: {OVERSIZED}", b""), ("Transfer-Encoding: chunked", b"%x\r\n" % OVERSIZED)],
)
def test_a_review_is_denied_once_it_is_too_large(webhook: Webhook, field: str, before: bytes) -> None:
    with webhook.connected() as connection:
        connection.sendall(webhook.head(field) + before + b"x" * (MAX_REVIEW + 1))
        answer = b""
        while not answer.endswith(b"}}"):
            more = connection.recv(65536)
            assert more, answer
            answer += more
    assert_denied(answer)


def test_what_is_discarded_has_a_limit(webhook: Webhook) -> None:
    """A client that never stops is answered, and cut off."""
    sent = 0
    with webhook.connected() as connection:
        connection.sendall(webhook.head("Transfer-Encoding: chunked"))
        with contextlib.suppress(OSError):
            while sent < 10 * MAX_DISCARDED:
                connection.sendall(b"100000\r\n" + b"x" * MEGABYTE + b"\r\n")
                sent += MEGABYTE
    assert MAX_DISCARDED <= sent < 2 * MAX_DISCARDED
