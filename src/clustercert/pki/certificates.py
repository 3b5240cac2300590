"""Conversions between certificates, PEM, DER and fingerprints."""

import base64
import re

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.model.errors import InvalidRequest
from clustercert.pki.leaf import der_fingerprint, der_pem

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")


def parse_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Parse all certificates in a PEM file. Raises InvalidRequest if it has none, or if one is malformed."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise InvalidRequest("This is not a PEM file of certificates.") from error


def pem_fingerprints(pem: bytes) -> tuple[bytes, ...]:
    """Return the SHA-256 of each certificate's DER in the output of `chain_pem`, without parsing the certificates."""
    return tuple(der_fingerprint(base64.b64decode(block)) for block in _BLOCK.findall(pem))


def chain_pem(chain: tuple[x509.Certificate, ...]) -> bytes:
    """Encode certificates as PEM blocks in the given order."""
    return b"".join(der_pem(certificate_der(certificate)) for certificate in chain)


def certificate_der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER, 32 bytes."""
    return der_fingerprint(certificate_der(certificate))
