"""Builds leaves: for one CA, with the CA's private key, and self-signed ones."""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.model import PrivateKey, SigningRequest
from clustercert.pki.client_ca import ca_subject, signature_scheme
from clustercert.pki.leaf import encode_signed, new_serial, requested_tbs


class LeafBuilder:
    """Builds and signs leaves for one CA."""

    def __init__(self, ca: x509.Certificate, ca_key: PrivateKey) -> None:
        self._ca_key = ca_key
        self._issuer = ca_subject(ca)

    def build(self, request: SigningRequest) -> bytes:
        """Build and sign a leaf. Returns DER. Generates a serial if the request has no serial."""
        serial = request.serial if request.serial is not None else new_serial()
        tbs = requested_tbs(request, self._issuer, serial)
        signature = self._ca_key.sign(tbs, *signature_scheme(self._ca_key))
        return encode_signed(tbs, self._issuer.algorithm_der, signature)


def self_signed_pem(not_before: datetime, validity: timedelta) -> str:
    """A certificate of alice with the given times, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alice")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, not_before, not_before + validity)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
