"""The API client with TLS servers that work, fail or stay silent."""

import asyncio
import contextlib
import gzip
import os
import ssl
import stat
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi, _as_file, segment
from clustercert.model.errors import RemoteFailed, Unavailable
from support.apiserver import ApiServer
from support.certificate_authority import Authority
from support.samples import server_ca_pem
from support.wait import eventually_async

NAMESPACES = "/api/v1/namespaces"
MASTERS = ("system:masters",)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


def identity(double: ApiServer, name: str = "root", groups: tuple[str, ...] = MASTERS) -> ClientIdentity:
    return ClientIdentity(double._own_ca.client_identity_pem(name, groups), b"")


@contextlib.asynccontextmanager
async def as_root(double: ApiServer) -> AsyncIterator[KubeApi]:
    async with KubeApi(double.url, double.server_ca.read_bytes(), identity(double)) as api:
        yield api


# A working server


async def test_objects_are_created_read_replaced_and_deleted(double: ApiServer) -> None:
    path = f"{NAMESPACES}/one"
    async with as_root(double) as api:
        made = await api.create(NAMESPACES, {"metadata": {"name": "one"}})
        assert await api.get(path) == made
        made["metadata"]["labels"] = {"a": "b"}  # type: ignore[index] # an object
        changed = await api.replace(path, made)
        assert changed["metadata"]["labels"] == {"a": "b", "kubernetes.io/metadata.name": "one"}  # type: ignore[index] # an object
        await api.delete(path)
        with pytest.raises(ApiServerRefused) as gone:
            await api.get(path)
    assert gone.value.http_status == 404


async def test_the_client_certificate_is_presented(double: ApiServer) -> None:
    async with as_root(double) as api:
        await api.get(NAMESPACES)
    seen = double.seen[-1].identity
    assert seen is not None
    assert (seen.username, seen.groups[0]) == ("root", "system:masters")


async def test_a_token_is_presented_in_place_of_a_certificate(double: ApiServer) -> None:
    double.add_service_account("team", "signer")
    async with KubeApi(double.url, double.server_ca.read_bytes(), None) as api:
        for _ in range(2):
            api.use_token(double.tokens.token("team", "signer", (double.tokens.issuer,)))
            with pytest.raises(ApiServerRefused):
                await api.get(NAMESPACES)
    seen = double.seen[-1].identity
    assert seen is not None
    assert seen.username == "system:serviceaccount:team:signer"


async def test_deleting_a_missing_object_succeeds(double: ApiServer) -> None:
    async with as_root(double) as api:
        await api.delete(f"{NAMESPACES}/never-was")


async def test_an_error_message_of_the_server_goes_only_to_the_log(double: ApiServer) -> None:
    stranger = identity(double, "mallory", ())
    async with KubeApi(double.url, double.server_ca.read_bytes(), stranger) as api:
        with pytest.raises(ApiServerRefused) as refused:
            await api.get(NAMESPACES)
    assert refused.value.http_status == 403
    assert "mallory" in refused.value.server_message
    assert "mallory" not in refused.value.message
    assert (refused.value.status, refused.value.code) == (502, "CCE.01502001")


async def test_creating_an_existing_object_is_a_409(double: ApiServer) -> None:
    async with as_root(double) as api:
        with pytest.raises(ApiServerRefused) as refused:
            await api.create(NAMESPACES, {"metadata": {"name": "default"}})
    assert refused.value.http_status == 409


async def test_list_parameters_are_sent(double: ApiServer) -> None:
    async with as_root(double) as api:
        answer = await api.get(NAMESPACES, {"labelSelector": "nobody=has-it"})
    assert answer["items"] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("clustercert:credential:0f", "clustercert:credential:0f"), ("a/../b", "a%2F..%2Fb"), ("?", "%3F")],
)
def test_a_name_is_quoted_as_one_segment(name: str, expected: str) -> None:
    assert segment(name) == expected


# The key


def memory_files() -> set[str]:
    """The open descriptors of memory files. Other tests' services open other files meanwhile."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if descriptor.readlink().name.startswith("memfd:"):
                found.add(descriptor.name)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_the_key_is_not_written_to_disk(double: ApiServer, tmp_path: Path) -> None:
    before, here = memory_files(), threading.get_ident()
    written: list[str] = []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not recording or threading.get_ident() != here:
            return
        if isinstance(flags := arguments[2], int) and flags & os.O_CREAT:
            written.append(str(arguments[0]))

    recording = True
    sys.addaudithook(audit)
    api = KubeApi(double.url, server_ca_pem(), identity(double))
    recording = False
    # A memory file is opened by its descriptor number.
    assert [name for name in written if not name.isdigit()] == []
    await api.close()
    assert memory_files() <= before


def test_without_memory_files_the_key_file_is_private_and_deleted() -> None:
    with _as_file(b"SECRET", in_memory=False) as path:
        assert Path(path).read_bytes() == b"SECRET"
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert not Path(path).exists()


def test_the_key_is_not_in_the_representation(double: ApiServer) -> None:
    assert "SECRET" not in repr(ClientIdentity(b"chain", b"SECRET"))


# Failing servers

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(tmp_path: Path, talk: Talk) -> AsyncIterator[tuple[str, bytes, ClientIdentity]]:
    """Address, CA and client identity for a TLS server with the given behaviour."""
    from ipaddress import ip_address

    authority = Authority("misbehaving")
    file = tmp_path / "server.pem"
    file.write_bytes(authority.server_identity_pem("x", [x509.IPAddress(ip_address("127.0.0.1"))]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    address = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield address, authority.certificate_pem, ClientIdentity(authority.client_identity_pem("a"), b"")
    finally:
        listening.close()


def answering(content: bytes, status: str = "200 OK") -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            await writer.drain()

    return talk


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'"text"', b"", b"[" * 100_000, b"\xff"])
async def test_an_answer_without_object_is_an_error(tmp_path: Path, content: bytes) -> None:
    async with server(tmp_path, answering(content)) as where, KubeApi(*where) as api:
        with pytest.raises(RemoteFailed):
            await api.get("/")


@pytest.mark.parametrize(
    "content", [b"<html>", b"[]", b'{"message": 5}', b"", b'{"message": "\\u0007' + b"x" * 10_000]
)
async def test_an_error_without_message_is_an_error(tmp_path: Path, content: bytes) -> None:
    async with server(tmp_path, answering(content, "418 Teapot")) as where, KubeApi(*where) as api:
        with pytest.raises(ApiServerRefused) as refused:
            await api.get("/")
    assert refused.value.http_status == 418
    assert len(refused.value.server_message) <= 500


@pytest.mark.parametrize("status", ["429 Slow Down", "503 Later", "504 Elsewhere"])
async def test_a_busy_server_is_unavailable(tmp_path: Path, status: str) -> None:
    async with server(tmp_path, answering(b"{}", status)) as where, KubeApi(*where) as api:
        with pytest.raises(Unavailable):
            await api.get("/")


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    elsewhere = answering(b"{}", "302 Found\r\nLocation: https://192.0.2.1/")
    async with server(tmp_path, elsewhere) as where, KubeApi(*where) as api:
        with pytest.raises(ApiServerRefused) as refused:
            await api.get("/")
    assert refused.value.http_status == 302


async def test_each_cluster_has_a_thread_of_its_own(tmp_path: Path) -> None:
    """A handshake with costly certificates, or an answer that is slow to parse, delays nobody else."""
    before = set(threading.enumerate())
    running: set[threading.Thread] = set()

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.update(set(threading.enumerate()) - before)
        await answering(b"{}")(reader, writer)

    async with server(tmp_path, counting) as where:
        async with KubeApi(*where) as one, KubeApi(*where) as other:
            assert [*await asyncio.gather(one.get("/"), other.get("/"))] == [{}, {}]
        names = [each.name for each in running]
        assert names.count("cluster connection") == 2
        await eventually_async(lambda: not any(each.is_alive() for each in running))


async def test_a_silent_server_times_out(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(tmp_path, silent) as where, KubeApi(*where, seconds=0.3) as api:
        with pytest.raises(Unavailable):
            await api.get("/")


async def test_a_slow_answer_times_out(tmp_path: Path) -> None:
    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with server(tmp_path, dripping) as where, KubeApi(*where, seconds=0.4) as api:
        with pytest.raises(Unavailable):
            await api.get("/")


async def test_an_endless_answer_is_rejected(tmp_path: Path) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 1024 * 1024)
            await writer.drain()

    async with server(tmp_path, endless) as where, KubeApi(*where) as api:
        with pytest.raises(RemoteFailed, match="more than 2097152 bytes"):
            await api.get("/")


async def test_an_answer_may_have_a_smaller_limit(tmp_path: Path) -> None:
    async with server(tmp_path, answering(b"{}" + b" " * 100)) as where, KubeApi(*where) as api:
        assert await api.get("/") == {}
        for call in (api.get("/", max_bytes=100), api.create("/", {}, max_bytes=100)):
            with pytest.raises(RemoteFailed, match="more than 100 bytes"):
                await call


async def test_a_compressed_answer_is_rejected(tmp_path: Path) -> None:
    """gzip in gzip makes six gigabytes of five kilobytes."""
    content = gzip.compress(gzip.compress(b"{}"))
    compressed = answering(content, "200 OK\r\nContent-Encoding: gzip, gzip")
    async with server(tmp_path, compressed) as where, KubeApi(*where) as api:
        with pytest.raises(RemoteFailed, match="a compressed response"):
            await api.get("/")


async def test_a_closed_kept_connection_is_retried(tmp_path: Path) -> None:
    connections = 0

    async def once_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        # Close the connection when the next request arrives.
        await reader.readuntil(b"\r\n\r\n")

    async with server(tmp_path, once_each) as where, KubeApi(*where) as api:
        assert [await api.get("/"), await api.get("/")] == [{}, {}]
    assert connections == 2


async def test_a_lost_connection_is_unavailable(tmp_path: Path) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with server(tmp_path, rude) as where, KubeApi(*where) as api:
        with pytest.raises(Unavailable):
            await api.get("/")


async def test_a_refused_connection_is_unavailable(double: ApiServer) -> None:
    async with KubeApi("https://127.0.0.1:1", server_ca_pem(), identity(double)) as api:
        with pytest.raises(Unavailable):
            await api.get("/")


async def test_a_server_of_another_ca_is_not_trusted(double: ApiServer) -> None:
    async with KubeApi(double.url, server_ca_pem(), identity(double)) as api:
        with pytest.raises(RemoteFailed, match="is not trusted"):
            await api.get("/")


async def test_unusable_certificates_are_reported(double: ApiServer) -> None:
    with pytest.raises(RemoteFailed):
        KubeApi(double.url, b"nothing", identity(double))
    with pytest.raises(RemoteFailed):
        KubeApi(double.url, server_ca_pem(), ClientIdentity(b"nothing", b""))
