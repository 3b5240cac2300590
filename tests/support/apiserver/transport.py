"""TLS and HTTP like kube-apiserver: the handshake requests a client certificate, but does not verify it.

It uses pyOpenSSL, because Python's ssl module ends the handshake for an unverified certificate. kube-apiserver answers
401, and verifies the certificate at each request.
"""

import contextlib
import io
import json
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol, cast

from cryptography import x509
from OpenSSL import SSL

IDLE_S = 30


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Headers have lower-case names; the client's chain is leaf first, or empty."""

    method: str
    target: str
    headers: Mapping[str, Sequence[str]]
    body: bytes
    chain: Sequence[x509.Certificate]


class Answering(Protocol):
    """Handles requests: returns a status with a JSON document or a plain text."""

    def __call__(self, request: Request) -> tuple[int, Mapping[str, object] | str]: ...


class Listener(ThreadingHTTPServer):
    """Listens on a free port of loopback and answers from `start` to `stop`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, identity_pem: Path, answer: Answering) -> None:
        self.answer = answer
        self._context = _context(identity_pem)
        super().__init__(("127.0.0.1", 0), _Handler)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def finish_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Shake hands here, in the connection's own thread, so that a slow peer holds up nobody else."""
        plain = cast("socket.socket", request)
        # OpenSSL reads the socket itself, so Python's timeouts mean nothing to it.
        limit = struct.pack("ll", IDLE_S, 0)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        connection = SSL.Connection(self._context, plain)
        connection.set_accept_state()
        with contextlib.suppress(SSL.Error, OSError):
            connection.do_handshake()
            _Handler(cast("socket.socket", connection), cast("tuple[str, int]", client_address), self)
            connection.shutdown()


def _context(identity_pem: Path) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate_chain_file(str(identity_pem))
    context.use_privatekey_file(str(identity_pem))
    # Whatever comes is taken; `ClientBundle` judges it at each request.
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    # Each connection shows its certificate anew.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_id(b"apiserver")
    return context


class _Stream(io.RawIOBase):
    """A TLS connection as a file."""

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = cast("memoryview", buffer)
        try:
            return self._connection.recv_into(view, len(view))
        except SSL.Error:
            return 0  # closed, broken off, or idle for too long

    def write(self, data: object) -> int:
        view = memoryview(cast("bytes", data))
        try:
            self._connection.sendall(bytes(view))
        except SSL.Error as error:
            # The handler expects an OSError. The finalizer of its buffer raises any other error again.
            raise BrokenPipeError("the peer closed the connection") from error
        return len(view)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # With the buffer an answer leaves in one piece.
    wbufsize = -1

    def setup(self) -> None:
        tls = cast("SSL.Connection", self.request)
        leaf = tls.get_peer_certificate(as_cryptography=True)
        shown = tls.get_peer_cert_chain(as_cryptography=True) or []
        self._chain = [] if leaf is None else [leaf, *(each for each in shown if each != leaf)]
        self.rfile = io.BufferedReader(_Stream(tls))
        self.wfile = io.BufferedWriter(_Stream(tls))

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own parameter name
        """No output: the server records requests itself."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): self.headers.get_all(name, []) for name in self.headers}
        request = Request(self.command, self.path, headers, body, self._chain)
        status, document = cast("Listener", self.server).answer(request)
        encoded = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", _content_type(document))
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)
        self.wfile.flush()


def _content_type(document: Mapping[str, object] | str) -> str:
    if isinstance(document, str):
        return "text/plain; charset=utf-8"
    return "application/jwk-set+json" if "keys" in document else "application/json"
