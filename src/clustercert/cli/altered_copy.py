"""Altered copies of certificates: the same signed content with another valid signature."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from clustercert.pki.keys import CURVES
from clustercert.pki.leaf import encode_certificate

_CURVES = {each.signature_oid: each for each in CURVES.values()}


def altered_copy(der: bytes) -> bytes | None:
    """Copy a certificate (DER) with the signature (r, n - s) instead of (r, s); n is the order of the CA's curve.

    The copy is also valid, and has another fingerprint. Returns `None` if the CA's signature is not ECDSA.
    """
    leaf = x509.load_der_x509_certificate(der)
    algorithm = _CURVES.get(leaf.signature_algorithm_oid)
    if algorithm is None:
        return None
    r, s = decode_dss_signature(leaf.signature)
    signature = encode_dss_signature(r, algorithm.curve.group_order - s)
    return encode_certificate(leaf.tbs_certificate_bytes, algorithm.algorithm_der, signature)
