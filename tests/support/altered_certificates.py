"""Altered copies of a certificate: other DER encodings that Go, and so kube-apiserver, accepts.

They are made without the CA's key. The signed content stays the same.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from support.asn1 import BIT_STRING, INTEGER, SEQUENCE, der, inside

OCTET_STRING = 0x04
NULL = b"\x05\x00"
# SEC 2, sections 2.4.2 and 2.5.1, by the OID of the signature: the service uses each digest with one curve.
_ORDERS = {
    bytes.fromhex("06082a8648ce3d040302"): 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    bytes.fromhex("06082a8648ce3d040303"): int(
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
        16,
    ),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """A certificate: signed content, algorithm, BIT STRING of the signature, and further elements.

    Each is a complete DER element.
    """

    tbs: bytes
    algorithm: bytes
    signature: bytes
    more: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, der_bytes: bytes) -> "Parts":
        tbs, algorithm, signature, *more = inside(der_bytes)
        return cls(tbs, algorithm, signature, tuple(more))

    @property
    def der(self) -> bytes:
        return der(SEQUENCE, self.tbs, self.algorithm, self.signature, *self.more)

    @property
    def octets(self) -> bytes:
        """The signature without the leading octet that counts unused bits."""
        return content(self.signature)[1:]


def content(element: bytes) -> bytes:
    """The content of an element."""
    return element[2 + (element[1] & 0x7F if element[1] & 0x80 else 0) :]


def twin(original: Parts) -> Parts | None:
    """The ECDSA signature (r, n - s) instead of (r, s), which is valid too. None for other signatures."""
    order = _ORDERS.get(inside(original.algorithm)[0])
    if order is None:
        return None
    r, s = inside(original.octets)
    other = order - int.from_bytes(content(s), "big")
    integer = der(INTEGER, other.to_bytes(other.bit_length() // 8 + 1, "big"))
    return Parts(
        original.tbs,
        original.algorithm,
        der(BIT_STRING, b"\x00", der(SEQUENCE, r, integer)),
        original.more,
    )


def appended(original: Parts, element: bytes) -> Parts:
    """With one more element at the end of the outer SEQUENCE."""
    return Parts(original.tbs, original.algorithm, original.signature, (*original.more, element))


def shifted(original: Parts, bits: int = 1) -> Parts | None:
    """With the signature shifted left by unused bits. None if the first bit of the signature is set."""
    value = int.from_bytes(original.octets, "big") << bits
    size = len(original.octets)
    if value >> 8 * size:
        return None
    moved = der(BIT_STRING, bytes([bits]), value.to_bytes(size, "big"))
    return Parts(original.tbs, original.algorithm, moved, original.more)


Change = Callable[[Parts], Parts | None]


def with_null(original: Parts) -> Parts:
    return appended(original, NULL)


def with_kilobyte(original: Parts) -> Parts:
    return appended(original, der(OCTET_STRING, bytes(1020)))


KINDS: Mapping[str, Sequence[Change]] = {
    "twin": (twin,),
    "null": (with_null,),
    "kilobyte": (with_kilobyte,),
    "shifted": (shifted,),
    "twin-null": (twin, with_null),
    "twin-shifted": (twin, shifted),
    "null-kilobyte": (with_null, with_kilobyte),
    "shifted-kilobyte": (shifted, with_kilobyte),
    "twin-shifted-null-kilobyte": (twin, shifted, with_null, with_kilobyte),
}
"""The changes of each kind, one after the other."""


def copies(der_bytes: bytes) -> dict[str, bytes]:
    """All altered copies that the signature of a certificate allows, by kind, DER."""
    found = {}
    for kind, changes in KINDS.items():
        parts: Parts | None = Parts.of(der_bytes)
        for change in changes:
            parts = change(parts) if parts is not None else None
        if parts is not None:
            found[kind] = parts.der
    return found


def fingerprint(der_bytes: bytes) -> str:
    """SHA-256, lower-case hex."""
    return hashlib.sha256(der_bytes).hexdigest()


def can_be_shifted(der_bytes: bytes) -> bool:
    """Whether the first bit of the signature is 0: always for ECDSA, half of the time for other algorithms."""
    return Parts.of(der_bytes).octets[0] < 0x80


def kinds_of(key_type: str) -> set[str]:
    """The kinds for a CA key type, if the signature can be shifted."""
    return set(KINDS) if key_type.startswith("ec-") else {kind for kind in KINDS if "twin" not in kind}
