"""The DER of a leaf, encoded and read by our own hand: what `certificate.check_leaf` compares a leaf with.

A signer builds its leaf with a library, or far away. That the bytes which it signed are equal to those which this
module makes of the same request says at once that nothing is missing, changed or unasked, and costs a fraction of
parsing.

Source: RFC 5280 section 4.1 and 4.2; X.690 (DER).
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

# RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050.
_FIRST_GENERALIZED_YEAR = 2050

_VERSION_3 = bytes.fromhex("a003020102")
# Extension := SEQUENCE { OID, critical BOOLEAN DEFAULT FALSE, OCTET STRING }, in the order of the profile.
_BASIC_CONSTRAINTS = bytes.fromhex("300c0603551d130101ff04023000")
_KEY_USAGE = bytes.fromhex("300e0603551d0f0101ff040403020780")
_KEY_USAGE_RSA = bytes.fromhex("300e0603551d0f0101ff0404030205a0")
_EXTENDED_KEY_USAGE = bytes.fromhex("30130603551d25040c300a06082b06010505070302")
_AUTHORITY_KEY_IDENTIFIER = bytes.fromhex("0603551d23")
_SUBJECT_KEY_IDENTIFIER = bytes.fromhex("301d0603551d0e04160414")
# What stands before the point in the SubjectPublicKeyInfo of each P-256 key. RFC 5480 2.
_P256_HEAD = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")

_SEQUENCE, _INTEGER, _BIT_STRING, _OCTET_STRING = 0x30, 0x02, 0x03, 0x04
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_EXTENSIONS = 0xA3
_SUBJECT_OID = "2.5.29.14"
# SHA-1.
KEY_IDENTIFIER_BYTES = 20
_LONG_FORM = 0x80


# AlgorithmIdentifier by the kind of the CA's key. RFC 5758 3.2, RFC 8410 3, RFC 4055 5.
ALGORITHM_DER = {
    "ec-p256": bytes.fromhex("300a06082a8648ce3d040302"),
    "ec-p384": bytes.fromhex("300a06082a8648ce3d040303"),
    "ed25519": bytes.fromhex("300506032b6570"),
    "rsa": bytes.fromhex("300d06092a864886f70d01010b0500"),
}


def leaf_extensions(
    *, rsa_key: bool, authority_key_identifier: bytes, spki: bytes, order: Iterable[str] | None = None
) -> bytes:
    """The field `extensions` of a leaf in DER: its extensions in our order, or by their OIDs in another.

    The authority's identifier is the bare one.
    """
    identifier = key_identifier(spki)
    if order is None:
        return _before_identifier(rsa_key, authority_key_identifier) + identifier
    fixed = _fixed_extensions(rsa_key, authority_key_identifier)
    by_oid = {**fixed, _SUBJECT_OID: fixed[_SUBJECT_OID] + identifier}
    return _field(b"".join([by_oid[oid] for oid in order]))


# The subject's identifier is the last extension, as long in each leaf, and all that differs between those of a CA.
@functools.lru_cache(maxsize=4096)
def _before_identifier(rsa_key: bool, authority_key_identifier: bytes) -> bytes:
    """The field `extensions` in our order, without the subject's identifier at its end."""
    fixed = b"".join(_fixed_extensions(rsa_key, authority_key_identifier).values())
    return _field(fixed + bytes(KEY_IDENTIFIER_BYTES))[:-KEY_IDENTIFIER_BYTES]


def _field(extensions: bytes) -> bytes:
    return _element(_EXTENSIONS, _element(_SEQUENCE, extensions))


def _fixed_extensions(rsa_key: bool, authority_key_identifier: bytes) -> Mapping[str, bytes]:
    """By OID, in our order; the last one, the subject's identifier, without the identifier, which ends it."""
    return {
        "2.5.29.19": _BASIC_CONSTRAINTS,
        "2.5.29.15": _KEY_USAGE_RSA if rsa_key else _KEY_USAGE,
        "2.5.29.37": _EXTENDED_KEY_USAGE,
        "2.5.29.35": _authority_extension(authority_key_identifier),
        _SUBJECT_OID: _SUBJECT_KEY_IDENTIFIER,
    }


class SubjectTemplate(NamedTuple):
    """A subject in DER, split where the credential number stands in it.

    Attributes:
        before: what precedes the number; all of the subject where there is no number.
        after: what follows the number.
    """

    before: bytes
    after: bytes = b""


def leaf_tbs(
    *,
    serial: int,
    signature_algorithm: bytes,
    issuer: bytes,
    subject: SubjectTemplate,
    credential_number: str | None,
    not_before: datetime,
    not_after: datetime,
    spki: bytes,
    extensions: bytes,
) -> bytes:
    """TBSCertificate in DER, of parts that are DER already; the extensions are those of `leaf_extensions`.

    The credential number is spliced into the subject; its length is the same in every certificate.
    """
    return _element(
        _SEQUENCE,
        b"".join(
            (
                _VERSION_3,
                _element(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, "big")),
                _identity(signature_algorithm, issuer, not_before, not_after, subject.before),
                (credential_number or "").encode("ascii"),
                subject.after,
                spki,
                extensions,
            )
        ),
    )


# All certificates that one caller is given on a cluster in a second have this in common.
@functools.lru_cache(maxsize=1024)
def _identity(
    signature_algorithm: bytes, issuer: bytes, not_before: datetime, not_after: datetime, subject: bytes
) -> bytes:
    """From the signature algorithm to the credential number."""
    return b"".join((signature_algorithm, issuer, _validity(not_before, not_after), subject))


def signed(tbs: bytes, algorithm: bytes, signature: bytes) -> bytes:
    """Certificate in DER, from its three parts."""
    # The first octet of a BIT STRING counts its unused bits: none.
    return _element(_SEQUENCE, tbs + algorithm + _element(_BIT_STRING, b"\0" + signature))


def serial_and_signature(unverified_der: bytes) -> tuple[int, bytes]:
    """What only its signer knows of a leaf: the serial, and the signature's octets. Raises ValueError where none are.

    No more is looked at than it takes to find them, so the answer means something for bytes alone that are equal to
    `signed` of it: that has each tag, shortest lengths and integers, and nothing behind its end. A negative serial is
    read as a positive one, which is encoded otherwise.
    """
    try:
        _, outer, _ = _header(unverified_der, 0)
        _, version, size = _header(unverified_der, outer)
        _, number, digits = _header(unverified_der, version + len(_VERSION_3))
        _, parameters, more = _header(unverified_der, version + size)
        _, bits, _ = _header(unverified_der, parameters + more)
    # An offset that is too large for any sequence is one, too.
    except IndexError as error:
        raise ValueError("these bytes end before a certificate does") from error
    serial = int.from_bytes(unverified_der[number : number + digits], "big")
    # Behind the octet that counts the unused bits.
    return serial, unverified_der[bits + 1 :]


def content(element: bytes) -> bytes:
    """What an element in DER holds, without its tag and length."""
    _, start, length = _header(element, 0)
    return element[start : start + length]


def key_identifier(spki: bytes) -> bytes:
    """SHA-1 of the key's bits, RFC 5280 4.2.1.2 method (1), from a SubjectPublicKeyInfo in DER."""
    if spki.startswith(_P256_HEAD):
        return hashlib.sha1(spki[len(_P256_HEAD) :], usedforsecurity=False).digest()
    _, start, _ = _header(spki, 0)
    _, algorithm, length = _header(spki, start)
    _, bits, _ = _header(spki, algorithm + length)
    return hashlib.sha1(spki[bits + 1 :], usedforsecurity=False).digest()


def _authority_extension(identifier: bytes) -> bytes:
    key_identifier_field = _element(0x80, identifier)
    value = _element(_OCTET_STRING, _element(_SEQUENCE, key_identifier_field))
    return _element(_SEQUENCE, _AUTHORITY_KEY_IDENTIFIER + value)


# All certificates of a second share their times, and most of them the policy's lifetimes.
@functools.lru_cache(maxsize=1024)
def _validity(not_before: datetime, not_after: datetime) -> bytes:
    return _element(_SEQUENCE, _time(not_before) + _time(not_after))


def _time(time: datetime) -> bytes:
    if time.year < _FIRST_GENERALIZED_YEAR:
        return _element(_UTC_TIME, f"{time:%y%m%d%H%M%SZ}".encode())
    return _element(_GENERALIZED_TIME, f"{time:%Y%m%d%H%M%SZ}".encode())


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < _LONG_FORM:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG_FORM | len(length))) + length + content


def _header(der: Sequence[int], at: int) -> tuple[int, int, int]:
    """(tag, where the content starts, its length) of the element at an offset."""
    first = der[at + 1]
    if first < _LONG_FORM:
        return der[at], at + 2, first
    octets = first & ~_LONG_FORM
    length = int.from_bytes(bytes(der[at + 2 : at + 2 + octets]), "big")
    return der[at], at + 2 + octets, length
