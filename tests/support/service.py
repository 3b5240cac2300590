"""The whole application in a thread of this process, with an httpx2 client."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import httpx2
from starlette.types import ASGIApp, Message, Scope

from clustercert.server.application import create_app
from clustercert.server.reloading import Reloader
from clustercert.settings import Settings
from support.wait import SECONDS

T = TypeVar("T")

BASE_URL = "http://clustercert.test:8080"


class Service:
    """A running application. Its event loop runs in a thread, so tests are plain functions."""

    def __init__(
        self, settings: Settings, address: str = "127.0.0.1", reloader: Reloader | None = None
    ) -> None:
        self.settings = settings
        self.app: ASGIApp = create_app(settings, reloader=reloader)
        self._loop = asyncio.new_event_loop()
        self.client = httpx2.Client(
            transport=_InLoop(self, httpx2.ASGITransport(self.app, client=(address, 50000))),
            base_url=BASE_URL,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator["Service"]:
        """Start it like a server, and shut it down."""
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        started = lifespan(self.app)
        try:
            self.run(started.__aenter__())
            yield self
            self.run(started.__aexit__(None, None, None))
        finally:
            self.client.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(SECONDS)
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the application's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def send_raw(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: Sequence[bytes] = (b"",),
        query: str = "",
    ) -> httpx2.Response:
        """Send a request with exactly these headers and body parts."""
        return self.run(exchange(self.app, scope_of(method, path, headers, query), list(body)))


class _InLoop(httpx2.BaseTransport):
    """Carries a synchronous client's requests into the application's loop."""

    def __init__(self, service: Service, inner: httpx2.ASGITransport) -> None:
        self._service = service
        self._inner = inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        content = request.read()
        same = httpx2.Request(request.method, request.url, headers=request.headers.raw, content=content)
        return self._service.run(self._answer(same))

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        # As a stream, since what is read here is not timed by the client.
        stream = httpx2.ByteStream(await response.aread())
        return httpx2.Response(response.status_code, headers=response.headers.raw, stream=stream)


@contextlib.asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.ensure_future(app(scope, inbox.get, outbox.put))
    for phase in ("startup", "shutdown"):
        await inbox.put({"type": f"lifespan.{phase}"})
        said = await outbox.get()
        assert said["type"] == f"lifespan.{phase}.complete", said
        if phase == "startup":
            yield
    await task


def scope_of(method: str, path: str, headers: Sequence[tuple[bytes, bytes]], query: str = "") -> Scope:
    """A request's scope, as a server makes it. HTTP/1.1 requires a Host header."""
    has_host = any(name.lower() == b"host" for name, _ in headers)
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1" if has_host else "1.0",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in headers],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
    }


async def exchange(app: ASGIApp, scope: Scope, parts: list[bytes]) -> httpx2.Response:
    """Hand a request to the application, its body in parts. Returns the answer."""
    said: list[Message] = []

    async def receive() -> Message:
        if not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Message) -> None:
        said.append(message)

    await app(scope, receive, send)
    start, *bodies = said
    content = b"".join(message.get("body", b"") for message in bodies)
    return httpx2.Response(start["status"], headers=start["headers"], content=content)
