"""The HTTP client for other services, with servers on loopback that are hostile."""

import asyncio
import contextlib
import gc
import gzip
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import clustercert
from clustercert.http_client import ConnectionLost, HttpClient, Response, UnreadableResponse
from support.wait import SECONDS

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
Talk = Callable[[asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(talk: Talk, requests: list[bytes] | None = None) -> AsyncIterator[str]:
    """The address of a server that reads the head of each request, and then talks."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if requests is not None:
                    requests.append(head)
                await talk(writer)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    finally:
        listening.close()


async def fetched(url: str, seconds: float = 60, max_bytes: int = 100_000) -> Response:
    async with HttpClient(ssl.create_default_context(), 1) as client:
        return await client.send("GET", url, seconds, max_bytes=max_bytes)


def saying(content: bytes, *, again: bool = False) -> Talk:
    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()
        while again:
            writer.write(content)
            await writer.drain()

    return talk


def then_forever(head: bytes, more: bytes, seconds: float = 0) -> Talk:
    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(seconds)

    return talk


async def test_a_connection_whose_handshake_takes_too_long_is_closed() -> None:
    ended = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()
        ended.set()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    # The garbage collector would close it too.
    gc.disable()
    try:
        with pytest.raises(TimeoutError):
            await fetched(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/", seconds=2)
        async with asyncio.timeout(SECONDS):
            await ended.wait()
    finally:
        gc.enable()
        listening.close()


async def test_a_response_is_read_whole() -> None:
    async with server(saying(OK + b"X-A: b\r\nContent-Length: 2\r\n\r\n{}")) as url:
        response = await fetched(url)
    assert (response.status, response.content, response.headers["x-a"]) == (200, b"{}", "b")


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "deflate", "br", "GZIP", "x", "identity, gzip"])
async def test_a_compressed_response_is_refused(encoding: str) -> None:
    content = gzip.compress(gzip.compress(b"{}"))
    head = f"Content-Encoding: {encoding}\r\nContent-Length: {len(content)}\r\n\r\n"
    async with server(saying(OK + head.encode() + content)) as url:
        with pytest.raises(UnreadableResponse, match="a compressed response"):
            await fetched(url)


@pytest.mark.parametrize(
    "talk",
    [
        then_forever(OK + b"\r\n", b" " * 65_536),
        then_forever(OK + b"Content-Length: 9999999999999\r\n\r\n", b" " * 65_536),
        then_forever(CHUNKED, b"10000\r\n" + b" " * 65_536 + b"\r\n"),
        then_forever(CHUNKED, b"1\r\n \r\n" * 1_000),
    ],
)
async def test_a_body_without_an_end_is_refused(talk: Talk) -> None:
    async with server(talk) as url:
        with pytest.raises(UnreadableResponse, match="more than 100000 bytes"):
            await fetched(url)


@pytest.mark.parametrize(
    "talk",
    [
        then_forever(OK, b"a: b\r\n" * 1_000),
        then_forever(OK + b"a: ", b"x" * 10_000),
        then_forever(b"", b"x" * 10_000),
        then_forever(CHUNKED, b"1;" + b"x" * 10_000),
        then_forever(CHUNKED + b"0\r\n", b"a: b\r\n" * 1_000),
        saying(OK + b"a: " + b"x" * 1_000_000 + b"\r\n\r\n"),
    ],
)
async def test_headers_and_trailers_without_an_end_are_refused(talk: Talk) -> None:
    async with server(talk) as url:
        with pytest.raises(ConnectionLost):
            await fetched(url)


@pytest.mark.parametrize(
    "talk",
    [
        then_forever(OK + b"Content-Length: 100000\r\n\r\n", b" ", 0.02),
        then_forever(OK, b"a: b\r\n", 0.02),
        then_forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        then_forever(b"", b"", 60),
    ],
)
async def test_the_time_of_a_whole_exchange_is_limited(talk: Talk) -> None:
    async with server(talk) as url:
        with pytest.raises(TimeoutError):
            await fetched(url, seconds=0.5)


async def test_other_tasks_run_while_a_body_in_tiny_chunks_is_read() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with server(saying(CHUNKED + b"1\r\n \r\n" * 20_000 + b"0\r\n\r\n")) as url:
        counting = asyncio.create_task(count_turns())
        response = await fetched(url)
        counting.cancel()
    assert len(response.content) == 20_000
    assert turns > 20_000 / 100


async def test_cookies_are_not_kept() -> None:
    requests: list[bytes] = []
    cookies = b"Set-Cookie: a=b\r\nSet-Cookie: c=d; Path=/; Max-Age=1000\r\nContent-Length: 0\r\n\r\n"
    async with (
        server(saying(OK + cookies), requests) as url,
        HttpClient(ssl.create_default_context(), 1) as client,
    ):
        for _ in range(2):
            await client.send("GET", url, 60)
        assert not list(client._http.cookies.jar)
    assert len(requests) == 2
    assert b"cookie" not in requests[1].lower()


async def test_redirects_are_not_followed() -> None:
    requests: list[bytes] = []
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    async with server(saying(moved), requests) as url:
        assert (await fetched(url)).status == 302
    assert len(requests) == 1


async def test_no_compression_is_offered_and_no_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    requests: list[bytes] = []
    async with server(saying(OK + b"Content-Length: 0\r\n\r\n"), requests) as url:
        assert (await fetched(url)).status == 200
    assert b"accept-encoding: identity" in requests[0].lower()


def test_only_one_module_of_the_service_uses_the_library() -> None:
    root = Path(clustercert.__file__).parent
    files = {file for file in root.rglob("*.py") if re.search(r"\bhttp(x|core)", file.read_text())}
    assert files == {root / "http_client.py"}
