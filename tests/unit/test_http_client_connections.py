"""How the HTTP client for other services connects: TLS, proxies, pooled connections and their time limits."""

import asyncio
import base64
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509

from clustercert.http_client import (
    CannotConnect,
    ConnectionFailed,
    ConnectionLost,
    HttpClient,
    ServerConnection,
    UntrustedServer,
)
from support.certificate_authority import Authority
from support.wait import SECONDS

EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
AUTHORITY = Authority("test-ca")
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server on loopback."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def responder(heads: list[bytes], response: bytes = EMPTY) -> Talk:
    """Reads requests without bodies, and answers each."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(response)
            await writer.drain()

    return talk


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


def server_tls(folder: Path, name: x509.GeneralName = LOOPBACK) -> ssl.SSLContext:
    file = folder / "server.pem"
    file.write_bytes(AUTHORITY.server_identity_pem("server", [name]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def trusting(authority: Authority = AUTHORITY) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate_pem.decode())


async def test_a_server_with_a_certificate_of_a_trusted_ca_is_asked(tmp_path: Path) -> None:
    negotiated: list[tuple[str | None, str | None]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("ssl_object")
        negotiated.append((connection.version(), connection.selected_alpn_protocol()))
        await responder([])(reader, writer)

    async with listening(talk, server_tls(tmp_path)) as port, HttpClient(trusting(), 1) as client:
        response = await client.send("GET", f"https://127.0.0.1:{port}/", SECONDS)
    assert response.status == 200
    assert negotiated == [("TLSv1.3", "http/1.1")]


@pytest.mark.parametrize(
    ("tls", "name", "reason"),
    [
        (ssl.create_default_context(), LOOPBACK, "certificate verify failed"),
        (trusting(Authority("other-ca")), LOOPBACK, "certificate verify failed"),
        (trusting(), x509.IPAddress(ipaddress.ip_address("127.0.0.2")), "IP address mismatch"),
        (trusting(), x509.DNSName("127.0.0.1"), "IP address mismatch"),
    ],
)
async def test_a_server_without_a_valid_certificate_is_not_asked(
    tmp_path: Path, tls: ssl.SSLContext, name: x509.GeneralName, reason: str
) -> None:
    heads: list[bytes] = []
    async with (
        listening(responder(heads), server_tls(tmp_path, name)) as port,
        HttpClient(tls, 1) as client,
    ):
        with pytest.raises(UntrustedServer, match=reason):
            await client.send("GET", f"https://127.0.0.1:{port}/", SECONDS, retry=True)
    assert heads == []


async def test_a_server_that_only_has_an_old_version_of_tls_is_not_asked(tmp_path: Path) -> None:
    old = server_tls(tmp_path)
    # Python warns of such an old version, unless OpenSSL's own default names it.
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with listening(responder([]), old) as port, HttpClient(trusting(), 1) as client:
        with pytest.raises(CannotConnect):
            await client.send("GET", f"https://127.0.0.1:{port}/", SECONDS)


async def test_a_server_without_tls_is_not_asked() -> None:
    heads: list[bytes] = []
    async with listening(responder(heads)) as port, HttpClient(trusting(), 1) as client:
        with pytest.raises((CannotConnect, TimeoutError)):
            await client.send("GET", f"https://127.0.0.1:{port}/", 1)
    assert heads == []


async def test_a_renewed_ca_file_is_read_after_a_failed_verification(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(Authority("old-ca").certificate_pem)
    async with listening(responder([]), server_tls(tmp_path)) as port:
        server = ServerConnection(f"https://127.0.0.1:{port}", ca_file, 1, SECONDS)
        for _ in range(2):
            with pytest.raises(UntrustedServer, match=r"ConnectError: .*certificate verify failed"):
                await server.send("GET", "/", {})
        ca_file.write_bytes(AUTHORITY.certificate_pem)
        assert (await server.send("GET", "/", {})).status == 200
        await server.close()


async def test_a_tunnel_through_a_proxy_is_used_and_the_server_verified(tmp_path: Path) -> None:
    """The proxy sees the name and its own password, and nothing of the request."""
    opened: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        opened.append(head)
        target_reader, target = await asyncio.open_connection(
            "127.0.0.1", int(head.split()[1].split(b":")[1])
        )
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with contextlib.closing(target):
            await asyncio.gather(pump(reader, target), pump(target_reader, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65536):
            writer.write(content)
            await writer.drain()
        writer.close()

    heads: list[bytes] = []
    async with listening(responder(heads), server_tls(tmp_path)) as port, listening(proxy) as proxy_port:
        url, address = f"https://127.0.0.1:{port}/a?b=c", f"http://user:secret@127.0.0.1:{proxy_port}"
        async with HttpClient(trusting(), 1, proxy=address) as client:
            response = await client.send("GET", url, SECONDS, headers={"Authorization": "Bearer token"})
        async with HttpClient(ssl.create_default_context(), 1, proxy=address) as client:
            with pytest.raises(UntrustedServer):
                await client.send("GET", url, SECONDS)
    assert response.status == 200
    assert heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"proxy-authorization" not in heads[0].lower()
    assert len(heads) == 1
    for head in opened:
        assert head.startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())
        assert b"Proxy-Authorization: Basic " + base64.b64encode(b"user:secret") in head
        assert b"Bearer" not in head


async def test_a_request_without_tls_is_sent_to_the_proxy() -> None:
    heads: list[bytes] = []
    async with (
        listening(responder(heads)) as port,
        HttpClient(trusting(), 1, proxy=f"http://127.0.0.1:{port}") as client,
    ):
        assert (await client.send("GET", "http://service.example:81/a?b=c", SECONDS)).status == 200
    assert heads[0].startswith(b"GET http://service.example:81/a?b=c HTTP/1.1\r\n")
    assert b"Host: service.example:81\r\n" in heads[0]


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "502 Bad Gateway", "302 Found"])
async def test_a_proxy_that_opens_no_tunnel_is_a_failure(status: str) -> None:
    refusal = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    async with (
        listening(responder([], refusal)) as port,
        HttpClient(trusting(), 1, proxy=f"http://127.0.0.1:{port}") as client,
    ):
        with pytest.raises(CannotConnect, match=f"ProxyError: {status}"):
            await client.send("GET", "https://service.example/", SECONDS)


async def test_an_unreachable_server_or_proxy_is_a_failure() -> None:
    for url, proxy in (("http://127.0.0.1:1/", None), ("https://service.example/", "http://127.0.0.1:1")):
        async with HttpClient(trusting(), 1, proxy=proxy) as client:
            with pytest.raises(CannotConnect, match="ConnectError: All connection attempts failed"):
                await client.send("GET", url, SECONDS, retry=True)


@pytest.mark.parametrize("url", ["http://a:b/", "http://\x00/", "ftp://127.0.0.1/", "http://"])
async def test_an_unusable_address_is_a_failure(url: str) -> None:
    async with HttpClient(trusting(), 1) as client:
        with pytest.raises(ConnectionFailed, match=r"InvalidURL|UnsupportedProtocol"):
            await client.send("GET", url, SECONDS)


@pytest.mark.parametrize("location", ["http://[", "//", "https://\x7f/", "http://a:b/", "javascript:1"])
async def test_a_redirect_to_an_unusable_address_is_a_response(location: str) -> None:
    moved = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    async with listening(responder([], moved)) as port, HttpClient(trusting(), 1) as client:
        response = await client.send("GET", f"http://127.0.0.1:{port}/", SECONDS)
    assert (response.status, response.headers["location"]) == (302, location)


async def test_the_time_to_connect_has_its_own_limit() -> None:
    async with listening(silent) as port, HttpClient(trusting(), 1, connect_seconds=0.3) as client:
        async with asyncio.timeout(SECONDS / 2):
            with pytest.raises(TimeoutError):
                await client.send("GET", f"https://127.0.0.1:{port}/", SECONDS)


async def test_the_wait_for_a_free_connection_counts() -> None:
    async with listening(silent) as port, HttpClient(trusting(), 1) as client:
        url = f"http://127.0.0.1:{port}/"
        first = asyncio.create_task(client.send("GET", url, SECONDS))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError, match=r"^no complete response within 0.3 seconds$"):
            await client.send("GET", url, 0.3)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_a_cancelled_or_late_request_gives_its_connection_back() -> None:
    heads: list[bytes] = []

    async def late_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not heads:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.read()
        await responder(heads)(reader, writer)

    async with listening(late_once) as port, HttpClient(trusting(), 1) as client:
        url = f"http://127.0.0.1:{port}/"
        with pytest.raises(TimeoutError):
            await client.send("GET", url, 0.3)
        assert (await client.send("GET", url, SECONDS)).status == 200


async def test_a_connection_is_used_again_and_at_most_so_many_are_open() -> None:
    opened, open_now, most = 0, 0, 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened, open_now, most
        opened, open_now = opened + 1, open_now + 1
        most = max(most, open_now)
        try:
            await responder([])(reader, writer)
        finally:
            open_now -= 1

    async with listening(talk) as port, HttpClient(trusting(), 2) as client:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(3):
            await client.send("GET", url, SECONDS)
        assert opened == 1
        await asyncio.gather(*(client.send("GET", url, SECONDS) for _ in range(20)))
    assert (opened, most) == (2, 2)


@pytest.mark.parametrize(
    "end", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"]
)
@pytest.mark.parametrize("retry", [True, False])
async def test_a_request_is_sent_again_once_after_a_lost_connection(end: bytes, retry: bool) -> None:
    heads: list[bytes] = []

    async def ending(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(end)
        await writer.drain()

    async with listening(ending) as port, HttpClient(trusting(), 1) as client:
        with pytest.raises(ConnectionLost, match=r"ReadError|RemoteProtocolError"):
            await client.send("GET", f"http://127.0.0.1:{port}/", SECONDS, retry=retry)
    assert len(heads) == (2 if retry else 1)


async def test_what_a_request_carries() -> None:
    received: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        received.append(head + await reader.readexactly(int(length[0].split(b":")[1]) if length else 0))
        writer.write(EMPTY.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))

    async with listening(talk) as port:
        base = f"http://127.0.0.1:{port}/base"
        async with HttpClient(trusting(), 1, base_url=base) as client:
            client.use_token("token")
            await client.send("POST", "/a", SECONDS, params={"b": "c d&é"}, body={"é": [1, None, 0.5]})
            await client.send("PUT", "/a%2Fb", SECONDS, headers={"Content-Type": "text/plain"}, body=b"\x00")
            await client.send("GET", "/", SECONDS)
    posted, put, got = received
    assert posted.startswith(b"POST /base/a?b=c+d%26%C3%A9 HTTP/1.1\r\n")
    assert posted.endswith('\r\n\r\n{"é":[1,null,0.5]}'.encode())
    assert b"\r\nContent-Type: application/json\r\n" in posted
    assert b"\r\nAuthorization: Bearer token\r\n" in posted
    assert f"\r\nHost: 127.0.0.1:{port}\r\n".encode() in posted
    assert put.startswith(b"PUT /base/a%2Fb HTTP/1.1\r\n")
    assert b"\r\nContent-Type: text/plain\r\n" in put
    assert put.endswith(b"\r\n\r\n\x00")
    assert got.startswith(b"GET /base/ HTTP/1.1\r\n")
    assert b"\r\nUser-Agent: clustercert/" in got
    assert b"\r\nAccept: application/json\r\n" in got
    assert b"content-length" not in got.lower()
