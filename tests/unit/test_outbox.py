"""Answers held back for a turn of the loop: all arrive, in order, before a connection ends, and none waits for long."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from clustercert.server.outbox import AT_ONCE, LONGEST, Held, Outbox


@dataclass
class Arrivals(asyncio.Protocol):
    """A server's side of a connection over a real socket, its writes by way of an outbox."""

    outbox: Outbox
    held: Held | None = None
    transport: asyncio.Transport | None = None
    paused: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.held = transport, Held(transport, self.outbox)

    def pause_writing(self) -> None:
        self.paused += 1

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost.set()


@dataclass
class Pair:
    """A connection's two ends."""

    held: Held
    server: Arrivals
    client: socket.socket

    def arrived(self) -> bytes:
        """What the client can read now, without waiting."""
        try:
            return self.client.recv(1 << 20)
        except BlockingIOError:
            return b""

    async def until_end(self) -> bytes:
        """All that comes until the server closes."""
        loop, read = asyncio.get_running_loop(), b""
        while data := await loop.sock_recv(self.client, 1 << 20):
            read += data
        return read


class Connections:
    """Makes connections that share an outbox."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.opened: list[Pair] = []

    async def open(self) -> Pair:
        ours, client = socket.socketpair()
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        _, server = await loop.connect_accepted_socket(lambda: Arrivals(self.outbox), ours)
        assert server.held is not None
        self.opened.append(Pair(server.held, server, client))
        return self.opened[-1]


@pytest.fixture
async def connections() -> AsyncIterator[Connections]:
    made = Connections()
    yield made
    for pair in made.opened:
        if not pair.server.lost.is_set():
            pair.held.abort()
        await pair.server.lost.wait()
        pair.client.close()


async def test_an_answer_waits_for_one_turn_and_no_longer(connections: Connections) -> None:
    one = await connections.open()
    one.held.write(b"head ")
    one.held.writelines([b"and ", b"body"])
    assert one.arrived() == b""
    assert one.held.get_write_buffer_size() == len(b"head and body")
    await asyncio.sleep(0)
    assert one.arrived() == b"head and body"
    assert one.held.get_write_buffer_size() == 0


async def test_a_few_connections_are_written_to_without_waiting_for_the_turn(
    connections: Connections,
) -> None:
    pairs = [await connections.open() for _ in range(AT_ONCE + 1)]
    for number, pair in enumerate(pairs):
        pair.held.write(b"%d" % number)
    *first, last = pairs
    assert [pair.arrived() for pair in first] == [b"%d" % number for number in range(AT_ONCE)]
    assert last.arrived() == b""
    await asyncio.sleep(0)
    assert last.arrived() == b"%d" % AT_ONCE


@pytest.mark.parametrize("end", ["close", "write_eof"])
async def test_what_was_written_arrives_before_the_end(connections: Connections, end: str) -> None:
    one = await connections.open()
    one.held.write(b"the last answer")
    getattr(one.held, end)()
    assert await one.until_end() == b"the last answer"


async def test_an_aborted_connection_gets_nothing_and_hurts_no_other(connections: Connections) -> None:
    one, other = await connections.open(), await connections.open()
    one.held.write(b"never")
    other.held.write(b"all the same")
    one.held.abort()
    await asyncio.sleep(0)
    assert (one.arrived(), other.arrived()) == (b"", b"all the same")


async def test_a_client_that_is_gone_hurts_no_other(connections: Connections) -> None:
    one, other = await connections.open(), await connections.open()
    one.held.write(b"to nobody")
    other.held.write(b"all the same")
    assert one.server.transport is not None
    one.server.transport.abort()
    await asyncio.sleep(0)
    assert other.arrived() == b"all the same"


async def test_what_comes_behind_the_end_is_dropped_and_hurts_no_other(connections: Connections) -> None:
    one, other = await connections.open(), await connections.open()
    one.held.write(b"refused")
    one.held.write_eof()
    one.held.write(b"continue")
    other.held.write(b"all the same")
    await asyncio.sleep(0)
    assert other.arrived() == b"all the same"
    assert await one.until_end() == b"refused"


async def test_much_is_handed_on_at_once_so_that_its_writer_is_made_to_wait(connections: Connections) -> None:
    one = await connections.open()
    sent = b""
    while not one.server.paused:
        piece = bytes([len(sent) % 251]) * 10_000
        one.held.write(piece)
        sent += piece
        assert len(sent) < 50 * LONGEST
    reading = asyncio.create_task(one.until_end())
    one.held.close()
    assert await reading == sent
