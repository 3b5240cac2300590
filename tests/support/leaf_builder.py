"""Builds leaves for one CA, with the CA's private key."""

from cryptography import x509

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
