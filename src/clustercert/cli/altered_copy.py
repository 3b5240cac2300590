"""Another encoding of a certificate: the same signed content under another signature of the same key."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import SignatureAlgorithmOID

from clustercert.tbs import ALGORITHM_DER, signed

# The service uses each digest with one curve: see `certificate.digest_for`.
_CURVES: dict[x509.ObjectIdentifier, tuple[str, ec.EllipticCurve]] = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: ("ec-p256", ec.SECP256R1()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: ("ec-p384", ec.SECP384R1()),
}


def altered_copy(der: bytes) -> bytes | None:
    """The certificate with the signature (r, n - s) in the place of (r, s), DER; n is the order of the CA's curve.

    The copy is as valid and has another fingerprint. None where the CA's signature is not ECDSA.
    """
    leaf = x509.load_der_x509_certificate(der)
    if leaf.signature_algorithm_oid not in _CURVES:
        return None
    key_type, curve = _CURVES[leaf.signature_algorithm_oid]
    r, s = decode_dss_signature(leaf.signature)
    signature = encode_dss_signature(r, curve.group_order - s)
    return signed(leaf.tbs_certificate_bytes, ALGORITHM_DER[key_type], signature)
