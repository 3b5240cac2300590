"""`clustercert kubernetes setup` says which certificate the service presents."""

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from clustercert.kubernetes.setup import handshake
from clustercert.model import rfc3339
from support.kubernetes_setup import SERVICE
from support.operated_cluster import OperatedCluster
from support.wait import SECONDS


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "TIMEOUT_SECONDS", SECONDS)


def notes(site: OperatedCluster, *options: str | Path) -> str:
    done = site.operator.run("kubernetes", "setup", "prod", "--out", site.folder, "--force", *options)
    assert done.code == 0, done.err
    return done.err


def test_the_certificate_of_the_service_is_printed(site: OperatedCluster) -> None:
    (ca,) = x509.load_pem_x509_certificates(site.ca.read_bytes())
    leaf = x509.load_pem_x509_certificate(site.ca.with_name("service.pem").read_bytes())
    said = notes(site, "--webhook-url", site.url, "--webhook-ca", site.ca)
    assert (
        f"{site.url} presented a certificate for CN=clustercert, issued by {ca.subject.rfc4514_string()}, "
        f"valid until {rfc3339(leaf.not_valid_after_utc)}.\n"
    ) in said
    assert "Warning" not in said


def test_an_untrusted_certificate_is_a_warning(site: OperatedCluster) -> None:
    said = notes(site, "--webhook-url", site.url, "--webhook-ca", site.cluster.server_ca)
    assert f"Warning: the TLS handshake with {site.url} failed: its certificate is not trusted (" in said
    assert "revoked certificates keep working" in said
    assert "--webhook-ca FILE" in said
    # The operating system does not trust it either.
    shutil.rmtree(site.folder)
    assert "--webhook-ca FILE" in notes(site, "--webhook-url", site.url)


def test_a_wrong_host_name_is_a_warning(site: OperatedCluster) -> None:
    url = site.url.replace("127.0.0.1", "localhost")
    said = notes(site, "--webhook-url", url, "--webhook-ca", site.ca)
    assert f"Warning: the TLS handshake with {url} failed: its certificate is not trusted (" in said
    assert "Hostname mismatch" in said


def test_an_unreachable_service_is_a_warning_with_its_effect(site: OperatedCluster) -> None:
    said = notes(site, "--webhook-url", SERVICE, "--failure-policy", "Deny")
    assert f"Warning: the TLS handshake with {SERVICE} failed: connection refused." in said
    assert "HTTP 500" in said
    assert "Start the service" in said


def test_an_unresolvable_name_is_a_warning(site: OperatedCluster) -> None:
    url = f"https://{'a' * 64}.example"
    assert f"Warning: the TLS handshake with {url} failed: its name" in notes(site, "--webhook-url", url)


def test_a_service_without_tls_is_a_warning(site: OperatedCluster) -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        said = notes(site, "--webhook-url", f"https://127.0.0.1:{port}")
    assert "failed: it does not speak TLS (" in said


@contextlib.contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """A port that answers one connection with these bytes."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(answer)
            connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        # In case no client connects.
        listener.settimeout(SECONDS)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()
