"""The fingerprints that an operator gives to users, of a certificate file with and without its issuer."""

import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from clustercert.pki.certificates import chain_pem, fingerprint
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import Tls, new_server_certificate, self_signed, tls
from clustercert.settings import load


@pytest.mark.parametrize("with_issuer", [True, False])
def test_the_issuers_fingerprint_is_told_where_the_file_has_it(tmp_path: Path, *, with_issuer: bool) -> None:
    key = new_key("ec-p256")
    leaf, ca = new_server_certificate(key, ["localhost"], datetime.now(UTC), timedelta(days=1))
    (tmp_path / "tls.pem").write_bytes(chain_pem((leaf, ca) if with_issuer else (leaf,)))
    (tmp_path / "tls.key").write_bytes(key_pem(key))
    server = {"tls_certificate": tmp_path / "tls.pem", "tls_key": tmp_path / "tls.key"}
    files = tls(load(None, data_dir=tmp_path, server=server), "127.0.0.1")
    assert files is not None
    assert files.certificate_fingerprint == fingerprint(leaf).hex()
    assert files.fingerprint == fingerprint(ca if with_issuer else leaf).hex()
    assert files.has_issuer is with_issuer


def test_an_own_certificate_is_valid_for_clients_whose_clock_is_behind(tmp_path: Path) -> None:
    made = self_signed(tmp_path, {"localhost"})
    assert made.ca is not None
    for path in (made.certificate, made.ca):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=12)
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        # Clients of Apple refuse more.
        assert lifetime == timedelta(days=825)


def test_a_chain_is_valid_while_all_its_certificates_are(tmp_path: Path) -> None:
    start, key = datetime.now(UTC).replace(microsecond=0), new_key("ec-p256")
    leaf, _ = new_server_certificate(key, ["localhost"], start, timedelta(days=9))
    _, ca = new_server_certificate(key, ["localhost"], start + timedelta(days=1), timedelta(days=3))
    (tmp_path / "tls.pem").write_bytes(chain_pem((leaf, ca)))
    files = Tls.from_files(tmp_path / "tls.pem", tmp_path / "tls.key")
    assert (files.not_before, files.not_after) == (start + timedelta(days=1), start + timedelta(days=4))


@pytest.mark.parametrize("url", [None, "https://clustercert.example.com"])
def test_a_new_address_needs_a_new_certificate_only_without_a_public_url(
    tmp_path: Path, url: str | None
) -> None:
    """A pod has another address after each start; a new certificate would end all logins."""
    settings = load(None, data_dir=tmp_path, server={"host": "0.0.0.0", "public_url": url})
    loopback = {"localhost", "127.0.0.1", "::1"}
    former = self_signed(tmp_path, loopback | ({"clustercert.example.com"} if url else set()), {"192.0.2.77"})
    assert "192.0.2.77" in former.names
    present = tls(settings, "0.0.0.0")
    assert present is not None
    assert (present.certificate_fingerprint == former.certificate_fingerprint) is (url is not None)
    assert ("192.0.2.77" in present.names) is (url is not None)


def test_processes_that_start_together_share_one_pair(tmp_path: Path) -> None:
    for number in range(5):
        folder = tmp_path / str(number)
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda _, where=folder: self_signed(where, {"localhost"}), range(8)))
        assert len({each.fingerprint for each in made}) == 1
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(made[0].certificate, made[0].key)
