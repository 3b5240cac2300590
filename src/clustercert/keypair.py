"""Key pairs: making them, naming their kind, taking the public one from a CSR, and their encodings.

What is certified for a key is `certificate`'s business.
"""

import functools

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from clustercert.errors import InvalidRequest
from clustercert.model import KeyType, PrivateKey, PublicKey

MAX_CSR_BYTES = 16 * 1024
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
MIN_RSA_EXPONENT = 65537

# What reading a request or certificate that somebody else made may raise.
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)


def new_key(key_type: KeyType) -> PrivateKey:
    """A new private key. RSA takes tens of milliseconds and holds the interpreter lock; see `keygen`."""
    match key_type:
        case "ec-p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ec-p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "rsa-2048" | "rsa-3072" | "rsa-4096":
            return rsa.generate_private_key(65537, int(key_type.removeprefix("rsa-")))


def key_type_of(key: PublicKey) -> str:
    """What a public key is, in the words of `KeyType`; RSA of any size as `rsa-<bits>`."""
    kind = _kind(type(key))
    if kind == "rsa":
        return f"rsa-{key.key_size}"  # type: ignore[union-attr] # RSA keys have it
    if kind == "ec":
        curve: str = key.curve.name  # type: ignore[union-attr] # elliptic ones have it
        return {"secp256r1": "ec-p256", "secp384r1": "ec-p384"}.get(curve, curve)
    return kind


# Keys are instances of classes that only register with these abstract ones: asking each time takes a microsecond.
@functools.cache
def _kind(key_class: type[PublicKey]) -> str:
    if issubclass(key_class, rsa.RSAPublicKey):
        return "rsa"
    return "ed25519" if issubclass(key_class, ed25519.Ed25519PublicKey) else "ec"


def is_rsa(key_class: type[PublicKey]) -> bool:
    """Whether keys of this class are RSA keys."""
    return _kind(key_class) == "rsa"


def csr_public_key(unverified_csr_pem: str) -> PublicKey:
    """The public key of a PKCS#10 request in PEM, after its signature proved possession of the private one.

    Nothing else of it is used: subject and extensions come from the policy. Raises InvalidRequest.

    Source: RFC 2986.
    """
    # The bound is of bytes; text that isn't ASCII is no PEM anyway.
    if len(unverified_csr_pem) > MAX_CSR_BYTES or not unverified_csr_pem.isascii():
        raise InvalidRequest(f"csr: send one PEM block in ASCII of at most {MAX_CSR_BYTES} bytes.")
    text = unverified_csr_pem.strip()
    if (
        text.count("-----BEGIN ") != 1
        or not text.startswith(
            ("-----BEGIN CERTIFICATE REQUEST-----", "-----BEGIN NEW CERTIFICATE REQUEST-----")
        )
        or not text.endswith(("-----END CERTIFICATE REQUEST-----", "-----END NEW CERTIFICATE REQUEST-----"))
    ):
        raise InvalidRequest("csr: send exactly one PEM block, CERTIFICATE REQUEST, and nothing around it.")
    try:
        csr = x509.load_pem_x509_csr(text.encode())
        key = csr.public_key()
        # Judged before the signature is computed with it: an oversized key would cost us the time.
        accepted = accepted_key(key)
        proved = csr.is_signature_valid
    except UNREADABLE as error:
        raise InvalidRequest("csr: this is not a certificate request that can be read.") from error
    if not proved:
        raise InvalidRequest("csr: its signature does not match its public key; make it anew.")
    return accepted


def accepted_key(key: object) -> PublicKey:
    """The key, if it is of a kind and size that may be certified. Raises InvalidRequest."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if (
        isinstance(key, rsa.RSAPublicKey)
        and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
        and key.public_numbers().e >= MIN_RSA_EXPONENT
    ):
        return key
    raise InvalidRequest("csr: use a key of P-256, P-384, Ed25519 or RSA with 2048 to 4096 bits.")


def signed_by(key: object, unverified_signature: bytes, statement: bytes) -> bool:
    """Whether a key signed a statement: ECDSA or RSA (PKCS#1 v1.5) over its SHA-256, or Ed25519.

    `openssl pkeyutl -sign -rawin` makes such a signature with each of them.
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


def key_pem(key: PrivateKey) -> bytes:
    """PKCS#8 PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_der(key: PrivateKey) -> bytes:
    """PKCS#8 DER, not encrypted: only ever sealed at once."""
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def load_key_der(der: bytes) -> PrivateKey:
    """The private key in a PKCS#8 DER. Raises ValueError for a kind that we don't use."""
    key = load_der_private_key(der, password=None)
    if not isinstance(key, PrivateKey):
        raise ValueError(f"a private key of type {type(key).__name__} can't be used here")  # noqa: TRY004 - data
    return key


def spki_der(key: object) -> bytes:
    """SubjectPublicKeyInfo in DER, which is equal exactly when the keys are."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return] # any public key has it
