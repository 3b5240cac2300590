"""Validates untrusted public keys, and signatures that prove possession of the private key."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from clustercert.model import PublicKey
from clustercert.model.errors import InvalidRequest
from clustercert.pki.keys import CURVES, KEY_TYPES, RSA_EXPONENT

MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
MAX_RSA_EXPONENT = 2**31

# The exceptions that parsing an untrusted certificate or CSR can raise.
PARSE_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)


def accepted_key(key: object) -> PublicKey:
    """Return the key if its type and size are accepted for certificates, else raise InvalidRequest."""
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in KEY_TYPES
    ):
        return key
    if (
        isinstance(key, rsa.RSAPublicKey)
        and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
        # A limit, because the time to verify a signature is proportional to the exponent's bits.
        and RSA_EXPONENT <= key.public_numbers().e < MAX_RSA_EXPONENT
    ):
        return key
    curves = ", ".join(f"P-{each.curve.key_size}" for each in CURVES.values())
    raise InvalidRequest(
        f"csr: use a {curves} or Ed25519 key, or RSA with {MIN_RSA_BITS} to {MAX_RSA_BITS} bits and "
        f"an exponent from {RSA_EXPONENT} to 2^31."
    )


def signed_by(key: object, unverified_signature: bytes, statement: bytes) -> bool:
    """Whether a key signed a statement, as `openssl pkeyutl -sign -rawin` does.

    Accepts Ed25519, and ECDSA or RSA (PKCS#1 v1.5) with SHA-256.
    """
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(unverified_signature, statement)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(unverified_signature, statement, ec.ECDSA(SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(unverified_signature, statement, PKCS1v15(), SHA256())
        else:
            return False
    except InvalidSignature:
        return False
    return True
