"""A server that receives messages about access requests, and verifies them without our code."""

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
TOLERANCE = 300.0


@dataclass(frozen=True)
class Received:
    """A message whose signature is valid.

    Attributes:
        path: the path of the URL to which it was sent.
        at: when it arrived, in seconds since 1970.
    """

    id: str
    path: str
    at: float
    body: dict[str, Any]

    @property
    def access_request(self) -> str:
        return str(self.body["data"]["access_request"])

    @property
    def step(self) -> tuple[str, str]:
        """The request and the kind of the step, without the prefix."""
        return self.access_request, str(self.body["type"]).removeprefix("access_request.")


Answer = Callable[[Received], tuple[int, dict[str, str]]]
"""Decides about a message: the status and headers of the answer. May wait."""


def accept(_: Received) -> tuple[int, dict[str, str]]:
    return 204, {}


@dataclass
class MessageReceiver:
    """Records the messages.

    Attributes:
        received: all messages, also those that it did not accept.
        confirmed: the messages that it accepted.
        refused: why other requests were refused.
        check_time: whether a message must have been signed within the last five minutes.
    """

    answer: Answer = accept
    received: list[Received] = field(default_factory=list)
    confirmed: list[Received] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    check_time: bool = True
    url: str = ""

    def accept(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        try:
            message = self._verified(path, headers, body)
        except (AssertionError, KeyError, ValueError) as error:
            self.refused.append(repr(error))
            return 400, {}
        self.received.append(message)
        status, more = self.answer(message)
        if status < 300:
            self.confirmed.append(message)
        return status, more

    def _verified(self, path: str, headers: dict[str, str], body: bytes) -> Received:
        """Check a request as the Standard Webhooks specification tells receivers to."""
        assert headers["content-type"] == "application/json"
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert f"v1,{expected}" in headers["webhook-signature"].split(" ")
        assert "." not in headers["webhook-id"]
        now = time.time()
        assert not self.check_time or abs(now - int(headers["webhook-timestamp"])) < TOLERANCE
        return Received(headers["webhook-id"], path, now, json.loads(body))


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Print nothing: a sender was killed, or didn't wait for the answer."""


@contextmanager
def message_receiver(
    answer: Answer = accept, *, check_time: bool = True, identity: Path | None = None
) -> Iterator[MessageReceiver]:
    """A receiver on loopback, with TLS if it has an identity (key and certificate in one PEM file)."""
    receiver = MessageReceiver(answer, check_time=check_time)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                # The sender was killed.
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more = receiver.accept(self.path, headers, body)
            self.send_response(status)
            for name, value in {"Content-Length": "0", **more}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with _Listener(("127.0.0.1", 0), Handler) as server:
        if identity is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(identity)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if identity is None else "https"
        receiver.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
