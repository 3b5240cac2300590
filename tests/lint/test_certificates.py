"""Every kind of certificate that the service makes, judged by others: pkilint and openssl."""

from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from pkilint import loader, report
from pkilint.pkix import certificate, extension, name
from pkilint.validation import ValidationFindingSeverity

from clustercert.model import ClientCA, KeyType, PrivateKey, PublicKey
from clustercert.pki.certificates import csr_public_key
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import new_signing_request
from clustercert.server.tls_files import new_server_certificate
from support.leaf_builder import LeafBuilder
from support.leaf_checks import credential_number_of, openssl
from support.samples import CA_NOT_BEFORE, NOW, client_ca, grant

KEY_TYPES: tuple[KeyType, ...] = get_args(KeyType)
KEYS: dict[KeyType, PrivateKey] = {key_type: new_key(key_type) for key_type in KEY_TYPES}
GROUPS = ("clustercert:admins", 'comma, plus+ "quoted"', "Größe 日本語 🔐")

LINTER = certificate.create_pkix_certificate_validator_container(
    certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
    [
        certificate.create_issuer_validator_container([]),
        certificate.create_validity_validator_container(),
        certificate.create_subject_validator_container([]),
        certificate.create_extensions_validator_container([]),
        certificate.create_spki_validator_container([]),
    ],
)


def lint(subject: x509.Certificate) -> str:
    """pkilint's findings of weight WARNING or above, in its words."""
    der = subject.public_bytes(Encoding.DER)
    document = loader.RFC5280CertificateDocumentLoader().load_der_document(der, "certificate")
    results = LINTER.validate(document.root)
    return str(report.ReportGeneratorPlaintext(results, ValidationFindingSeverity.WARNING).generate())


def leaf(key: PublicKey, ca: ClientCA, ca_key: PrivateKey) -> x509.Certificate:
    request = new_signing_request(grant(groups=GROUPS), key, ca, takes_serial=True)
    return x509.load_der_x509_certificate(LeafBuilder(ca.ca_certificate, ca_key).build(request))


def verify(folder: Path, subject: x509.Certificate, root: x509.Certificate, *options: str) -> None:
    """Openssl accepts the certificate at the time of its issue, to the letter."""
    (folder / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "leaf.pem").write_bytes(subject.public_bytes(Encoding.PEM))
    at = ["-attime", str(int(NOW.timestamp()))]
    root_pem, leaf_pem = folder / "root.pem", folder / "leaf.pem"
    said = openssl("verify", "-x509_strict", *at, *options, "-CAfile", root_pem, leaf_pem)
    assert said.decode().endswith(": OK\n")


def test_the_linter_finds_what_is_wrong() -> None:
    """A certificate without key identifiers, so that silence below means something."""
    key = KEYS["ec-p256"]
    bare = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(client_ca(key).ca_certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(CA_NOT_BEFORE)
        .not_valid_after(NOW)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=False)
        .sign(key, hashes.SHA256())
    )
    assert "authority_key_identifier" in lint(bare)


@pytest.mark.parametrize("ca_key_type", KEY_TYPES)
def test_a_client_ca_is_without_a_finding(ca_key_type: KeyType, tmp_path: Path) -> None:
    ca = client_ca(KEYS[ca_key_type]).ca_certificate
    assert lint(ca) == ""
    verify(tmp_path, ca, ca)


@pytest.mark.parametrize("key_type", KEY_TYPES)
@pytest.mark.parametrize("ca_key_type", KEY_TYPES)
def test_a_leaf_is_without_a_finding(key_type: KeyType, ca_key_type: KeyType, tmp_path: Path) -> None:
    ca = client_ca(KEYS[ca_key_type])
    made = leaf(KEYS[key_type].public_key(), ca, KEYS[ca_key_type])
    assert credential_number_of(made) == f"{made.serial_number:040x}"
    assert lint(made) == ""
    verify(tmp_path, made, ca.ca_certificate, "-purpose", "sslclient")


@pytest.mark.parametrize(
    "options",
    [
        ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
        ["-newkey", "ed25519"],
        ["-newkey", "rsa:2048"],
        ["-newkey", "rsa:3076"],
        ["-newkey", "rsa:4096"],
    ],
    ids=lambda options: options[-1],
)
def test_a_leaf_for_a_csr_of_openssl_is_without_a_finding(options: list[str], tmp_path: Path) -> None:
    """The request asks for what it must not get: a subject and a subject alternative name of its own."""
    asked = ["-subj", "/O=system:masters/CN=root", "-addext", "subjectAltName=DNS:kubernetes"]
    csr = openssl("req", "-new", *options, "-nodes", "-keyout", "/dev/null", *asked).decode()
    ca = client_ca(KEYS["ec-p256"])
    made = leaf(csr_public_key(csr), ca, KEYS["ec-p256"])
    assert lint(made) == ""
    verify(tmp_path, made, ca.ca_certificate, "-purpose", "sslclient")
    assert b"system:masters" not in made.public_bytes(Encoding.DER)
    assert b"kubernetes" not in made.public_bytes(Encoding.DER)


def test_a_leaf_is_no_server_and_no_ca(tmp_path: Path) -> None:
    ca = client_ca(KEYS["ec-p256"])
    made = leaf(KEYS["ec-p256"].public_key(), ca, KEYS["ec-p256"])
    for purpose in ("sslserver", "smimesign", "codesign", "timestampsign"):
        with pytest.raises(AssertionError, match="unsuitable certificate purpose"):
            verify(tmp_path, made, ca.ca_certificate, "-purpose", purpose)


def test_a_leaf_of_another_ca_does_not_verify(tmp_path: Path) -> None:
    stranger = client_ca(KEYS["ec-p384"])
    made = leaf(KEYS["ec-p256"].public_key(), client_ca(KEYS["ec-p256"]), KEYS["ec-p256"])
    with pytest.raises(AssertionError, match="verification failed"):
        verify(tmp_path, made, stranger.ca_certificate, "-purpose", "sslclient")


def test_the_services_own_server_certificate_is_without_a_finding(tmp_path: Path) -> None:
    names = ["clustercert.example.com", "127.0.0.1", "::1"]
    made, ca = new_server_certificate(KEYS["ec-p256"], names, CA_NOT_BEFORE, timedelta(days=365))
    assert lint(made) == ""
    assert lint(ca) == ""
    for name_or_address in (["-verify_hostname", "clustercert.example.com"], ["-verify_ip", "::1"]):
        verify(tmp_path, made, ca, "-purpose", "sslserver", *name_or_address)
