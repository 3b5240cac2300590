"""How a TLS connection ends, in memory."""

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import sentinel

import pytest
from prometheus_client import Gauge

from clustercert.model.times import rfc3339
from clustercert.observability import metrics
from clustercert.pki.certificates import chain_pem, fingerprint
from clustercert.pki.keys import key_pem, new_key
from clustercert.server import tls_context as tls_context_module
from clustercert.server.tls_context import TlsContext
from clustercert.server.tls_files import Tls, new_server_certificate
from support.log_capture import captured_lines


def tls_context(folder: Path) -> TlsContext:
    key = new_key("ec-p256")
    now = datetime.now(UTC).replace(microsecond=0)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=2))
    certificate = folder / "tls.pem"
    certificate.write_bytes(chain_pem((leaf, ca)) + key_pem(key))
    return TlsContext(Tls.from_files(certificate, certificate))


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a connection, in memory."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server),
    )
    for side in (*reversed(ends), *reversed(ends)):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return ends


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_server_ends_a_connection_without_an_answer(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A kept connection whose client sends nothing more must not hold up the service's end."""
    context = tls_context(tmp_path)(sentinel.config, sentinel.default)
    server, client = handshake(context, client_context(version))
    server.write(b"the last answer")
    server.unwrap()
    assert client.read() == b"the last answer"
    # Without close_notify it would want to read on.
    assert client.read() == b""


def reloads(outcome: str) -> float:
    [family] = metrics.RELOADS.labels("tls", outcome).collect()
    return next(sample.value for sample in family.samples if sample.name == "clustercert_reloads_total")


async def test_a_reload_counts_and_a_broken_pair_keeps_the_former_one(tmp_path: Path) -> None:
    context = tls_context(tmp_path)
    served = context(sentinel.config, sentinel.default)
    done, failed = reloads("done"), reloads("failed")
    await context.reload()
    assert (reloads("done"), reloads("failed")) == (done, failed)
    await context.reload(forced=True)
    assert reloads("done") == done + 1
    (tmp_path / "tls.pem").write_bytes(b"no certificate")
    await context.reload()
    # The same files are not read again.
    await context.reload()
    assert reloads("failed") == failed + 1
    server, client = handshake(served, client_context(ssl.TLSVersion.TLSv1_3))
    server.write(b"hello")
    assert client.read() == b"hello"


def gauge(metric: Gauge, file: Path) -> float:
    [family] = metric.labels(str(file)).collect()
    return family.samples[0].value


async def test_a_reload_measures_the_certificate_and_logs_its_fingerprints(tmp_path: Path) -> None:
    context, file = tls_context(tmp_path), tmp_path / "tls.pem"
    context(sentinel.config, sentinel.default)
    before = Tls.from_files(file, file)
    assert gauge(metrics.TLS_NOT_AFTER, file) == before.not_after.timestamp()
    assert gauge(metrics.TLS_LIFETIME, file) == timedelta(days=2).total_seconds()

    key = new_key("ec-p256")
    renewed = new_server_certificate(key, ["127.0.0.1"], datetime.now(UTC), timedelta(days=7))
    file.write_bytes(chain_pem(renewed) + key_pem(key))
    with captured_lines(tls_context_module) as logged:
        await context.reload(forced=True)

    assert gauge(metrics.TLS_LIFETIME, file) == timedelta(days=7).total_seconds()
    [line] = logged
    assert line["event"] == "TLS files reloaded"
    # The names are the same as in the output of `clustercert fingerprint`.
    assert line["fingerprint"] == fingerprint(renewed[1]).hex()
    assert line["certificate_fingerprint"] == fingerprint(renewed[0]).hex()
    assert line["not_after"] == rfc3339(renewed[0].not_valid_after_utc)
