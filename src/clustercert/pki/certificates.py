"""Conversions between certificates, PEM, DER and fingerprints."""

import base64
import re

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.model import PublicKey
from clustercert.model.errors import InvalidRequest
from clustercert.pki.keys import PARSE_ERRORS, accepted_key
from clustercert.pki.leaf import der_fingerprint, der_pem

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
# The library reads both forms.
_BEGIN = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----")


def parse_certificates(pem: bytes, most: int | None = None) -> tuple[x509.Certificate, ...]:
    """Parse all certificates in a PEM file. Raises InvalidRequest if a certificate is malformed or missing.

    Args:
        most: the number of certificates that are allowed; `None` for a file that an operator wrote.
    """
    if most is not None and (count := len(_BEGIN.findall(pem))) > most:
        raise InvalidRequest(f"{count} CAs are more than {most}.")
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise InvalidRequest("The value must be certificates in PEM format.") from error


def pem_fingerprints(pem: bytes) -> tuple[bytes, ...]:
    """Return the SHA-256 of each certificate's DER in the output of `chain_pem`, without parsing the certificates."""
    return tuple(der_fingerprint(base64.b64decode(block)) for block in _BLOCK.findall(pem))


def chain_pem(chain: tuple[x509.Certificate, ...]) -> bytes:
    """Encode certificates as PEM blocks in the given order."""
    return b"".join(der_pem(certificate_der(certificate)) for certificate in chain)


def is_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether a CA issued a certificate.

    False also if `accepted_key` refuses the CA's key: who sent the CA chose its key, and an RSA key with a long
    exponent takes a hundred times as long to verify a signature.
    """
    try:
        if certificate.issuer != ca.subject:
            return False
        accepted_key(ca.public_key())
        certificate.verify_directly_issued_by(ca)
    except (*PARSE_ERRORS, InvalidRequest, InvalidSignature):
        return False
    return True


def is_root(certificate: x509.Certificate) -> bool:
    """Return whether this is the certificate of a CA that issued it itself. The signature is not verified."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (*PARSE_ERRORS, x509.ExtensionNotFound):
        return False
    return constraints.ca and certificate.subject == certificate.issuer


def issuer_key_id(certificate: x509.Certificate) -> str | None:
    """Return the authority key identifier as lower-case hex, or `None` if the certificate has none."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (*PARSE_ERRORS, x509.ExtensionNotFound):
        return None
    identifier = extension.value.key_identifier
    return None if identifier is None else identifier.hex()


def certificate_der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of the certificate's DER, 32 bytes."""
    return der_fingerprint(certificate_der(certificate))


MAX_CSR_BYTES = 16 * 1024
_BEGINS = ("-----BEGIN CERTIFICATE REQUEST-----", "-----BEGIN NEW CERTIFICATE REQUEST-----")
_ENDS = ("-----END CERTIFICATE REQUEST-----", "-----END NEW CERTIFICATE REQUEST-----")


def csr_public_key(unverified_csr_pem: str) -> PublicKey:
    """Verify a PKCS#10 request in PEM, and return its public key. Raises InvalidRequest.

    The CSR's subject and extensions are ignored, because the policy determines the certificate's content.
    """
    # `len` counts characters, and MAX_CSR_BYTES limits bytes. For ASCII text, the two numbers are the same.
    if len(unverified_csr_pem) > MAX_CSR_BYTES or not unverified_csr_pem.isascii():
        raise InvalidRequest(f"csr: must be one PEM block in ASCII of at most {MAX_CSR_BYTES} bytes.")
    text = unverified_csr_pem.strip()
    if text.count("-----BEGIN ") != 1 or not text.startswith(_BEGINS) or not text.endswith(_ENDS):
        raise InvalidRequest("csr: must be exactly one PEM block CERTIFICATE REQUEST, without other text.")
    try:
        csr = x509.load_pem_x509_csr(text.encode())
        # Check the key first, because verifying a signature with an oversized key is slow.
        key = accepted_key(csr.public_key())
        valid = csr.is_signature_valid
    except PARSE_ERRORS as error:
        raise InvalidRequest("csr: can't be parsed as a certificate request.") from error
    if not valid:
        raise InvalidRequest("csr: its signature does not match its public key. Create the CSR again.")
    return key
