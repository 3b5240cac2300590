"""A minimal DER and PEM writer for malformed requests and certificates, which no library writes."""

import base64

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

SEQUENCE, INTEGER, BIT_STRING = 0x30, 0x02, 0x03


def der(tag: int, *parts: bytes) -> bytes:
    """One element."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def elements(content: bytes) -> list[bytes]:
    """A sequence of elements, split."""
    found = []
    while content:
        size, start = content[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(content[2:start], "big")
        found.append(content[: start + size])
        content = content[start + size :]
    return found


def inside(element: bytes) -> list[bytes]:
    """The elements inside a constructed one."""
    start = 2 + (element[1] & 0x7F if element[1] & 0x80 else 0)
    return elements(element[start:])


def pem(label: str, der_bytes: bytes) -> str:
    """A PEM block."""
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der_bytes).decode()}-----END {label}-----\n"


def csr_of_version(csr_pem: str, version: int) -> str:
    """The same request with another version; RFC 2986 allows only 0."""
    whole = bytearray(x509.load_pem_x509_csr(csr_pem.encode()).public_bytes(Encoding.DER))
    whole[whole.index(b"\x02\x01\x00") + 2] = version
    return pem("CERTIFICATE REQUEST", bytes(whole))


def unsigned_csr(spki: bytes) -> str:
    """A request for this key with a zero signature, labelled RSA with SHA-256."""
    rsa_with_sha256 = bytes.fromhex("300d06092a864886f70d01010b0500")
    info = der(SEQUENCE, b"\x02\x01\x00", der(SEQUENCE), spki, der(0xA0))
    whole = der(SEQUENCE, info, rsa_with_sha256, der(BIT_STRING, b"\x00" + bytes(256)))
    return pem("CERTIFICATE REQUEST", whole)


def resigned(
    leaf: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    digest: hashes.HashAlgorithm | None = None,
    **changed: bytes | None,
) -> x509.Certificate:
    """The leaf with parts of its TBSCertificate replaced (None: removed), signed again.

    Parts are named as in RFC 5280 4.1; each is a complete element.
    """
    names = ["version", "serial", "signature", "issuer", "validity", "subject", "key", "extensions"]
    parts: dict[str, bytes | None] = dict(zip(names, inside(leaf.tbs_certificate_bytes), strict=True))
    parts = parts | {"unique_ids": b""} | changed
    parts["extensions"] = parts.pop("extensions")  # behind the unique ids
    algorithm = parts["signature"] or b""
    tbs = der(SEQUENCE, *(part for part in parts.values() if part is not None))
    signature = ca_key.sign(tbs, ec.ECDSA(digest or hashes.SHA256()))
    whole = der(SEQUENCE, tbs, algorithm, der(BIT_STRING, b"\x00" + signature))
    return x509.load_der_x509_certificate(whole)


def flipped(csr_pem: str, octet_from_end: int) -> str:
    """The same request with one bit changed; near the end it is in the signature."""
    changed = bytearray(x509.load_pem_x509_csr(csr_pem.encode()).public_bytes(Encoding.DER))
    changed[-octet_from_end] ^= 1
    return pem("CERTIFICATE REQUEST", bytes(changed))
