"""How a TLS connection ends, in memory."""

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import sentinel

import pytest

from clustercert.certificate import chain_pem
from clustercert.keypair import key_pem, new_key
from clustercert.server.tls_context import TlsContext
from clustercert.server.tls_files import Tls, new_server_certificate


def server_context(folder: Path) -> ssl.SSLContext:
    key = new_key("ec-p256")
    now = datetime.now(UTC).replace(microsecond=0)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=2))
    certificate = folder / "tls.pem"
    certificate.write_bytes(chain_pem((leaf, ca)) + key_pem(key))
    files = Tls(certificate, certificate, ca=None, fingerprint="", names=())
    return TlsContext(files)(sentinel.config, sentinel.default)


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_server_ends_a_connection_without_an_answer(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A kept connection whose client sends nothing more must not hold up the service's end."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(tmp_path).wrap_bio(to_server, to_client, server_side=True)
    client = client_context(version).wrap_bio(to_client, to_server)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    server.write(b"the last answer")
    server.unwrap()
    assert client.read() == b"the last answer"
    # Without close_notify it would want to read on.
    assert client.read() == b""
