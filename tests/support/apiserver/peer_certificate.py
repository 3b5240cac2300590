"""A client certificate as Go parses it, more leniently than OpenSSL.

Source: Go, crypto/x509/parser.go and encoding/asn1. Go ignores elements after the signature in the outer SEQUENCE, and
shifts a signature with unused bits to the right. kube-apiserver hashes the bytes as received.
"""

from dataclasses import dataclass

from cryptography import x509

_SEQUENCE, _INTEGER, _BIT_STRING, _VERSION = 0x30, 0x02, 0x03, 0xA0


@dataclass(frozen=True, slots=True)
class Presented:
    """The parts that Go parses.

    Attributes:
        tbs: the signed content, DER.
        algorithm: the AlgorithmIdentifier, DER.
        signature: its octets, without unused bits.
    """

    tbs: bytes
    algorithm: bytes
    signature: bytes

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate in its canonical encoding. Raises ValueError if it is malformed."""
        bits = _element(_BIT_STRING, b"\x00" + self.signature)
        return x509.load_der_x509_certificate(_element(_SEQUENCE, self.tbs + self.algorithm + bits))


def read(der: bytes) -> Presented:
    """Parse a certificate. Raises ValueError if Go would reject it."""
    content, behind = _split(der, _SEQUENCE)
    if behind:
        raise ValueError("trailing data behind the certificate")
    signed, rest = _split(content, _SEQUENCE)
    tbs = content[: len(content) - len(rest)]
    _, bits_and_more = _split(rest, _SEQUENCE)
    algorithm = rest[: len(rest) - len(bits_and_more)]
    _, behind_version = _split(signed, _VERSION)
    _, inner_algorithm = _split(behind_version, _INTEGER)
    if not inner_algorithm.startswith(algorithm):
        raise ValueError("inner and outer signature algorithm identifiers don't match")
    bits, _ignored = _split(bits_and_more, _BIT_STRING)
    return Presented(tbs, algorithm, _right_aligned(bits))


def _right_aligned(bits: bytes) -> bytes:
    """The octets of a BIT STRING's content, shifted right by its unused bits."""
    if not bits:
        raise ValueError("an empty BIT STRING")
    unused, octets = bits[0], bits[1:]
    if unused > 7 or (unused and not octets) or (octets and octets[-1] & ((1 << unused) - 1)):
        raise ValueError("unused bits that are set")
    return (int.from_bytes(octets, "big") >> unused).to_bytes(len(octets), "big")


def _split(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the first element, with this tag, and the remaining bytes. Raises ValueError."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("not the element that should stand here")
    size, start = data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
        if size < 0x80 or data[2:3] == b"\x00" or start > 6:
            raise ValueError("a length that is not the shortest")
    if len(data) < start + size:
        raise ValueError("an element that ends too early")
    return data[start : start + size], data[start + size :]


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
