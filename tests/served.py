"""A worker of the server in a process of its own, with an application that tells what it got."""

import asyncio
import contextlib
import json
import multiprocessing
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from clustercert.server import ports
from clustercert.server.connection import Bounds
from clustercert.server.tls_files import Tls
from clustercert.server.worker import serve
from clustercert.web.edge import API_SERVERS

TIMEOUT = 20
LARGE_BYTES = 32 * 1024 * 1024
Answer = Callable[[Scope, Receive, Send], Awaitable[None]]
counts = {"requests": 0, "disconnected": 0, "large": 0}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    counts["requests"] += 1
    await ANSWERS.get(scope["path"], echo)(scope, receive, send)


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def answer(send: Send, status: int, content: dict[str, Any], *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps(content).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def received(receive: Receive) -> bytes | None:
    """The body, or None where the client went away."""
    body, more = b"", True
    while more:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            counts["disconnected"] += 1
            return None
        body += message["body"]
        more = message["more_body"]
    return body


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await received(receive)
    if body is not None:
        kept = ("method", "path", "client", "http_version", "scheme")
        told = {name: scope[name] for name in kept}
        told |= {name: scope[name].decode("latin-1") for name in ("raw_path", "query_string")}
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
        await answer(send, 200, told | {"headers": headers, "body": body.decode("latin-1")})


async def busy(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 503, {}, (b"retry-after", b"1"))


async def unread(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 401, {})


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    await received(receive)
    await asyncio.sleep(1)
    await answer(send, 200, {"slow": True})


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    length = (b"content-length", str(LARGE_BYTES).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    chunk = bytes(64 * 1024)
    for sent in range(len(chunk), LARGE_BYTES + 1, len(chunk)):
        await send({"type": "http.response.body", "body": chunk, "more_body": sent < LARGE_BYTES})
        counts["large"] = sent


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    length = (b"content-length", str(LARGE_BYTES).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": bytes(LARGE_BYTES)})


async def counted(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, counts)


ANSWERS: dict[str, Answer] = {
    "/busy": busy,
    f"{API_SERVERS}busy": busy,
    "/unread": unread,
    "/large": large,
    "/page": page,
    "/counts": counted,
    "/slow": slow,
}


@dataclass(frozen=True)
class Served:
    """A running worker."""

    host: str
    port: int
    process: BaseProcess

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=TIMEOUT)

    def counts(self) -> dict[str, int]:
        with self.connect() as connection:
            connection.sendall(b"GET /counts HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            told: dict[str, int] = json.loads(everything(connection).partition(b"\r\n\r\n")[2])
        return told

    def asked(self, request: bytes) -> bytes:
        """All that is answered until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(request)
            return everything(connection)


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


@contextlib.contextmanager
def served(bounds: Bounds, *, host: str = "127.0.0.1", files: Tls | None = None) -> Iterator[Served]:
    (own,) = ports.sockets(host, 0, 1)
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(app, own, files), kwargs={"grace_seconds": 5, "bounds": bounds}
    )
    process.start()
    try:
        deadline = time.monotonic() + TIMEOUT
        while not ports.listens(own):
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        port = own.getsockname()[1]
        own.close()
        yield Served(host, port, process)
        if process.exitcode is None:
            process.terminate()
        process.join(TIMEOUT)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
