"""Who has a certificate's key may revoke it: what they sign, and how that is checked."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from clustercert.keypair import signed_by

HOLDER = "holder"
"""Who revoked, where nobody but the certificate's key said so."""

# What an unknown certificate's signature is checked with, so that it takes about as long as a known one's.
_NOBODYS_KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


def holder_statement(service_name: str, name: str) -> bytes:
    """What a certificate's holder signs to revoke it: three lines, each with its end.

    `name` is the certificate's fingerprint or credential number, lower-case hex.
    """
    return f"clustercert revoke v1\n{service_name}\n{name}\n".encode()


def proves(der: bytes | None, unverified_signature: bytes, statement: bytes) -> bool:
    """Whether a certificate's key signed a statement; never where there is no certificate."""
    key = x509.load_der_x509_certificate(der).public_key() if der is not None else _NOBODYS_KEY
    return signed_by(key, unverified_signature, statement) and der is not None
