"""X.509: the one builder of leaves and client CAs, the check of a leaf, PEM and fingerprints.

Nothing here knows of callers, policies or storage.

Source: RFC 5280; the profile is ARCHITECTURE section 7, in `docs/security-model.md` for operators.
"""

import functools
import hashlib
import os
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clustercert.errors import InvalidRequest, SignerError
from clustercert.keypair import accepted_key, is_rsa, key_type_of, spki_der
from clustercert.model import (
    ClientCA,
    Grant,
    PrivateKey,
    PublicKey,
    SigningRequest,
    credential_group,
    credential_number,
)
from clustercert.tbs import (
    ALGORITHM_DER,
    SubjectTemplate,
    content,
    leaf_extensions,
    leaf_tbs,
    serial_and_signature,
    signed,
)

# RFC 5280 appendix A: ub-common-name and ub-organization-name, here in bytes of UTF-8, as many verifiers count them.
MAX_NAME = 64
# RFC 5280 4.1.2.2: at most 20 octets, positive.
MAX_SERIAL_BITS = 159
_RANDOM_SERIAL_BITS = 112
_SERIALS_A_SECOND = 1 << 16
_LATER_SERIALS = (1 << MAX_SERIAL_BITS - _RANDOM_SERIAL_BITS) - 1
P384_BITS = 384

_CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)


def subject(grant: Grant, credential_number: str | None = None) -> x509.Name:
    """The subject of a leaf: one O for each group, in order, one for the credential group if there is one, then CN.

    kube-apiserver takes the username from CN and the groups from O.
    """
    if credential_number is None:
        return _subject(grant.username, grant.groups)
    return _subject(grant.username, (*grant.groups, credential_group(credential_number)))


def _subject(username: str, groups: tuple[str, ...]) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, username)])


# Stands in for the number of each certificate, and is as long.
_ANY_NUMBER = credential_number(0)


@functools.lru_cache(maxsize=4096)
def _subject_template(username: str, groups: tuple[str, ...], *, numbered: bool) -> SubjectTemplate:
    if not numbered:
        return SubjectTemplate(_subject(username, groups).public_bytes())
    whole = _subject(username, (*groups, credential_group(_ANY_NUMBER))).public_bytes()
    # The credential group is the last O, so its number ends where the CN begins.
    common_name = content(_subject(username, ()).public_bytes())
    return SubjectTemplate(whole[: -len(common_name) - len(_ANY_NUMBER)], common_name)


def key_usage(*, rsa_key: bool = False, ca: bool = False) -> x509.KeyUsage:
    """Of a leaf, also of a server, or of a CA."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=rsa_key,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


_LEAF_USAGE = {False: key_usage(), True: key_usage(rsa_key=True)}


class LeafBuilder:
    """Builds and signs leaves for one CA."""

    def __init__(self, ca: x509.Certificate, ca_key: PrivateKey) -> None:
        self._ca_key = ca_key
        self._scheme = _scheme(ca_key)
        self._issuer = _issuer(ca)

    def build(self, request: SigningRequest) -> bytes:
        """A signed leaf in DER, with a new serial where the request has none."""
        serial = request.serial if request.serial is not None else new_serial()
        tbs = _expected_tbs(request, self._issuer, serial)
        signature = self._ca_key.sign(tbs, *self._scheme)
        return signed(tbs, self._issuer.algorithm_der, signature)


def _scheme(key: PrivateKey | PublicKey) -> tuple[Any, ...]:
    """What a key's `sign` and `verify` take beside the content: padding and digest, as far as its kind has them."""
    digest = digest_for(key)
    if digest is None:
        return ()
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return padding.PKCS1v15(), digest
    return (ec.ECDSA(digest),)


def new_client_ca(
    common_name: str, ca_key: PrivateKey, not_before: datetime, lifetime: timedelta
) -> x509.Certificate:
    """A self-signed CA that may sign leaves and CRLs and nothing below it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(ca_key, digest_for(ca_key))
    )


class CheckedLeaf(NamedTuple):
    """A leaf that is what was asked for.

    Attributes:
        der: all of it.
        serial: positive, of at most 159 bits.
    """

    der: bytes
    serial: int


def check_leaf(chain: tuple[bytes, ...], request: SigningRequest) -> CheckedLeaf:
    """Compare what a signer answered with what it was asked for, whoever the signer is and whatever it answers.

    The chain is DER. Raises SignerError naming the first thing that differs; no answer raises anything else.
    """
    der, issuer = _only(chain), _issuer(request.ca.certificate)
    try:
        serial, signature, tbs = _read(der, issuer, request)
        issuer.verify(signature, tbs)
    except InvalidSignature as error:
        raise SignerError("The certificate does not verify against the cluster's client CA.") from error
    if request.serial not in (None, serial):
        raise SignerError("The signer gave the certificate another serial.")
    if not 0 < serial < 1 << MAX_SERIAL_BITS:
        raise SignerError("The serial of the signer's certificate is not positive and of at most 20 octets.")
    if request.grant.not_after > issuer.not_after:
        raise SignerError("The certificate would outlive its CA.")
    return CheckedLeaf(der, serial)


def _only(chain: tuple[bytes, ...]) -> bytes:
    """The only certificate of a chain. Raises SignerError."""
    # A signer is somebody else's program, whose types nobody checked; bytes that can change are none to check.
    if type(chain) is not tuple:
        raise SignerError(f"The signer answered with {type(chain).__name__} instead of a tuple.")
    # The leaf's issuer is what the API server trusts, so nothing belongs between or behind them.
    if len(chain) != 1:
        raise SignerError(f"The signer answered with {len(chain)} certificates instead of one.")
    if type(chain[0]) is not bytes:
        raise SignerError(f"The signer answered with {type(chain[0]).__name__} instead of DER in bytes.")
    return chain[0]


def _read(der: bytes, issuer: "_Issuer", request: SigningRequest) -> tuple[int, bytes, bytes]:
    """(serial, signature, what the signer signed) of a leaf that is byte for byte what we encode of the request.

    The signer chooses the serial, the signature and the order of the extensions. Raises SignerError, or
    InvalidSignature where that was looked at already.
    """
    try:
        serial, signature = serial_and_signature(der)
    except ValueError:
        pass  # the library may have a word for what these bytes are
    else:
        tbs = _expected_tbs(request, issuer, serial)
        if der == signed(tbs, issuer.algorithm_der, signature):
            return serial, signature, tbs
    return _read_by_the_library(der, issuer, request)


def _read_by_the_library(der: bytes, issuer: "_Issuer", request: SigningRequest) -> tuple[int, bytes, bytes]:
    """As `_read`, of bytes that are not those we encode: if it isn't the order of the extensions, say what differs."""
    try:
        leaf = x509.load_der_x509_certificate(der)
        _check_fields(leaf, request)
        order = [each.oid.dotted_string for each in leaf.extensions]
        serial, signature = leaf.serial_number, leaf.signature
    except (SignerError, InvalidSignature):
        raise
    # What the library raises is no closed set (KeyError, say, for a TLS feature that it doesn't know), and each of it
    # means that this isn't what was asked for.
    except Exception as error:
        raise SignerError("The signer's certificate can't be read, or names another issuer.") from error
    tbs = _expected_tbs(request, issuer, max(serial, 0), order)
    if der != signed(tbs, issuer.algorithm_der, signature):
        raise SignerError(
            "The signer's certificate is encoded otherwise than asked for, or has something more."
        )
    return serial, signature, tbs


def _expected_tbs(
    request: SigningRequest, issuer: "_Issuer", serial: int, order: Iterable[str] | None = None
) -> bytes:
    """What is to be signed, its extensions in our order or, by OID, in another."""
    grant, spki = request.grant, request.spki
    return leaf_tbs(
        serial=serial,
        signature_algorithm=issuer.algorithm_der,
        issuer=issuer.name_der,
        subject=_subject_template(
            grant.username, grant.groups, numbered=request.credential_number is not None
        ),
        credential_number=request.credential_number,
        not_before=grant.not_before,
        not_after=grant.not_after,
        spki=spki,
        extensions=leaf_extensions(
            rsa_key=is_rsa(type(request.public_key)),
            authority_key_identifier=issuer.key_identifier,
            spki=spki,
            order=order,
        ),
    )


def _check_fields(leaf: x509.Certificate, request: SigningRequest) -> None:
    """Say which field of a leaf is not as asked, if it is one that can be named. Raises SignerError."""
    grant = request.grant
    if spki_der(leaf.public_key()) != request.spki:
        raise SignerError("The signer certified another key.")
    if leaf.subject.public_bytes() != subject(grant, request.credential_number).public_bytes():
        raise SignerError("The signer certified another subject.")
    if leaf.version is not x509.Version.v3:
        raise SignerError("The signer's certificate is not version 3.")
    if (leaf.not_valid_before_utc, leaf.not_valid_after_utc) != (grant.not_before, grant.not_after):
        raise SignerError("The signer certified another validity.")
    expected = _expected_extensions(request)
    found = {(ext.oid, ext.critical): ext.value for ext in leaf.extensions}
    if found != expected:
        names = sorted(oid.dotted_string for oid, _ in found.keys() ^ expected.keys())
        raise SignerError(
            f"The signer's certificate has other extensions than asked for: {names or 'values'}."
        )
    leaf.verify_directly_issued_by(request.ca.certificate)


def _expected_extensions(
    request: SigningRequest,
) -> dict[tuple[x509.ObjectIdentifier, bool], x509.ExtensionType]:
    usage = _LEAF_USAGE[is_rsa(type(request.public_key))]
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(request.public_key)
    return {
        (_NOT_A_CA.oid, True): _NOT_A_CA,
        (usage.oid, True): usage,
        (_CLIENT_AUTH.oid, False): _CLIENT_AUTH,
        (x509.AuthorityKeyIdentifier.oid, False): authority_key_identifier(request.ca.certificate),
        (x509.SubjectKeyIdentifier.oid, False): key_identifier,
    }


@dataclass(frozen=True, slots=True)
class _Issuer:
    """What a CA contributes to each of its leaves.

    Attributes:
        name_der: its subject, DER.
        scheme: of its signatures, as `_scheme` has it.
        algorithm_der: the AlgorithmIdentifier of its signatures, DER.
    """

    name_der: bytes
    key: PublicKey
    scheme: tuple[Any, ...]
    algorithm_der: bytes
    key_identifier: bytes
    not_after: datetime

    def verify(self, signature: bytes, content: bytes) -> None:
        """Raises InvalidSignature unless this issuer's key signed the content."""
        self.key.verify(signature, content, *self.scheme)


@functools.lru_cache(maxsize=4096)
def _issuer(ca: x509.Certificate) -> _Issuer:
    key = accepted_key(ca.public_key())
    return _Issuer(
        name_der=ca.subject.public_bytes(),
        key=key,
        scheme=_scheme(key),
        algorithm_der=ALGORITHM_DER["rsa" if is_rsa(type(key)) else key_type_of(key)],
        key_identifier=authority_key_identifier(ca).key_identifier or b"",
        not_after=ca.not_valid_after_utc,
    )


@functools.lru_cache(maxsize=4096)
def authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """AKI from the CA's own SKI: a foreign CA may have made it in another way than we do."""
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(accepted_key(ca.public_key()))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def digest_for(key: PrivateKey | PublicKey) -> hashes.SHA256 | hashes.SHA384 | None:
    # RFC 8032: Ed25519 hashes by itself.
    if isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        return None
    if (
        isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey)
        and key.curve.key_size == P384_BITS
    ):
        return hashes.SHA384()
    return hashes.SHA256()


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER, 32 bytes; kube-apiserver's credential id is `X509SHA256=` and its lower-case hex."""
    return der_fingerprint(certificate_der(certificate))


def der_fingerprint(der: bytes) -> bytes:
    """`fingerprint` of a certificate in DER."""
    return hashlib.sha256(der).digest()


def new_serial() -> int:
    """A serial of 159 bits: 47 of the time, 31 of them for the seconds, then 112 random ones.

    An index of serials that begin at random is written all over; one of these grows at its end, where a second's
    certificates, in no order, would be on dozens of pages.
    """
    later = int(time.time() * _SERIALS_A_SECOND) & _LATER_SERIALS
    return later << _RANDOM_SERIAL_BITS | int.from_bytes(os.urandom(_RANDOM_SERIAL_BITS // 8), "big")


def new_signing_request(
    grant: Grant, public_key: PublicKey, ca: ClientCA, *, takes_serial: bool
) -> SigningRequest:
    """What a signer is asked to certify, with a new credential number: the serial, where the signer takes ours."""
    serial = new_serial()
    return SigningRequest(
        grant=grant,
        public_key=public_key,
        ca=ca,
        credential_number=credential_number(serial),
        serial=serial if takes_serial else None,
    )


def serial_hex(certificate: x509.Certificate) -> str:
    """The serial in lower-case hex, an even number of digits as OpenSSL prints it."""
    return serial_text(certificate.serial_number)


def serial_text(serial: int) -> str:
    """A serial in lower-case hex, an even number of digits, at most 40."""
    digits = f"{serial:x}"
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def chain_pem(chain: tuple[x509.Certificate, ...]) -> bytes:
    """PEM blocks, leaf first."""
    return b"".join(der_pem(certificate_der(certificate)) for certificate in chain)


def der_pem(der: bytes) -> bytes:
    """A certificate's DER as a PEM block. Source: RFC 7468 section 2, 64 characters a line."""
    return ssl.DER_cert_to_PEM_cert(der).encode()


def certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, in its order. Raises InvalidRequest where there are none or one is broken."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise InvalidRequest("This is not a PEM file of certificates.") from error


def certificate_der(certificate: x509.Certificate) -> bytes:
    """The DER of a certificate."""
    return certificate.public_bytes(Encoding.DER)
