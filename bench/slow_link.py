"""A TCP proxy that delays every message in both directions, as a slow network or an overloaded server does.

`python -m bench.slow_link PORT SERVER_PORT` reads delays in seconds from standard input, one a line. Each one applies
to the messages that arrive from then on. A delay that is shorter than the last one does not change the order.
"""

import asyncio
import contextlib
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench import processes
from bench.report import ROOT

HOST = "127.0.0.1"
CHUNK = 1 << 16


class Link:
    """Forwards connections to a server."""

    def __init__(self, server_port: int) -> None:
        self.delay = 0.0
        self._server_port = server_port

    async def connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Forward one connection until both sides have closed it."""
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server_port)
            await asyncio.gather(self._forward(reader, server_writer), self._forward(server_reader, writer))
        writer.close()

    async def _forward(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Forward one direction. Messages wait side by side, so that the delay does not limit the rate."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        clock = asyncio.get_running_loop().time
        sending = asyncio.create_task(_send(waiting, writer))
        chunk = b"first"
        while chunk:
            try:
                chunk = await reader.read(CHUNK)
            except OSError:
                chunk = b""
            await waiting.put((clock() + self.delay, chunk))
        await sending


async def _send(waiting: "asyncio.Queue[tuple[float, bytes]]", writer: StreamWriter) -> None:
    """Send each message when it is due, up to the empty one, which ends the connection."""
    with contextlib.suppress(OSError):
        while True:
            due, chunk = await waiting.get()
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            if not chunk:
                break
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def serve(port: int, server_port: int) -> None:
    """Run the proxy until standard input ends."""
    link = Link(server_port)
    async with await asyncio.start_server(link.connected, HOST, port):
        while line := await asyncio.to_thread(sys.stdin.readline):
            link.delay = float(line)
            print("delayed", flush=True)


@dataclass(frozen=True, slots=True)
class RunningLink:
    """A proxy in a process of its own."""

    port: int
    orders: IO[str]
    answers: IO[str]

    @contextlib.contextmanager
    def delaying(self, seconds: float) -> Iterator[None]:
        """Delay every message by these seconds during the block."""
        self._order(seconds)
        try:
            yield
        finally:
            self._order(0)

    def _order(self, seconds: float) -> None:
        self.orders.write(f"{seconds}\n")
        self.orders.flush()
        if not self.answers.readline():
            raise RuntimeError("the slow link has ended")


@contextlib.contextmanager
def running(server_port: int, folder: Path) -> Iterator[RunningLink]:
    """Run a proxy without a delay during the block."""
    port = processes.free_port()
    command = [sys.executable, "-m", "bench.slow_link", str(port), str(server_port)]
    with (
        folder.with_suffix(".link.log").open("w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        ) as process,
    ):
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the slow link has no pipes")
        link = RunningLink(port, process.stdin, process.stdout)
        try:
            with link.delaying(0):
                yield link
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(*map(int, sys.argv[1:])))
