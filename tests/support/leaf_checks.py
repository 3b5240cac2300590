"""Checks of issued client certificates, on the parsed certificate."""

import base64
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

BACKDATE = timedelta(minutes=5)
CREDENTIAL_GROUP = re.compile(r"clustercert:credential:[0-9a-f]{40}")
# RFC 5280 4.1.2.2: 20 octets of a positive INTEGER. Below 96 bits, 128 random ones are next to impossible.
MIN_SERIAL_BITS, MAX_SERIAL_BITS = 96, 159

# The whole set, with criticality.
LEAF_EXTENSIONS = {
    (ExtensionOID.BASIC_CONSTRAINTS, True),
    (ExtensionOID.KEY_USAGE, True),
    (ExtensionOID.EXTENDED_KEY_USAGE, False),
    (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
    (ExtensionOID.SUBJECT_KEY_IDENTIFIER, False),
}


def assert_client_leaf(
    certificate: x509.Certificate,
    *,
    ca: x509.Certificate,
    username: str,
    groups: Sequence[str],
    issued_at: datetime,
    lifetime: timedelta,
    credential_number: str | None = None,
) -> None:
    """Assert that every field of a leaf is as expected for this identity and time.

    The last group is the credential group. Its number is the serial, unless the signer chose another serial.
    """
    number = f"{certificate.serial_number:040x}" if credential_number is None else credential_number
    assert CREDENTIAL_GROUP.fullmatch(f"clustercert:credential:{number}")
    assert_subject(certificate, username, [*groups, f"clustercert:credential:{number}"])
    assert certificate.issuer == ca.subject
    assert certificate.version is x509.Version.v3
    assert MIN_SERIAL_BITS <= certificate.serial_number.bit_length() <= MAX_SERIAL_BITS
    issued_second = issued_at.replace(microsecond=0)
    assert certificate.not_valid_before_utc == issued_second - BACKDATE
    assert certificate.not_valid_after_utc == issued_second + lifetime
    assert certificate.not_valid_after_utc <= ca.not_valid_after_utc
    assert_leaf_extensions(certificate, ca)
    assert_signed_by(certificate, ca)


def assert_cluster_leaf(
    certificate: x509.Certificate,
    *,
    ca: x509.Certificate,
    username: str,
    groups: Sequence[str],
    issued_at: datetime,
    lifetime: timedelta,
    credential_number: str,
) -> None:
    """Assert that every field of a leaf that a cluster signed is as expected. The lifetime may be slightly shorter."""
    names = [(each.oid, str(each.value)) for each in certificate.subject]
    numbered = [*groups, f"clustercert:credential:{credential_number}"]
    expected = [(NameOID.COMMON_NAME, username), *((NameOID.ORGANIZATION_NAME, each) for each in numbered)]
    assert Counter(names) == Counter(expected)
    assert certificate.issuer == ca.subject
    assert certificate.version is x509.Version.v3
    assert MIN_SERIAL_BITS <= certificate.serial_number.bit_length() <= MAX_SERIAL_BITS
    issued_second = issued_at.replace(microsecond=0)
    assert abs(certificate.not_valid_before_utc - issued_second + BACKDATE) <= BACKDATE
    shortened = issued_second + lifetime - certificate.not_valid_after_utc
    assert timedelta(0) <= shortened <= BACKDATE + timedelta(minutes=1)
    found = {(extension.oid, extension.critical) for extension in certificate.extensions}
    assert found == LEAF_EXTENSIONS - {(ExtensionOID.SUBJECT_KEY_IDENTIFIER, False)}
    assert_signed_by(certificate, ca)


def credential_number_of(certificate: x509.Certificate) -> str:
    """The credential number. Asserts that the last group is the only credential group."""
    groups = [
        str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    ]
    assert [group for group in groups if group.startswith("clustercert:credential:")] == groups[-1:]
    assert CREDENTIAL_GROUP.fullmatch(groups[-1])
    return groups[-1].removeprefix("clustercert:credential:")


def assert_subject(certificate: x509.Certificate, username: str, groups: Sequence[str]) -> None:
    """Asserts one CN and one O for each group in order, each in a separate RDN, and nothing else."""
    attributes = [list(rdn) for rdn in certificate.subject.rdns]
    assert all(len(rdn) == 1 for rdn in attributes)
    pairs = [(rdn[0].oid, rdn[0].value) for rdn in attributes]
    assert [value for oid, value in pairs if oid == NameOID.COMMON_NAME] == [username]
    assert [value for oid, value in pairs if oid == NameOID.ORGANIZATION_NAME] == list(groups)
    assert len(pairs) == 1 + len(groups)


def assert_leaf_extensions(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    extensions = certificate.extensions
    assert {(extension.oid, extension.critical) for extension in extensions} == LEAF_EXTENSIONS
    assert len(extensions) == len(LEAF_EXTENSIONS)
    constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (False, None)
    wanted = {"digital_signature"}
    if isinstance(certificate.public_key(), rsa.RSAPublicKey):
        wanted.add("key_encipherment")
    assert usages(extensions.get_extension_for_class(x509.KeyUsage).value) == wanted
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    subject_key = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert subject_key == x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    issuer_key = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority.key_identifier == issuer_key.digest
    assert authority.authority_cert_issuer is None
    assert authority.authority_cert_serial_number is None


def usages(value: x509.KeyUsage) -> set[str]:
    """The names of the set bits."""
    names = {
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    }
    found = {name for name in names if getattr(value, name)}
    if value.key_agreement:
        found |= {name for name in ("encipher_only", "decipher_only") if getattr(value, name)}
    return found


def assert_signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    key = ca.public_key()
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, signed)
        return
    digest = certificate.signature_hash_algorithm
    assert isinstance(digest, hashes.SHA256 | hashes.SHA384)
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, signed, ec.ECDSA(digest))
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(signature, signed, padding.PKCS1v15(), digest)


def leaf_of(kubeconfig: object) -> x509.Certificate:
    """The certificate in a kubeconfig. Asserts one PEM certificate in standard base64 on one line."""
    text = user_of(kubeconfig)["client-certificate-data"]
    (certificate,) = x509.load_pem_x509_certificates(base64.b64decode(text, validate=True))
    return certificate


def assert_key_matches(kubeconfig: object) -> None:
    """Asserts that the private key belongs to the certificate and is PKCS #8 PEM."""
    pem = base64.b64decode(user_of(kubeconfig)["client-key-data"], validate=True)
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    key = load_pem_private_key(pem, password=None)
    assert spki(key.public_key()) == spki(leaf_of(kubeconfig).public_key())


def user_of(kubeconfig: object) -> dict[str, str]:
    users = cast("dict[str, Any]", kubeconfig)["users"]
    assert [user["name"] for user in users] == ["user"]
    return cast("dict[str, str]", users[0]["user"])


def spki(key: object) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return cast("ec.EllipticCurvePublicKey", key).public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


def openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    """The output of openssl. Fails with its messages if the exit status is not 0."""
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    return done.stdout


def openssl_subject(certificate: x509.Certificate) -> str:
    """The subject as openssl prints it in RFC 2253 form, last RDN first."""
    pem = certificate.public_bytes(Encoding.PEM)
    out = openssl("x509", "-noout", "-subject", "-nameopt", "RFC2253,utf8,-esc_msb", stdin=pem)
    return out.decode().removeprefix("subject=").rstrip("\n")
