"""Key pairs: types, signature algorithms, generation, checks and encodings."""

import functools
import re
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import SignatureAlgorithmOID

from clustercert.model import KeyType, PrivateKey, PublicKey
from clustercert.model.errors import InvalidRequest

RSA_EXPONENT = 65537

Digest = SHA256 | SHA384


class Curve(NamedTuple):
    """An elliptic curve and its signature algorithm.

    Attributes:
        signature_oid, algorithm_der: the signature algorithm's OID and AlgorithmIdentifier (DER). RFC 5758 section 3.2.
    """

    curve: ec.EllipticCurve
    digest: Digest
    signature_oid: x509.ObjectIdentifier
    algorithm_der: bytes


# Each curve has a different digest, so a signature's algorithm identifies the curve.
CURVES: dict[KeyType, Curve] = {
    "ec-p256": Curve(
        ec.SECP256R1(),
        SHA256(),
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        bytes.fromhex("300a06082a8648ce3d040302"),
    ),
    "ec-p384": Curve(
        ec.SECP384R1(),
        SHA384(),
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        bytes.fromhex("300a06082a8648ce3d040303"),
    ),
}
# Key types by the library's name for the curve.
KEY_TYPES: dict[str, KeyType] = {curve.curve.name: key_type for key_type, curve in CURVES.items()}


def new_key(key_type: KeyType) -> PrivateKey:
    """Generate a private key. For RSA, this takes tens of milliseconds and blocks all threads; see `key_generator`."""
    if curve := CURVES.get(key_type):
        return ec.generate_private_key(curve.curve)
    if key_type == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(RSA_EXPONENT, int(key_type.removeprefix("rsa-")))


class KeyGenerator:
    """Generates keys of one type in this process. For RSA keys, use `key_generator.RsaKeyGenerator`."""

    def __init__(self, key_type: KeyType) -> None:
        self.key_type: KeyType = key_type

    async def new_key(self) -> PrivateKey:
        return new_key(self.key_type)

    async def close(self) -> None:
        """Do nothing: this class has no resources to release."""


def key_type_of(key: PublicKey) -> str:
    """Return a public key's type as in `KeyType`. RSA keys of other sizes have the type `rsa-<bits>`."""
    kind = key_kind(type(key))
    if kind == "rsa":
        return f"rsa-{key.key_size}"  # type: ignore[union-attr] # RSA keys have a size
    if kind == "ec":
        curve: str = key.curve.name  # type: ignore[union-attr] # elliptic curve keys have a curve
        return KEY_TYPES.get(curve, curve)
    return kind


# Cached, because `issubclass` with the library's abstract key classes takes a microsecond.
@functools.cache
def key_kind(key_class: type[PublicKey]) -> str:
    if issubclass(key_class, rsa.RSAPublicKey):
        return "rsa"
    return "ed25519" if issubclass(key_class, ed25519.Ed25519PublicKey) else "ec"


def key_pem(key: PrivateKey) -> bytes:
    """Encode a private key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_der(key: PrivateKey) -> bytes:
    """Encode a private key as unencrypted PKCS#8 DER. Seal it before storing it."""
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def load_key_der(der: bytes) -> PrivateKey:
    """Parse a private key in PKCS#8 DER. Raises ValueError for an unsupported key type."""
    key = load_der_private_key(der, password=None)
    if not isinstance(key, PrivateKey):
        raise ValueError(f"private keys of type {type(key).__name__} are not supported")  # noqa: TRY004 - bad data
    return key


def spki_der(key: object) -> bytes:
    """Encode a public key as SubjectPublicKeyInfo DER. Different keys have different encodings."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return] # any public key has it


MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
MAX_RSA_EXPONENT = 2**31

# Exceptions that the library can raise when it parses an untrusted certificate, CSR or CRL.
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
        # Limit the exponent, because the time to verify a signature is proportional to the exponent's length.
        and RSA_EXPONENT <= key.public_numbers().e < MAX_RSA_EXPONENT
    ):
        return key
    curves = ", ".join(f"P-{each.curve.key_size}" for each in CURVES.values())
    raise InvalidRequest(
        f"csr: use a {curves} or Ed25519 key, or RSA with {MIN_RSA_BITS} to {MAX_RSA_BITS} bits and "
        f"an exponent from {RSA_EXPONENT} to 2^31."
    )


def signed_by(key: object, unverified_signature: bytes, statement: bytes) -> bool:
    """Whether a key signed a statement. `openssl pkeyutl -sign -rawin` creates such signatures.

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


_RSA = re.compile(r"rsa-(\d{4})", re.ASCII)


@functools.lru_cache(maxsize=64)
def sample_key(key_type: str) -> PublicKey:
    """Return a public key of this type, for deciding a request whose CSR is not known. Raises ValueError."""
    if found := _RSA.fullmatch(key_type):
        bits = int(found[1])
        if MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
            # Only the size matters, so the modulus is not a product of two primes: finding primes would take seconds.
            return RSAPublicNumbers(RSA_EXPONENT, (1 << (bits - 1)) + 1).public_key()
    if key_type in (*CURVES, "ed25519"):
        return new_key(key_type).public_key()
    raise ValueError(f"{key_type}: unknown type of key")
