"""Verifies certificate signing requests (CSRs), and extracts their public keys.

Source: RFC 2986.
"""

from cryptography import x509

from clustercert.model import PublicKey
from clustercert.model.errors import InvalidRequest
from clustercert.pki.key_validation import PARSE_ERRORS, accepted_key

MAX_CSR_BYTES = 16 * 1024
_BEGINS = ("-----BEGIN CERTIFICATE REQUEST-----", "-----BEGIN NEW CERTIFICATE REQUEST-----")
_ENDS = ("-----END CERTIFICATE REQUEST-----", "-----END NEW CERTIFICATE REQUEST-----")


def csr_public_key(unverified_csr_pem: str) -> PublicKey:
    """Verify a PKCS#10 request in PEM, and return its public key. Raises InvalidRequest.

    The CSR's subject and extensions are ignored: the policy decides them.
    """
    # The limit is in bytes; PEM is ASCII.
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
