"""Creates client CAs, and extracts from a CA the values that the CA's leaves contain.

Source: RFC 5280; the profile is in `docs/security-model.md`.
"""

import functools
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID

from clustercert.model import PrivateKey, PublicKey
from clustercert.pki.keys import CURVES, KEY_TYPES, Digest, accepted_key, key_type_of

# The AlgorithmIdentifier (DER) of a CA's signatures, by the type of the CA's key.
# Source: RFC 8410 section 3, RFC 4055 section 5.
ALGORITHM_DER: dict[str, bytes] = {
    **{key_type: curve.algorithm_der for key_type, curve in CURVES.items()},
    "ed25519": bytes.fromhex("300506032b6570"),
    "rsa": bytes.fromhex("300d06092a864886f70d01010b0500"),
}


def new_client_ca(
    common_name: str, ca_key: PrivateKey, not_before: datetime, lifetime: timedelta
) -> x509.Certificate:
    """Create a self-signed CA certificate that may sign leaves and CRLs, but not other CAs."""
    builder = client_ca_builder(common_name, ca_key.public_key(), not_before, lifetime)
    return builder.sign(ca_key, signature_digest(ca_key))


def client_ca_builder(
    common_name: str, public_key: PublicKey, not_before: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    """Return the content of a self-signed CA certificate that may sign leaves and CRLs, but not other CAs."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )


def key_usage(*, rsa_key: bool = False, ca: bool = False) -> x509.KeyUsage:
    """Return the key usage for a client or server leaf, or for a CA."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=rsa_key,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True)
class CaSubject:
    """The values of a CA that are needed to build and verify its leaves.

    Attributes:
        name_der: the CA's subject, in DER.
        scheme: the arguments for verifying a signature; see `signature_scheme`.
        algorithm_der: the AlgorithmIdentifier of the CA's signatures, in DER.
    """

    name_der: bytes
    key: PublicKey
    scheme: tuple[Any, ...]
    algorithm_der: bytes
    key_identifier: bytes
    not_after: datetime


@functools.lru_cache(maxsize=4096)
def ca_subject(ca: x509.Certificate) -> CaSubject:
    key = accepted_key(ca.public_key())
    key_type = key_type_of(key)
    return CaSubject(
        name_der=ca.subject.public_bytes(),
        key=key,
        scheme=signature_scheme(key),
        algorithm_der=ALGORITHM_DER["rsa" if key_type.startswith("rsa-") else key_type],
        key_identifier=authority_key_identifier(ca).key_identifier or b"",
        not_after=ca.not_valid_after_utc,
    )


@functools.lru_cache(maxsize=4096)
def authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the authority key identifier for leaves: a copy of the CA's subject key identifier, if the CA has one.

    The identifier is copied instead of computed from the key, because an imported CA may use a different method.
    """
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(accepted_key(ca.public_key()))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def signature_scheme(key: PrivateKey | PublicKey) -> tuple[Any, ...]:
    """Return the arguments that a key's `sign` and `verify` take after the data: padding and digest, if any."""
    digest = signature_digest(key)
    if digest is None:
        return ()
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return padding.PKCS1v15(), digest
    return (ec.ECDSA(digest),)


def signature_digest(key: PrivateKey | PublicKey) -> Digest | None:
    # Ed25519 includes a digest (RFC 8032), so the library's functions don't take a digest.
    if isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return CURVES[KEY_TYPES[key.curve.name]].digest
    return hashes.SHA256()
