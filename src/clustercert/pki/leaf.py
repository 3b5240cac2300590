"""Leaf certificates: subject, encoding, and comparison of a signed certificate with the signing request."""

import functools
import hashlib
import os
import ssl
import time
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clustercert.model import (
    ClientCA,
    Grant,
    PrivateKey,
    PublicKey,
    SigningRequest,
    credential_group,
    credential_number,
)
from clustercert.model.choices import LeafProfile
from clustercert.model.errors import InvalidRequest, SignerError
from clustercert.pki.client_ca import (
    CaSubject,
    authority_key_identifier,
    ca_subject,
    key_usage,
    signature_digest,
)
from clustercert.pki.keys import key_kind, spki_der

# RFC 5280 appendix A: ub-common-name and ub-organization-name. The limit applies to UTF-8 bytes, as in many verifiers.
MAX_NAME = 64

# A placeholder for a credential number. All numbers have the same length.
_ANY_NUMBER = credential_number(0)


def subject(grant: Grant, credential_number: str = "") -> x509.Name:
    """Build the subject: an O for each group in order, an O for the credential number if given, and the CN.

    kube-apiserver takes the user name from the CN and the groups from the Os.
    """
    if not credential_number:
        return _name(grant.username, grant.groups)
    return _name(grant.username, (*grant.groups, credential_group(credential_number)))


@functools.lru_cache(maxsize=4096)
def subject_template(username: str, groups: tuple[str, ...], *, numbered: bool) -> tuple[bytes, bytes]:
    """Return the subject's DER before and after the credential number.

    If `numbered` is false, the subject has no credential number, and the second part is empty.
    """
    if not numbered:
        return _name(username, groups).public_bytes(), b""
    whole = _name(username, (*groups, credential_group(_ANY_NUMBER))).public_bytes()
    # The credential group is the last O, so the credential number ends where the CN begins.
    name = _name(username, ()).public_bytes()
    common_name = name[_header_length(name) :]
    return whole[: -len(common_name) - len(_ANY_NUMBER)], common_name


def _name(username: str, groups: tuple[str, ...]) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, username)])


def _header_length(der: bytes) -> int:
    return 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)


# A serial is positive and has at most 20 octets. RFC 5280 section 4.1.2.2.
MAX_SERIAL_BITS = 159
_RANDOM_SERIAL_BITS = 112
_SERIALS_PER_SECOND = 1 << 16
_TIME_MASK = (1 << MAX_SERIAL_BITS - _RANDOM_SERIAL_BITS) - 1

# RFC 5280 section 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050.
_FIRST_GENERALIZED_YEAR = 2050

_VERSION_3 = bytes.fromhex("a003020102")
# Extension := SEQUENCE { OID, critical BOOLEAN DEFAULT FALSE, OCTET STRING }, in the order of the profile.
_BASIC_CONSTRAINTS = bytes.fromhex("300c0603551d130101ff04023000")
_KEY_USAGE = bytes.fromhex("300e0603551d0f0101ff040403020780")
_KEY_USAGE_RSA = bytes.fromhex("300e0603551d0f0101ff0404030205a0")
_EXTENDED_KEY_USAGE = bytes.fromhex("30130603551d25040c300a06082b06010505070302")
_AUTHORITY_KEY_IDENTIFIER = bytes.fromhex("0603551d23")
_SUBJECT_KEY_IDENTIFIER = bytes.fromhex("301d0603551d0e04160414")
# The bytes before the curve point in every P-256 SubjectPublicKeyInfo. RFC 5480 section 2.
_P256_HEAD = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")

_SEQUENCE, _INTEGER, _BIT_STRING, _OCTET_STRING = 0x30, 0x02, 0x03, 0x04
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_EXTENSIONS = 0xA3
_SUBJECT_OID = "2.5.29.14"
# The length of a SHA-1 digest.
KEY_IDENTIFIER_BYTES = 20
_LONG_FORM = 0x80


class CheckedLeaf(NamedTuple):
    """A leaf certificate that matches the signing request. The serial is positive and has at most 159 bits.

    Attributes:
        not_before, not_after: the validity as signed, which may be shorter than requested.
    """

    der: bytes
    serial: int
    not_before: datetime
    not_after: datetime


def check_leaf(chain: tuple[bytes, ...], request: SigningRequest) -> CheckedLeaf:
    """Check that a signer's chain (DER) is one leaf that matches the request and verifies against the CA.

    Raises only SignerError, whatever the signer returned. The error names the first difference.
    """
    der, issuer = _only_certificate(chain), ca_subject(request.ca.ca_certificate)
    not_before, not_after = request.grant.not_before, request.grant.not_after
    try:
        if request.profile == "own":
            serial, signature, tbs = _parse(der, issuer, request)
            issuer.key.verify(signature, tbs, *issuer.scheme)
        else:
            serial, not_before, not_after = _check_kubernetes_leaf(der, issuer, request)
    except InvalidSignature as error:
        raise SignerError(
            "The certificate from the signer does not verify against the cluster's client CA."
        ) from error
    if request.serial not in (None, serial):
        raise SignerError("The certificate from the signer does not have the requested serial number.")
    if not 0 < serial < 1 << MAX_SERIAL_BITS:
        raise SignerError(
            "The serial of the certificate from the signer is not positive or exceeds 20 octets."
        )
    if not_after > issuer.not_after:
        raise SignerError("The certificate would outlive its CA.")
    return CheckedLeaf(der, serial, not_before, not_after)


def _only_certificate(chain: tuple[bytes, ...]) -> bytes:
    """Return the only certificate in a chain. Raises SignerError if the chain has no or several certificates."""
    # Signers are plugins, so check the types of their results. A mutable result could change after the check.
    if type(chain) is not tuple:
        raise SignerError(f"The signer returned {type(chain).__name__} instead of a tuple.")
    # API servers trust the leaf's issuer directly, so the chain must not have intermediates.
    if len(chain) != 1:
        raise SignerError(f"The signer returned {len(chain)} certificates instead of one.")
    if type(chain[0]) is not bytes:
        raise SignerError(f"The signer returned {type(chain[0]).__name__} instead of DER bytes.")
    return chain[0]


def _parse(der: bytes, issuer: CaSubject, request: SigningRequest) -> tuple[int, bytes, bytes]:
    """Parse a leaf, and compare it with our own encoding of the request. Returns (serial, signature, TBSCertificate).

    Only the serial, the signature and the order of extensions may differ. For other differences, raises SignerError or
    InvalidSignature.
    """
    try:
        serial, signature = serial_and_signature(der)
    except ValueError:
        pass  # The slow path below reports what is wrong.
    else:
        tbs = requested_tbs(request, issuer, serial)
        if der == encode_signed(tbs, issuer.algorithm_der, signature):
            return serial, signature, tbs
    expected_subject = subject(request.grant, request.credential_number)
    serial, signature, order = parse_reencoded_leaf(der, request, expected_subject.public_bytes())
    tbs = requested_tbs(request, issuer, max(serial, 0), order)
    if der != encode_signed(tbs, issuer.algorithm_der, signature):
        raise SignerError(
            "The certificate from the signer has a different encoding or more content than requested."
        )
    return serial, signature, tbs


def requested_tbs(
    request: SigningRequest, issuer: CaSubject, serial: int, order: tuple[str, ...] | None = None
) -> bytes:
    """Encode the requested leaf's TBSCertificate. `order`: the OIDs of the extensions, by default in our own order.

    The credential number has a fixed length, so the number can be inserted into the subject's cached encoding.
    """
    grant, number = request.grant, request.credential_number
    before, after = subject_template(grant.username, grant.groups, numbered=bool(number))
    extensions = _extensions(key_kind(type(request.public_key)) == "rsa", issuer.key_identifier, order)
    return _element(
        _SEQUENCE,
        b"".join(
            (
                _VERSION_3,
                _element(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, "big")),
                issuer.algorithm_der,
                issuer.name_der,
                _validity(grant.not_before, grant.not_after),
                before,
                number.encode("ascii"),
                after,
                request.spki,
                extensions[0],
                key_identifier(request.spki),
                extensions[1],
            )
        ),
    )


# Cached, because a CA's leaves have the same extensions except for the value of the subject key identifier.
@functools.lru_cache(maxsize=4096)
def _extensions(
    rsa_key: bool, authority_key_identifier: bytes, order: tuple[str, ...] | None
) -> tuple[bytes, bytes]:
    """Encode the field `extensions`. Returns the bytes before and after the value of the subject key identifier.

    `order`: the OIDs of the extensions. Without the OID of the subject key identifier, the second part is empty.
    """
    authority = _element(_OCTET_STRING, _element(_SEQUENCE, _element(0x80, authority_key_identifier)))
    by_oid = {
        "2.5.29.19": _BASIC_CONSTRAINTS,
        "2.5.29.15": _KEY_USAGE_RSA if rsa_key else _KEY_USAGE,
        "2.5.29.37": _EXTENDED_KEY_USAGE,
        "2.5.29.35": _element(_SEQUENCE, _AUTHORITY_KEY_IDENTIFIER + authority),
        _SUBJECT_OID: _SUBJECT_KEY_IDENTIFIER + bytes(KEY_IDENTIFIER_BYTES),
    }
    oids = order or tuple(by_oid)
    whole = _element(_EXTENSIONS, _element(_SEQUENCE, b"".join([by_oid[oid] for oid in oids])))
    if _SUBJECT_OID not in oids:
        return whole, b""
    after = b"".join([by_oid[oid] for oid in oids[oids.index(_SUBJECT_OID) + 1 :]])
    return whole[: len(whole) - len(after) - KEY_IDENTIFIER_BYTES], after


def encode_signed(tbs: bytes, algorithm: bytes, signature: bytes) -> bytes:
    """Encode a certificate or CRL in DER, from its content, its AlgorithmIdentifier (DER) and its signature."""
    # The first octet of a BIT STRING is the number of unused bits.
    return _element(_SEQUENCE, tbs + algorithm + _element(_BIT_STRING, b"\0" + signature))


def serial_and_signature(unverified_der: bytes) -> tuple[int, bytes]:
    """Extract a certificate's serial and signature. Raises ValueError if serial or signature can't be found.

    Validates nothing else, so the caller must encode the result with `encode_signed` and compare the encodings.
    The encodings differ if the certificate has wrong tags, trailing bytes, or lengths or integers that are not
    minimal. The encodings also differ for a negative serial, which this function reads as positive.
    """
    try:
        outer, _ = _content(unverified_der, 0)
        tbs, tbs_size = _content(unverified_der, outer)
        number, digits = _content(unverified_der, tbs + len(_VERSION_3))
        algorithm, algorithm_size = _content(unverified_der, tbs + tbs_size)
        bits, _ = _content(unverified_der, algorithm + algorithm_size)
    # `_content` also raises IndexError for an offset beyond the largest index.
    except IndexError as error:
        raise ValueError("the certificate is truncated") from error
    serial = int.from_bytes(unverified_der[number : number + digits], "big")
    # Skip the octet with the number of unused bits.
    return serial, unverified_der[bits + 1 :]


def key_identifier(spki: bytes) -> bytes:
    """Return the key identifier: the SHA-1 of the key bits in a SubjectPublicKeyInfo (DER).

    Source: RFC 5280 section 4.2.1.2, method 1.
    """
    if spki.startswith(_P256_HEAD):
        return hashlib.sha1(spki[len(_P256_HEAD) :], usedforsecurity=False).digest()
    start, _ = _content(spki, 0)
    algorithm, length = _content(spki, start)
    bits, _ = _content(spki, algorithm + length)
    return hashlib.sha1(spki[bits + 1 :], usedforsecurity=False).digest()


# Cached, because most certificates issued in the same second have the same validity.
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


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Find the content of the DER element at an offset. Returns (offset, length)."""
    first = der[at + 1]
    if first < _LONG_FORM:
        return at + 2, first
    start = at + 2 + (first & ~_LONG_FORM)
    return start, int.from_bytes(der[at + 2 : start], "big")


def new_serial() -> int:
    """Generate a serial of 159 bits: 47 bits of time (31 for seconds, 16 for the fraction), then 112 random bits.

    Because serials increase with time, inserts go to the end of the database index and touch few pages.
    """
    ticks = int(time.time() * _SERIALS_PER_SECOND) & _TIME_MASK
    return ticks << _RANDOM_SERIAL_BITS | int.from_bytes(os.urandom(_RANDOM_SERIAL_BITS // 8), "big")


NEEDS_GENERATED_KEY = (
    "csr: the cluster itself signs the certificates of this cluster, and signs only for keys that this service"
    " generates. Leave out the CSR. With the command line, give --service-key, or leave out --local-key."
)


def new_signing_request(
    grant: Grant,
    public_key: PublicKey,
    ca: ClientCA,
    *,
    takes_serial: bool,
    profile: LeafProfile = "own",
    private_key: PrivateKey | None = None,
) -> SigningRequest:
    """Create a request with a new credential number, which is also the serial if the signer uses a requested serial.

    Args:
        private_key: the leaf's key, which signs the CSR for a signer that needs one; `None` if the key is unknown.

    Raises InvalidRequest if the signer needs a CSR, but the private key is unknown.
    """
    serial = new_serial()
    number = credential_number(serial)
    if profile == "kubernetes" and private_key is None:
        raise InvalidRequest(NEEDS_GENERATED_KEY)
    return SigningRequest(
        grant=grant,
        public_key=public_key,
        ca=ca,
        credential_number=number,
        serial=serial if takes_serial else None,
        profile=profile,
        csr=_csr(grant, number, private_key) if profile == "kubernetes" and private_key else None,
    )


def _csr(grant: Grant, number: str, key: PrivateKey) -> bytes:
    """Sign a CSR for the subject of a leaf. Returns DER.

    The credential group comes first, because the admission policy in `kubernetes.setup.signer_access` finds it there.
    """
    groups = [credential_group(number), *grant.groups]
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(grant.username, tuple(groups)))
    return builder.sign(key, signature_digest(key)).public_bytes(Encoding.DER)


def serial_hex(serial: int) -> str:
    """Format a serial as lower-case hex with an even number of digits, at most 40, as OpenSSL does."""
    digits = f"{serial:x}"
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def der_fingerprint(der: bytes) -> bytes:
    """Return the SHA-256 of a certificate's DER.

    The certificate's credential id in kube-apiserver consists of `X509SHA256=` and this hash in hex.
    """
    return hashlib.sha256(der).digest()


def der_pem(der: bytes) -> bytes:
    """Encode a certificate's DER as a PEM block with 64 characters per line. Source: RFC 7468 section 2."""
    return ssl.DER_cert_to_PEM_cert(der).encode()


_CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)


def parse_reencoded_leaf(
    der: bytes, request: SigningRequest, subject_der: bytes
) -> tuple[int, bytes, tuple[str, ...]]:
    """Check that a leaf has all requested values. Returns (serial, signature, OIDs of the extensions in order).

    Compares values, not encodings. Raises SignerError, or InvalidSignature if the CA did not sign the leaf.
    """
    try:
        leaf = x509.load_der_x509_certificate(der)
        _check_fields(leaf, request, subject_der)
        order = tuple(extension.oid.dotted_string for extension in leaf.extensions)
        serial, signature = leaf.serial_number, leaf.signature
    except (SignerError, InvalidSignature):
        raise
    # The library raises undocumented exceptions, such as KeyError for an unknown TLS feature.
    except Exception as error:
        raise SignerError(
            "The certificate from the signer can't be parsed, or names another issuer."
        ) from error
    return serial, signature, order


def _common_extensions(key: PublicKey) -> dict[tuple[x509.ObjectIdentifier, bool], x509.ExtensionType]:
    """Return the extensions of all leaves for a key, by OID and criticality."""
    usage = key_usage(rsa_key=key_kind(type(key)) == "rsa")
    return {
        (_NOT_A_CA.oid, True): _NOT_A_CA,
        (usage.oid, True): usage,
        (_CLIENT_AUTH.oid, False): _CLIENT_AUTH,
    }


def _check_fields(leaf: x509.Certificate, request: SigningRequest, subject_der: bytes) -> None:
    grant, ca, key = request.grant, request.ca.ca_certificate, request.public_key
    expected = _common_extensions(key) | {
        (x509.AuthorityKeyIdentifier.oid, False): authority_key_identifier(ca),
        (x509.SubjectKeyIdentifier.oid, False): x509.SubjectKeyIdentifier.from_public_key(key),
    }
    found = {(extension.oid, extension.critical): extension.value for extension in leaf.extensions}
    validity = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    equal = {
        "key": spki_der(leaf.public_key()) == request.spki,
        "subject": leaf.subject.public_bytes() == subject_der,
        "version": leaf.version is x509.Version.v3,
        "validity": validity == (grant.not_before, grant.not_after),
        "extensions": found == expected,
    }
    if differing := [name for name, is_equal in equal.items() if not is_equal]:
        oids = sorted(oid.dotted_string for oid, _ in found.keys() ^ expected.keys())
        raise SignerError(
            f"The certificate from the signer differs from the request in: {', '.join([*differing, *oids])}."
        )
    leaf.verify_directly_issued_by(ca)


# The start of validity may differ from the requested start by this time: the clocks of the cluster and of this service
# differ, and the cluster back-dates the start by five minutes.
START_TOLERANCE = timedelta(minutes=5)
# More than a leaf has besides names and key: extensions, validity, serial, and the signature of an RSA key. The cluster
# chooses what it sends, and to compare 100 KB of names takes 30 ms.
_MOST_OTHER_BYTES = 2048


def has_kubernetes_subject(leaf: x509.Certificate, grant: Grant, number: str) -> bool:
    """Whether a leaf has the CN and exactly the groups of a grant, in any order and any grouping into RDNs.

    kube-controller-manager puts all Os into one RDN, which is a set that DER sorts.
    """
    found = sorted((attribute.oid.dotted_string, str(attribute.value)) for attribute in leaf.subject)
    expected = subject(grant, number)
    return found == sorted((attribute.oid.dotted_string, str(attribute.value)) for attribute in expected)


def _check_kubernetes_leaf(
    der: bytes, issuer: CaSubject, request: SigningRequest
) -> tuple[int, datetime, datetime]:
    """Check a leaf that the cluster has signed. Returns (serial, start of validity, end of validity).

    Raises SignerError, or InvalidSignature if the CA did not sign the leaf. The leaf may differ from the request in the
    order of groups and in a shorter validity, and has no subject key identifier.
    """
    expected = len(subject(request.grant, request.credential_number).public_bytes())
    if len(der) > expected + len(issuer.name_der) + len(request.spki) + _MOST_OTHER_BYTES:
        raise SignerError(f"The certificate from the cluster has {len(der)} bytes, far more than requested.")
    try:
        leaf = x509.load_der_x509_certificate(der)
        _check_kubernetes_fields(leaf, request)
        order = tuple(extension.oid.dotted_string for extension in leaf.extensions)
        serial, signature = leaf.serial_number, leaf.signature
        validity = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        subject_der = leaf.subject.public_bytes()
    except SignerError:
        raise
    # The library raises undocumented exceptions, such as KeyError for an unknown TLS feature.
    except Exception as error:
        raise SignerError("The certificate from the cluster can't be parsed.") from error
    # Everything that was compared is encoded again, so that the certificate can't have any other content.
    extensions, _ = _extensions(key_kind(type(request.public_key)) == "rsa", issuer.key_identifier, order)
    tbs = _element(
        _SEQUENCE,
        b"".join(
            (
                _VERSION_3,
                _element(_INTEGER, max(serial, 0).to_bytes(serial.bit_length() // 8 + 1, "big")),
                issuer.algorithm_der,
                issuer.name_der,
                _validity(*validity),
                subject_der,
                request.spki,
                extensions,
            )
        ),
    )
    issuer.key.verify(signature, leaf.tbs_certificate_bytes, *issuer.scheme)
    if der != encode_signed(tbs, issuer.algorithm_der, signature):
        raise SignerError(
            "The certificate from the cluster has a different encoding or more content than requested."
        )
    return serial, *validity


def _check_kubernetes_fields(leaf: x509.Certificate, request: SigningRequest) -> None:
    grant, ca, key = request.grant, request.ca.ca_certificate, request.public_key
    expected = _common_extensions(key)
    # Go copies the CA's subject key identifier if there is one, and adds no other authority key identifier.
    if _has_key_identifier(ca):
        expected[x509.AuthorityKeyIdentifier.oid, False] = authority_key_identifier(ca)
    found = {(extension.oid, extension.critical): extension.value for extension in leaf.extensions}
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    equal = {
        "key": spki_der(leaf.public_key()) == request.spki,
        "subject": has_kubernetes_subject(leaf, grant, request.credential_number),
        "version": leaf.version is x509.Version.v3,
        "extensions": found == expected,
    }
    if differing := [name for name, is_equal in equal.items() if not is_equal]:
        raise SignerError(
            f"The certificate from the cluster differs from the request in: {', '.join(differing)}."
        )
    if abs(start - grant.not_before) > START_TOLERANCE:
        raise SignerError(
            f"The certificate from the cluster begins at {start:%H:%M:%S} UTC instead of about"
            f" {grant.not_before:%H:%M:%S} UTC. Set the clocks of the cluster and of this service."
        )
    if end > grant.not_after:
        raise SignerError(
            "The certificate from the cluster is valid for longer than requested: the cluster's clock is ahead, or"
            " signing"
            " took too long. Set the clocks of the cluster and of this service."
        )
    if end <= start:
        raise SignerError("The certificate from the cluster ends before it begins.")


def leaf_profile(leaf: x509.Certificate) -> LeafProfile:
    """Return the profile of a leaf. Only leaves that this service encodes have a subject key identifier."""
    return "own" if _has_key_identifier(leaf) else "kubernetes"


def _has_key_identifier(certificate: x509.Certificate) -> bool:
    return any(extension.oid == x509.SubjectKeyIdentifier.oid for extension in certificate.extensions)
