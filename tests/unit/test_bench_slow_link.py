"""The proxy that makes a server slow for `make bench`."""

import asyncio
import time

from bench.processes import free_port
from bench.slow_link import HOST, Link

DELAY = 0.05


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(100):
        writer.write(chunk)
    writer.close()


async def test_messages_are_delayed_both_ways_and_keep_their_order() -> None:
    async with await asyncio.start_server(echo, HOST, 0) as server:
        link = Link(server.sockets[0].getsockname()[1])
        async with await asyncio.start_server(link.connected, HOST, 0) as slow:
            reader, writer = await asyncio.open_connection(HOST, slow.sockets[0].getsockname()[1])
            link.delay = DELAY
            started = time.monotonic()
            writer.write(b"first")
            assert await reader.readexactly(5) == b"first"
            # A lower bound, which a busy machine can't miss.
            assert time.monotonic() - started >= 2 * DELAY
            writer.write(b"second")
            await asyncio.sleep(0)
            link.delay = 0
            writer.write(b"third")
            assert await reader.readexactly(11) == b"secondthird"
            writer.close()
            assert await reader.read() == b""


async def test_a_connection_to_no_server_is_closed() -> None:
    link = Link(free_port())
    async with await asyncio.start_server(link.connected, HOST, 0) as slow:
        reader, writer = await asyncio.open_connection(HOST, slow.sockets[0].getsockname()[1])
        assert await reader.read() == b""
        writer.close()
