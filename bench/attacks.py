"""Attacks on the API from one address: `python -m bench.attacks NAME PORT CA` until standard input ends.

Prints a line once the attack is under way. Needs no credentials.
"""

import contextlib
import http.client
import json
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from functools import partial

HOST = "127.0.0.1"
SILENT, UNFINISHED, HANDSHAKES, LOGINS = 1_100, 600, 15_000, 60
SECONDS = 60
# Connections that send without an end, and clients that send requests without a pause.
ENDLESS, FLOODING = 4, 8
HEAD = b"POST /v3/auth/tokens HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE_BYTES = 64 * 1024
PATHS = (
    "/healthz",
    "/openapi.json",
    "/docs",
    "/nothing",
    "/v3",
    "/v3/auth/catalog",
    "/clustercert/v1/issuers",
)


class Attacker:
    """Opens connections to one port, and keeps them open.

    Attributes:
        context: trusts the server's certificate.
    """

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._context = context
        self._open: list[socket.socket] = []

    def silent_connections(self) -> None:
        """Open connections, and send nothing."""
        self._hold(SILENT, b"")

    def unfinished_handshakes(self) -> None:
        """Send the first message of a TLS handshake on each connection."""
        out = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=HOST).do_handshake()
        self._hold(HANDSHAKES, out.read())

    def missing_bodies(self) -> None:
        """Send requests without their bodies."""
        head = (
            b"POST /v3/auth/tokens HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 15\r\n\r\n"
        )
        for _ in range(UNFINISHED):
            with contextlib.suppress(OSError):
                secured = self._context.wrap_socket(self._connect(), server_hostname=HOST)
                self._open.append(secured)
                secured.sendall(head)

    def log_ins(self) -> None:
        """Log in with a wrong password, again and again, many times at once."""
        for _ in range(LOGINS):
            threading.Thread(target=self._log_in, daemon=True).start()

    def flood(self) -> None:
        """Send requests without a credential to many paths, without a pause."""
        for _ in range(FLOODING):
            threading.Thread(target=self._request_all, daemon=True).start()

    def endless(self, begin: bytes, more: bytes) -> None:
        """Send the beginning of a request, and then the same piece for ever, again after each refusal."""
        for _ in range(ENDLESS):
            threading.Thread(target=self._send_without_end, args=(begin, more), daemon=True).start()

    def _request_all(self) -> None:
        client = http.client.HTTPSConnection(HOST, self._port, context=self._context, timeout=SECONDS)
        while True:
            for path in PATHS:
                try:
                    client.request("GET", path)
                    client.getresponse().read()
                except (OSError, http.client.HTTPException):
                    client.close()

    def _send_without_end(self, begin: bytes, more: bytes) -> None:
        piece = more * (PIECE_BYTES // len(more))
        while True:
            with (
                contextlib.suppress(OSError),
                self._connect() as plain,
                self._context.wrap_socket(plain, server_hostname=HOST) as connection,
            ):
                connection.sendall(begin)
                while True:
                    connection.sendall(piece)

    def _log_in(self) -> None:
        user = {"name": "bench", "domain": {"name": "bench"}, "password": "wrong"}
        body = json.dumps({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}})
        client = http.client.HTTPSConnection(HOST, self._port, context=self._context, timeout=SECONDS)
        while True:
            try:
                client.request("POST", "/v3/auth/tokens", body, {"Content-Type": "application/json"})
                client.getresponse().read()
            except (OSError, http.client.HTTPException):
                client.close()

    def _hold(self, count: int, sent: bytes) -> None:
        for _ in range(count):
            # The proxy may close any of them.
            with contextlib.suppress(OSError):
                connection = self._connect()
                self._open.append(connection)
                connection.sendall(sent)

    def _connect(self) -> socket.socket:
        return socket.create_connection((HOST, self._port), timeout=SECONDS)


ATTACKS: dict[str, Callable[[Attacker], None]] = {
    "silent connections": Attacker.silent_connections,
    "missing bodies": Attacker.missing_bodies,
    "unfinished handshakes": Attacker.unfinished_handshakes,
    "logins at once": Attacker.log_ins,
    "requests without a pause": Attacker.flood,
    "endless targets": partial(Attacker.endless, begin=b"GET /", more=b"a"),
    "endless header blocks": partial(Attacker.endless, begin=HEAD, more=b"a:\r\n"),
    "endless header values": partial(Attacker.endless, begin=HEAD + b"a: ", more=b"a"),
    "endless chunk extensions": partial(Attacker.endless, begin=CHUNKED + b"1;", more=b"a"),
    "endless trailers": partial(Attacker.endless, begin=CHUNKED + b"1\r\na\r\n0\r\n", more=b"a: b\r\n"),
}


def main(name: str, port: str, ca: str) -> None:
    """Attack until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ATTACKS[name](Attacker(int(port), ssl.create_default_context(cafile=ca)))
    print("under way", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
