"""X.509: keys, CSRs, the one builder of leaves and client CAs, the check of a leaf, PEM and fingerprints.

Nothing here knows of callers, policies or storage.

Source: RFC 5280; the profile is ARCHITECTURE section 7, in `docs/security-model.md` for operators.
"""

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clustercert.errors import InvalidRequest, SignerError
from clustercert.model import Grant, KeyType, PrivateKey, PublicKey, SigningRequest
from clustercert.tbs import ALGORITHM_DER, leaf_extensions, leaf_tbs, signed

# RFC 5280 appendix A: ub-common-name and ub-organization-name, here in bytes of UTF-8, as many verifiers count them.
MAX_NAME = 64
MAX_CSR_BYTES = 16 * 1024
# RFC 5280 4.1.2.2: at most 20 octets, positive.
MAX_SERIAL_BITS = 159
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
MIN_RSA_EXPONENT = 65537
P384_BITS = 384

_CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
# What reading a certificate that somebody else made may raise.
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)

_NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)


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
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa-{key.key_size}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    return {"secp256r1": "ec-p256", "secp384r1": "ec-p384"}.get(key.curve.name, key.curve.name)


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
        accepted = _accepted_key(key)
        proved = csr.is_signature_valid
    except _UNREADABLE as error:
        raise InvalidRequest("csr: this is not a certificate request that can be read.") from error
    if not proved:
        raise InvalidRequest("csr: its signature does not match its public key; make it anew.")
    return accepted


def _accepted_key(key: object) -> PublicKey:
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


# Keys are instances of classes that only register with these abstract ones: asking each time takes a microsecond.
@functools.cache
def _is_rsa(key_class: type[PublicKey]) -> bool:
    return issubclass(key_class, rsa.RSAPublicKey)


def subject(grant: Grant) -> x509.Name:
    """The subject of a leaf: one O for each group, in order, then CN.

    kube-apiserver takes the username from CN and the groups from O.
    """
    return _subject(grant.username, grant.groups)


@functools.lru_cache(maxsize=4096)
def _subject(username: str, groups: tuple[str, ...]) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, username)])


def _key_usage(*, rsa_key: bool = False, ca: bool = False) -> x509.KeyUsage:
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


_LEAF_USAGE = {False: _key_usage(), True: _key_usage(rsa_key=True)}


class LeafBuilder:
    """Builds and signs leaves for one CA; what is the same for all of them is prepared once."""

    def __init__(self, ca: x509.Certificate, ca_key: PrivateKey) -> None:
        self._ca_key = ca_key
        self._digest = _digest_for(ca_key)
        self._base = {
            rsa_key: x509.CertificateBuilder()
            .issuer_name(ca.subject)
            .add_extension(_NOT_A_CA, critical=True)
            .add_extension(usage, critical=True)
            .add_extension(_CLIENT_AUTH, critical=False)
            .add_extension(_authority_key_identifier(ca), critical=False)
            for rsa_key, usage in _LEAF_USAGE.items()
        }

    def build(self, request: SigningRequest) -> x509.Certificate:
        """A signed leaf with a new random serial of 159 bits."""
        grant = request.grant
        return (
            self._base[_is_rsa(type(request.public_key))]
            .subject_name(subject(grant))
            .public_key(request.public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(grant.not_before)
            .not_valid_after(grant.not_after)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key), critical=False)
            .sign(self._ca_key, self._digest)
        )


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
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(ca_key, _digest_for(ca_key))
    )


def new_server_certificate(
    key: PrivateKey, names: list[str], not_before: datetime, lifetime: timedelta
) -> tuple[x509.Certificate, x509.Certificate]:
    """(leaf, CA) for this service's own TLS: host names and IP addresses, and a CA whose key is forgotten at once."""
    ca_key = new_key("ec-p256")
    ca = new_client_ca(f"clustercert TLS {os.urandom(4).hex()}", ca_key, not_before, lifetime)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clustercert")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + lifetime)
        .add_extension(_NOT_A_CA, critical=True)
        .add_extension(_LEAF_USAGE[False], critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(_authority_key_identifier(ca), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(ca_key, _digest_for(ca_key))
    )
    return leaf, ca


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def check_leaf(chain: tuple[x509.Certificate, ...], request: SigningRequest) -> None:
    """Compare what a signer answered with what it was asked for, whoever the signer is.

    Raises SignerError naming the first thing that differs.
    """
    # The leaf's issuer is what the API server trusts, so nothing belongs between or behind them.
    if len(chain) != 1:
        raise SignerError(f"The signer answered with {len(chain)} certificates instead of one.")
    leaf, issuer = chain[0], _issuer(request.ca.certificate)
    try:
        _check_content(leaf, issuer, request)
        issuer.verify(leaf)
    except InvalidSignature as error:
        raise SignerError("The certificate does not verify against the cluster's client CA.") from error
    except _UNREADABLE as error:
        raise SignerError("The signer's certificate can't be read, or names another issuer.") from error
    if not 0 < leaf.serial_number < 1 << MAX_SERIAL_BITS:
        raise SignerError("The serial of the signer's certificate is not positive and of at most 20 octets.")
    if request.grant.not_after > issuer.not_after:
        raise SignerError("The certificate would outlive its CA.")


def _check_content(leaf: x509.Certificate, issuer: "_Issuer", request: SigningRequest) -> None:
    """Byte for byte what we encode ourselves; only serial, signature and the order of extensions are the signer's."""
    der, grant, spki = certificate_der(leaf), request.grant, spki_der(request.public_key)
    extensions = leaf_extensions(
        rsa_key=_is_rsa(type(request.public_key)),
        authority_key_identifier=issuer.key_identifier,
        spki=spki,
    )

    def expected(ordered: Iterable[bytes]) -> bytes:
        tbs = leaf_tbs(
            serial=max(leaf.serial_number, 0),
            signature_algorithm=issuer.algorithm_der,
            issuer=issuer.name_der,
            subject=subject(grant).public_bytes(),
            not_before=grant.not_before,
            not_after=grant.not_after,
            spki=spki,
            extensions=ordered,
        )
        return signed(tbs, issuer.algorithm_der, leaf.signature)

    if der != expected(extensions.values()):
        _check_fields(leaf, request)
        if der != expected(extensions[each.oid.dotted_string] for each in leaf.extensions):
            raise SignerError(
                "The signer's certificate is encoded otherwise than asked for, or has something more."
            )


def _check_fields(leaf: x509.Certificate, request: SigningRequest) -> None:
    """Say which field of a leaf is not as asked, if it is one that can be named. Raises SignerError."""
    grant = request.grant
    if spki_der(leaf.public_key()) != spki_der(request.public_key):
        raise SignerError("The signer certified another key.")
    if leaf.subject.public_bytes() != subject(grant).public_bytes():
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
    usage = _LEAF_USAGE[_is_rsa(type(request.public_key))]
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(request.public_key)
    return {
        (_NOT_A_CA.oid, True): _NOT_A_CA,
        (usage.oid, True): usage,
        (_CLIENT_AUTH.oid, False): _CLIENT_AUTH,
        (x509.AuthorityKeyIdentifier.oid, False): _authority_key_identifier(request.ca.certificate),
        (x509.SubjectKeyIdentifier.oid, False): key_identifier,
    }


@dataclass(frozen=True, slots=True)
class _Issuer:
    """What a CA contributes to each of its leaves.

    Attributes:
        name_der: its subject, DER.
        algorithm_der: the AlgorithmIdentifier of its signatures, DER.
    """

    name_der: bytes
    key: PublicKey
    algorithm_der: bytes
    key_identifier: bytes
    not_after: datetime

    def verify(self, leaf: x509.Certificate) -> None:
        """Raises InvalidSignature unless this issuer's key signed the leaf."""
        signature, content, digest = leaf.signature, leaf.tbs_certificate_bytes, _digest_for(self.key)
        if isinstance(self.key, ed25519.Ed25519PublicKey) or digest is None:
            self.key.verify(signature, content)  # type: ignore[call-arg] # no digest: Ed25519
        elif isinstance(self.key, rsa.RSAPublicKey):
            self.key.verify(signature, content, padding.PKCS1v15(), digest)
        else:
            self.key.verify(signature, content, ec.ECDSA(digest))


@functools.lru_cache(maxsize=4096)
def _issuer(ca: x509.Certificate) -> _Issuer:
    key = _accepted_key(ca.public_key())
    return _Issuer(
        name_der=ca.subject.public_bytes(),
        key=key,
        algorithm_der=ALGORITHM_DER["rsa" if _is_rsa(type(key)) else key_type_of(key)],
        key_identifier=_authority_key_identifier(ca).key_identifier or b"",
        not_after=ca.not_valid_after_utc,
    )


@functools.lru_cache(maxsize=4096)
def _authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """AKI from the CA's own SKI: a foreign CA may have made it in another way than we do."""
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(_accepted_key(ca.public_key()))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _digest_for(key: PrivateKey | PublicKey) -> hashes.SHA256 | hashes.SHA384 | None:
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
    return certificate.fingerprint(hashes.SHA256())


def serial_hex(certificate: x509.Certificate) -> str:
    """The serial in lower-case hex, an even number of digits as OpenSSL prints it."""
    digits = f"{certificate.serial_number:x}"
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def chain_pem(chain: tuple[x509.Certificate, ...]) -> bytes:
    """PEM blocks, leaf first."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


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


def certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, in its order. Raises InvalidRequest where there are none or one is broken."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise InvalidRequest("This is not a PEM file of certificates.") from error


def certificate_der(certificate: x509.Certificate) -> bytes:
    """The DER of a certificate."""
    return certificate.public_bytes(Encoding.DER)
