"""The webhook's generator sends when it is due, and charges a server that stops for all who came meanwhile."""

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from bench import report, webhook

if TYPE_CHECKING:
    from bench.world import Served

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def _sent(seconds: float, stop: float = 0.0, answer: bytes = ANSWER) -> tuple[list[float], int, int]:
    """Against a server that stands still for so long at first."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while await reader.read(3):
            asked += 1
            await still.wait()
            # In two pieces, as a network may.
            writer.write(answer[:20])
            await writer.drain()
            writer.write(answer[20:])
        writer.close()

    still = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    asyncio.get_running_loop().call_later(stop, still.set)
    served = cast("Served", SimpleNamespace(who=SimpleNamespace(host=f"{host}:{port}")))
    times, errors = await webhook._send(served, [b"ask"], seconds)
    server.close()
    await server.wait_closed()
    return times, errors, asked


def test_as_many_are_sent_as_are_due() -> None:
    times, errors, asked = asyncio.run(_sent(0.05))
    assert (len(times), errors, asked) == (100, 0, 100)


def test_who_comes_while_the_server_stands_still_waits_in_the_figures() -> None:
    times, errors, _ = asyncio.run(_sent(0.2, stop=0.15))
    assert errors == 0
    # Due in the first two thirds, and answered at their end at the earliest.
    assert sum(time > 50 for time in times) > 120
    assert max(times) > 100


def test_an_answer_that_is_none_is_an_error() -> None:
    times, errors, _ = asyncio.run(_sent(0.02, answer=ANSWER.replace(b"200", b"503")))
    assert len(times) == errors == 40


def test_the_figures_stand_in_a_table() -> None:
    run = {"rate": 2000.0, "p50_ms": 0.7, "p99_ms": 3.1, "max_ms": 9.0, "cpu_us": 350.0, "errors": 0}
    size: dict[str, Any] = {
        "database": "SQLite",
        "certificates": 1000,
        "revocations": 1000,
        "start_ms": 1500.0,
    }
    table = report.performance({"webhook": [size | {"known": run, "first": run, "revoked_ms": 250.0}]})
    assert [line.count("|") for line in table["webhook"].splitlines()] == [13] * 4
