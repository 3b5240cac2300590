"""Key pairs: types with their signature algorithms, generation, encodings."""

import functools
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
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

RSA_EXPONENT = 65537

Digest = SHA256 | SHA384


class Curve(NamedTuple):
    """A curve and its signature algorithm.

    Attributes:
        signature_oid, algorithm_der: the signature algorithm's OID and AlgorithmIdentifier (DER). RFC 5758 3.2.
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
    """Generate a private key. RSA takes tens of milliseconds and blocks other threads; see `key_generator`."""
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
    """Return a public key's type, as in `KeyType`, or `rsa-<bits>` for RSA of any size."""
    kind = key_kind(type(key))
    if kind == "rsa":
        return f"rsa-{key.key_size}"  # type: ignore[union-attr] # RSA keys have it
    if kind == "ec":
        curve: str = key.curve.name  # type: ignore[union-attr] # elliptic curve keys have it
        return KEY_TYPES.get(curve, curve)
    return kind


# Cached: `isinstance` with the library's abstract key classes takes a microsecond.
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
    """Encode a public key as SubjectPublicKeyInfo DER. Only equal keys have equal encodings."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return] # any public key has it
