"""`clustercert kubernetes setup` says which certificate the service presents."""

import base64
import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from clustercert.kubernetes.setup import webhook_check
from clustercert.model import rfc3339
from support.certificate_authority import Authority
from support.kubernetes_setup import SERVICE, files
from support.operated_cluster import OperatedCluster, tls_service
from support.wait import SECONDS


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_check, "TIMEOUT_SECONDS", SECONDS)


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


def webhook_cas(site: OperatedCluster) -> bytes | None:
    """The CAs in the webhook's kubeconfig."""
    cluster = yaml.safe_load(files(site)["webhook.kubeconfig"])["clusters"][0]["cluster"]
    encoded = cluster.get("certificate-authority-data")
    return None if encoded is None else base64.b64decode(encoded)


@contextlib.contextmanager
def certificate_file(site: OperatedCluster, table: str, *certificates: bytes) -> Iterator[None]:
    """Name a file with these certificates in a table of the settings."""
    path, key = (site.operator.folder / name for name in ("named.pem", "service.key"))
    path.write_bytes(b"".join(certificates))
    site.operator.configure(f"[{table}]\ntls_certificate = '{path}'\ntls_key = '{key}'\n")
    try:
        yield
    finally:
        site.operator.configure()


@pytest.mark.parametrize("table", ["server", "webhook"])
def test_a_private_ca_at_the_end_of_the_certificates_file_is_trusted(
    site: OperatedCluster, table: str
) -> None:
    leaf = site.ca.with_name("service.pem").read_bytes()
    notes(site, "--webhook-url", SERVICE)
    assert webhook_cas(site) is None
    with certificate_file(site, table, leaf, site.ca.read_bytes()):
        # The folder has no CA yet.
        said = notes(site, "--webhook-url", site.url)
        assert webhook_cas(site) == site.ca.read_bytes()
        assert f"{site.url} presented a certificate for CN=clustercert" in said
        assert "Warning" not in said
        assert "no --webhook-ca" not in said
        notes(site, "--webhook-ca", site.cluster.server_ca)
        notes(site)
        assert webhook_cas(site) == site.cluster.server_ca.read_bytes()


def test_other_certificates_files_name_no_ca(site: OperatedCluster) -> None:
    leaf, root = site.ca.with_name("service.pem").read_bytes(), site.ca.read_bytes()
    intermediate = Authority("root").intermediate_pem("intermediate")
    for certificates in ((leaf,), (root,), (leaf, intermediate), (root, leaf)):
        with certificate_file(site, "server", *certificates):
            notes(site, "--webhook-url", SERVICE)
            assert webhook_cas(site) is None
    with certificate_file(site, "server", leaf, root):
        site.operator.folder.joinpath("named.pem").unlink()
        notes(site, "--webhook-url", SERVICE)
        assert webhook_cas(site) is None


def test_a_failed_handshake_is_printed_last(site: OperatedCluster) -> None:
    *_, following, last = notes(site, "--webhook-url", SERVICE).splitlines()
    assert following.startswith("Next: ")
    assert last.startswith("Warning: the TLS handshake")
    several = site.operator.run(
        "kubernetes", "setup", "--all", "--out", site.folder / "all", "--webhook-url", SERVICE
    )
    *_, following, last = several.err.splitlines()
    assert following.startswith("Next: ")
    assert last.startswith("Warning: the TLS handshake")


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


@pytest.mark.full
def test_a_process_without_the_webhook_is_a_warning(site: OperatedCluster) -> None:
    with tls_service(site.operator, "--role", "api") as url:
        said = notes(site, "--webhook-url", url, "--webhook-ca", site.ca)
    *_, last = said.splitlines()
    assert last.startswith("Warning: with these files, revoked certificates keep working. ")
    assert webhook_check.NO_WEBHOOK.format(url=url) in last


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
