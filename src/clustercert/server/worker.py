"""A worker: uvicorn in one event loop on one socket, with bounds on its connections and on their time."""

import asyncio
import contextlib
import multiprocessing
import signal
import socket
import ssl
import sys
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from clustercert.server.connection import Bounds, Connection, Connections
from clustercert.server.tls_files import Tls

# Connections that the kernel keeps for us until they are taken.
BACKLOG = 2048
# How long the loop may keep the interpreter from a thread that has a database's lock and wants to go on. With Python's
# own 5 ms, for each step of a transaction, all others would wait as long who want to write.
SWITCH_SECONDS = 0.0005
# How often connections are looked over for those whose time is up.
LOOK_SECONDS = 0.5


def serve(
    app: ASGIApp,
    own: socket.socket,
    files: Tls | None,
    *,
    grace_seconds: int,
    bounds: Bounds | None = None,
) -> None:
    """Serve on a bound socket until SIGTERM; requests in flight are finished, if they are within the grace."""
    sys.setswitchinterval(SWITCH_SECONDS)
    config = uvicorn.Config(
        app,
        interface="asgi3",
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        # What the server itself has to say goes the way of every library's log: warnings, to standard error.
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=grace_seconds,
    )
    Worker(config, own, tls_context(files) if files else None, bounds or Bounds()).run()


def tls_context(files: Tls) -> ssl.SSLContext:
    """TLS 1.2 or later, no renegotiation, HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Worker(uvicorn.Server):
    """uvicorn's server, but it stops accepting where it has all the connections that it may have.

    Those who come then wait in the kernel's queue, as they would for any busy server; they are let in as soon as others
    go. Closing them instead would only have them come back at once.
    """

    def __init__(
        self, config: uvicorn.Config, own: socket.socket, context: ssl.SSLContext | None, bounds: Bounds
    ) -> None:
        super().__init__(config)
        self.server_state: Connections = Connections(on_full=self._stop_accepting)
        self._socket = own
        self._context = context
        self._bounds = bounds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - we have our own
        """Start the application, then listen."""
        await super().startup(sockets=[])
        parent = multiprocessing.parent_process()
        # Killed while this worker started: from now on `end_with_parent` sees to it.
        self.should_exit = self.should_exit or (parent is not None and not parent.is_alive())
        await self._accept()
        self._look_over_connections()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if not self.servers and len(self.server_state.connections) < self._bounds.connections:
            await self._accept()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way."""
        self._socket.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM ends it, and that is no failure; SIGINT is for the main process, which then sends SIGTERM.

        Both stay so until the process is gone: a second one is to change nothing.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.handle_exit)
        yield

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        tls = self._context is not None
        server = await loop.create_server(
            self._connection,
            # A copy, since closing the server closes what it was given.
            sock=self._socket.dup(),
            backlog=BACKLOG,
            ssl=self._context,
            ssl_handshake_timeout=self._bounds.head_seconds if tls else None,
            ssl_shutdown_timeout=self._bounds.idle_seconds if tls else None,
        )
        self.servers = [server]

    def _stop_accepting(self) -> None:
        for server in self.servers:
            server.close()
        self.servers = []

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, bounds=self._bounds)

    def _look_over_connections(self) -> None:
        """One look at all of them costs less than a timer for each request."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        crowded = not self.servers
        for one in list(self.server_state.connections):
            if isinstance(one, Connection):
                one.look(now, crowded=crowded)
        loop.call_later(min(LOOK_SECONDS, self._bounds.head_seconds / 4), self._look_over_connections)
