"""The client's connections: time limits, sizes of answers, TLS and proxies."""

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from clustercert.client import Client, connection
from clustercert.client.connection import (
    ClientError,
    HttpTransport,
    ServiceClient,
    Unreachable,
    UntrustedCertificate,
    service_url,
)
from clustercert.pki.certificates import certificate_der, chain_pem, fingerprint
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from support.wait import SECONDS

URL = "https://clustercert.test:8443"


def test_a_refused_connection_becomes_a_client_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ClientError, match="Can't connect to"):
            client.projects()


HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def dripping(head: bytes, drip: bytes, folder: Any, *, tls: bool) -> Iterator[tuple[str, str | None]]:
    """A server that sends a few bytes every 50 ms after the head, for 60 seconds. Yields its address and CA."""
    ended = threading.Event()
    key = new_key("ec-p256")
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], datetime.now(UTC), timedelta(days=1))
    pem = folder / "pair.pem"
    pem.write_bytes(chain_pem((leaf,)) + key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def answer() -> None:
        # The client may hang up at any time, also during the handshake.
        with suppress(OSError):
            accepted, _ = listener.accept()
            with context.wrap_socket(accepted, server_side=True) if tls else accepted as client:
                client.recv(65536)
                client.sendall(head)
                for _ in range(1200):
                    if ended.wait(0.05):
                        return
                    client.sendall(drip)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        ca_pem = chain_pem((ca,)).decode() if tls else None
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}", ca_pem
        ended.set()
        thread.join(SECONDS)


@pytest.mark.parametrize(
    ("head", "drip", "tls"),
    [
        pytest.param(HEAD + b"Content-Length: 100000\r\n\r\n", b" ", False, id="body"),
        pytest.param(HEAD + b"Content-Length: 100000\r\n\r\n", b" ", True, id="body-tls"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", False, id="chunks"),
        pytest.param(HEAD + b"Connection: close\r\n\r\n", b" ", False, id="until-close"),
        pytest.param(HEAD + b"X-Endless: ", b"x", False, id="header"),
        pytest.param(b"", b"H", True, id="status-line-tls"),
    ],
)
def test_a_response_that_trickles_ends_at_the_time_limit(
    head: bytes, drip: bytes, tls: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RESPONSE_SECONDS", 0.5)
    with (
        dripping(head, drip, tmp_path, tls=tls) as (url, ca_pem),
        Client(url, ca_pem=ca_pem) as client,
        pytest.raises(Unreachable, match="in time"),
    ):
        client.projects()


@contextmanager
def tls_server(certificate_pem: bytes, private_key_pem: bytes, folder: Any) -> Iterator[str]:
    """A TLS server that answers one request and closes the connection."""
    pem = folder / "pair.pem"
    pem.write_bytes(certificate_pem + private_key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def answer() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(accepted, server_side=True) as secured:
                    secured.recv(65536)
                    secured.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"projects":[]}')
            except OSError:
                accepted.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS)


def test_only_the_named_ca_is_trusted(tmp_path: Any) -> None:
    key = new_key("ec-p256")
    now = datetime.now(UTC) - timedelta(minutes=1)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=1))
    other = new_client_ca("other", key, now, timedelta(days=1))
    with tls_server(chain_pem((leaf,)), key_pem(key), tmp_path) as url:
        with Client(url, ca_pem=chain_pem((ca,)).decode()) as client:
            assert client.projects() == ()
        for ca_pem in (None, chain_pem((other,)).decode()):
            with (
                Client(url, ca_pem=ca_pem) as client,
                pytest.raises(UntrustedCertificate, match="run `clustercert login`"),
            ):
                client.projects()
        with Client(url, ca_pem=chain_pem((leaf,)).decode()) as client:
            assert client.projects() == ()


def test_the_whole_chain_is_presented_on_each_python(tmp_path: Any) -> None:
    key = new_key("ec-p256")
    chain = new_server_certificate(key, ["127.0.0.1"], datetime.now(UTC), timedelta(days=1))
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with tls_server(chain_pem(chain), key_pem(key), tmp_path) as url:
        presented = connection.presented_chain(url)
        opened = HttpTransport(url, unverified)
        with ServiceClient(url, transport=opened) as opened_connection:
            opened_connection.open()
            # Python 3.11 and 3.12 have only this way. It works on later ones too, so each test run covers it.
            private = connection._private_chain(opened.tls_socket)

    assert [each.fingerprint for each in presented] == [fingerprint(each).hex() for each in chain]
    assert private == [certificate_der(each) for each in chain]


def test_a_certificate_for_another_address_is_no_matter_of_trust(tmp_path: Any) -> None:
    key = new_key("ec-p256")
    leaf, ca = new_server_certificate(key, ["127.0.0.2"], datetime.now(UTC), timedelta(hours=2))
    with (
        tls_server(chain_pem((leaf,)), key_pem(key), tmp_path) as url,
        Client(url, ca_pem=chain_pem((ca,)).decode()) as client,
        pytest.raises(UntrustedCertificate, match=r"Use an address that the certificate names\.$"),
    ):
        client.projects()


@pytest.mark.parametrize(
    ("begun", "reason"),
    [(timedelta(hours=1), "certificate is not yet valid"), (timedelta(days=-1), "certificate has expired")],
)
def test_a_certificate_of_another_time_is_no_matter_of_trust(
    tmp_path: Any, begun: timedelta, reason: str
) -> None:
    key = new_key("ec-p256")
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], datetime.now(UTC) + begun, timedelta(hours=2))
    with (
        tls_server(chain_pem((leaf,)), key_pem(key), tmp_path) as url,
        Client(url, ca_pem=chain_pem((ca,)).decode()) as client,
        pytest.raises(UntrustedCertificate, match=rf"{reason}\)\. The clock of this machine says 20"),
    ):
        client.projects()


def test_a_ca_without_key_usage_is_accepted(tmp_path: Any) -> None:
    key, ca_key = new_key("ec-p256"), new_key("ec-p256")
    now = datetime.now(UTC) - timedelta(minutes=1)
    _, template = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=1))
    ca = plain_certificate(template.subject, template.subject, ca_key.public_key(), ca_key, now, None)
    name = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    leaf = plain_certificate(x509.Name([]), ca.subject, key.public_key(), ca_key, now, name)
    with (
        tls_server(chain_pem((leaf,)), key_pem(key), tmp_path) as url,
        Client(url, ca_pem=chain_pem((ca,)).decode()) as client,
    ):
        assert client.projects() == ()


def plain_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: Any,
    key: Any,
    now: datetime,
    name: x509.SubjectAlternativeName | None,
) -> x509.Certificate:
    """A certificate with no extensions but basicConstraints or the name."""
    builder = (
        x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if name is None:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=False)
    else:
        builder = builder.add_extension(name, critical=False)
    return builder.sign(key, hashes.SHA256())


class Proxy:
    """A proxy that opens one tunnel, and records what it was asked for."""

    def __init__(self) -> None:
        self.asked = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            self.asked = client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            client.recv(65536)
            client.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"projects":[]}')
        self._listener.close()


def test_the_proxy_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    monkeypatch.setenv("http_proxy", f"http://us%40er:secret@127.0.0.1:{proxy.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Client("http://clustercert.test:8080") as client:
        assert client.projects() == ()
    assert proxy.asked.startswith(b"CONNECT clustercert.test:8080 HTTP/1.")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"us@er:secret") in proxy.asked

    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    with Client("http://clustercert.test:8080") as client, pytest.raises(Unreachable) as dead:
        client.projects()
    assert dead.value.message == (
        "Can't connect to http://clustercert.test:8080 through the proxy http://127.0.0.1:9 (Connection refused). "
        "Check the address, and the variables http_proxy, all_proxy and no_proxy, and that the service is running."
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Client("http://127.0.0.1:1") as client, pytest.raises(Unreachable, match="refused"):
        client.projects()


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
@pytest.mark.parametrize(
    "address",
    ["socks5://127.0.0.1:1", "http://", "http://user:secret@127.0.0.1:se", "p:99999", "http://[::1"],
)
def test_an_unusable_proxy_is_named_by_its_variable(
    variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, address)
    with Client("http://clustercert.test:8080") as client, pytest.raises(Unreachable) as unusable:
        client.projects()
    assert unusable.value.message == (
        f"Can't connect to http://clustercert.test:8080 (the proxy in {variable} is not an http:// address). Correct"
        " the variable, or name the service in no_proxy."
    )


def test_an_invalid_ca_is_refused() -> None:
    with pytest.raises(ClientError, match="not a PEM file"):
        Client(URL, ca_pem="nonsense")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://clustercert.example.com", "https://clustercert.example.com"),
        ("https://clustercert.example.com/", "https://clustercert.example.com"),
        ("https://clustercert.example.com:8443/v3/", "https://clustercert.example.com:8443"),
        ("http://127.0.0.1:8080/v3", "http://127.0.0.1:8080"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("clustercert.example.com:8443", "https://clustercert.example.com:8443"),
        ("localhost:8080", "https://localhost:8080"),
    ],
)
def test_addresses_are_normalized(text: str, url: str) -> None:
    assert service_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "clustercert",
        "ftp://c",
        "https://",
        "https://u:p@c",
        "https://c/path",
        "https://c?q",
        "https://c:x",
        "https://[",
    ],
)
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(ClientError, match=r"like https://clustercert\.example\.com"):
        service_url(text)


def test_plain_http_needs_an_option() -> None:
    with pytest.raises(ClientError, match="--plain-http"):
        service_url("http://clustercert.example.com")
    assert service_url("http://clustercert.example.com", plain_http=True) == "http://clustercert.example.com"
