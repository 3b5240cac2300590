"""Proof of possession: the holder of a certificate's private key may revoke it without any other credential."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from clustercert.pki.key_validation import signed_by

KEY_HOLDER = "holder"
"""The actor id for revocations that were authorized only by proof of possession."""

# Used for unknown certificates, so that their check takes as long as for known ones.
_DUMMY_KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


def statement_to_sign(service_name: str, name: str) -> bytes:
    """Return the statement to sign with the key: three lines, each ending with a line feed.

    `name` is the certificate's fingerprint or credential number, lower-case hex.
    """
    return f"clustercert revoke v1\n{service_name}\n{name}\n".encode()


def is_proof(der: bytes | None, unverified_signature: bytes, statement: bytes) -> bool:
    """Whether a certificate's key signed the statement. If `der` is None, returns False after an equally long check."""
    key = x509.load_der_x509_certificate(der).public_key() if der is not None else _DUMMY_KEY
    return signed_by(key, unverified_signature, statement) and der is not None
