"""CertificateSigningRequests: kube-apiserver's checks, and the signing controller of kube-controller-manager.

Measured on 1.32 and 1.36: the order of groups, the validity, the extensions, and the messages.
"""

import base64
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from support.apiserver import kinds
from support.apiserver.failures import Failure, invalid
from support.apiserver.identity import MASTERS, Identity
from support.apiserver.storage import Document, Storage
from support.asn1 import BIT_STRING, INTEGER, SEQUENCE, der
from support.certificate_authority import Authority

SIGNER = "kubernetes.io/kube-apiserver-client"
BACKDATE, SHORT = timedelta(minutes=5), timedelta(hours=8)
SHORTEST_SECONDS = 600

_SET, _OID, _BOOLEAN, _OCTETS, _UTF8, _PRINTABLE, _UTC_TIME = 0x31, 0x06, 0x01, 0x04, 0x0C, 0x13, 0x17
_IN_PRINTABLE_STRINGS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?"
)
_USAGES = {"digital signature": 0x80, "signing": 0x80, "key encipherment": 0x20}
_CLIENT_AUTH = der(SEQUENCE, der(_OID, bytes.fromhex("2b06010505070302")))


@dataclass
class Signing:
    """The signing controller.

    Attributes:
        authority: the CA of `--cluster-signing-cert-file`.
        duration: `--cluster-signing-duration`.
        signs: whether there is a controller for this signer.
        change: replaces what the controller signs, for clusters that misbehave.
    """

    storage: Storage
    authority: Authority
    now: Callable[[], datetime]
    duration: timedelta = timedelta(days=365)
    signs: bool = True
    change: Callable[[bytes], bytes] = field(default=lambda leaf: leaf)

    def created(self, who: Identity, document: Document) -> Document:
        """What is stored for a new request. Raises Failure (403, 422)."""
        spec, name = document["spec"], document["metadata"].get("name") or ""
        csr = _parsed(name, spec)
        seconds = spec.get("expirationSeconds")
        if seconds is not None and seconds < SHORTEST_SECONDS:
            said = f"spec.expirationSeconds: Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            raise invalid("CertificateSigningRequest", name, said)
        if not spec.get("usages"):
            raise invalid("CertificateSigningRequest", name, "spec.usages: Required value")
        if spec["signerName"] == SIGNER and MASTERS in _values(csr, NameOID.ORGANIZATION_NAME):
            said = f"use of {SIGNER} signer with {MASTERS} group is not allowed"
            raise Failure(
                403, "Forbidden", f'{kinds.CERTIFICATE_REQUESTS.qualified} "{name}" is forbidden: {said}'
            )
        requester = {
            "username": who.username,
            "groups": [*who.groups],
            "extra": {key: [*values] for key, values in who.extra.items()},
        }
        if who.username.startswith("system:serviceaccount:"):
            _, _, namespace, account = who.username.split(":")
            requester["uid"] = self.storage.get(kinds.SERVICE_ACCOUNTS, namespace, account)["metadata"]["uid"]
        return {**document, "spec": {**spec, **requester}, "status": {}}

    def sign(self, name: str) -> None:
        """Do what the controller does when it sees a change."""
        stored = self.storage.get(kinds.CERTIFICATE_REQUESTS, "", name)
        spec, status = stored["spec"], stored.get("status") or {}
        types = {each["type"] for each in status.get("conditions") or ()}
        if not self.signs or spec["signerName"] != SIGNER or types != {"Approved"} or "certificate" in status:
            return
        if problem := _problem(spec["usages"]):
            failed = {
                "type": "Failed",
                "status": "True",
                "reason": "SignerValidationFailure",
                "message": problem,
            }
            status = {**status, "conditions": [*status["conditions"], failed]}
        else:
            leaf = self.change(self._signed(_parsed(name, spec), spec))
            pem = x509.load_der_x509_certificate(leaf).public_bytes(Encoding.PEM)
            status = {**status, "certificate": base64.b64encode(pem).decode()}
        self.storage.replace(kinds.CERTIFICATE_REQUESTS, "", name, lambda old: {**old, "status": status})

    def _signed(self, csr: x509.CertificateSigningRequest, spec: Document) -> bytes:
        wanted = timedelta(seconds=spec.get("expirationSeconds") or self.duration.total_seconds())
        ca, ca_key = self.authority.certificate, self.authority.key
        return signed_leaf(csr, spec["usages"], ca, ca_key, self.now(), min(wanted, self.duration))


def signed_leaf(
    csr: x509.CertificateSigningRequest,
    usages: Sequence[str],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    at: datetime,
    lifetime: timedelta,
) -> bytes:
    """The certificate in Go's encoding, DER. The CA's key is on the curve P-256."""
    now = at.astimezone(UTC).replace(microsecond=0)
    end = min(now + lifetime - (timedelta() if lifetime < SHORT else BACKDATE), ca.not_valid_after_utc)
    organizations = sorted(_attribute("55040a", each) for each in _values(csr, NameOID.ORGANIZATION_NAME))
    rdns = [der(_SET, *organizations)] if organizations else []
    [common_name] = _values(csr, NameOID.COMMON_NAME)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    tbs = der(
        SEQUENCE,
        bytes.fromhex("a003020102"),
        # Go writes 128 random bits; the first of these octets is not zero and not negative.
        der(INTEGER, b"\x40" + secrets.token_bytes(15)),
        algorithm,
        ca.subject.public_bytes(),
        der(SEQUENCE, _time(now - BACKDATE), _time(end)),
        der(SEQUENCE, *rdns, der(_SET, _attribute("550403", common_name))),
        csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der(0xA3, der(SEQUENCE, *_extensions(csr, usages, ca))),
    )
    signature = ca_key.sign(tbs, ec.ECDSA(SHA256()))
    return der(SEQUENCE, tbs, algorithm, der(BIT_STRING, b"\0" + signature))


def _extensions(
    csr: x509.CertificateSigningRequest, usages: Sequence[str], ca: x509.Certificate
) -> Sequence[bytes]:
    """Key usage if asked, extended key usage, basic constraints, authority key identifier, and the CSR's SANs."""
    bits = 0
    for each in usages:
        bits |= _USAGES.get(each, 0)
    found = []
    if bits:
        unused = (bits & -bits).bit_length() - 1
        found.append(_extension("551d0f", der(BIT_STRING, bytes([unused, bits])), critical=True))
    found.append(_extension("551d25", _CLIENT_AUTH))
    found.append(_extension("551d13", der(SEQUENCE), critical=True))
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    found.append(_extension("551d23", der(SEQUENCE, der(0x80, identifier))))
    names = [each.value for each in csr.extensions if isinstance(each.value, x509.SubjectAlternativeName)]
    return [*found, *(_extension("551d11", each.public_bytes()) for each in names)]


def _extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    flag = der(_BOOLEAN, b"\xff") if critical else b""
    return der(SEQUENCE, der(_OID, bytes.fromhex(oid)), flag, der(_OCTETS, value))


def _attribute(oid: str, text: str) -> bytes:
    tag = _PRINTABLE if set(text) <= _IN_PRINTABLE_STRINGS else _UTF8
    return der(SEQUENCE, der(_OID, bytes.fromhex(oid)), der(tag, text.encode()))


def _time(at: datetime) -> bytes:
    assert at.year < 2050
    return der(_UTC_TIME, f"{at:%y%m%d%H%M%SZ}".encode())


def _values(csr: x509.CertificateSigningRequest, oid: x509.ObjectIdentifier) -> Sequence[str]:
    return [str(each.value) for each in csr.subject.get_attributes_for_oid(oid)]


def _parsed(name: str, spec: Document) -> x509.CertificateSigningRequest:
    try:
        csr = x509.load_pem_x509_csr(base64.b64decode(spec["request"], validate=True))
        if not csr.is_signature_valid:
            raise InvalidSignature
    except (ValueError, InvalidSignature) as error:
        raise invalid("CertificateSigningRequest", name, "spec.request: Invalid value") from error
    return csr


def _problem(usages: Sequence[str]) -> str | None:
    for each in usages:
        if each not in {"client auth", "digital signature", "key encipherment"}:
            return f"invalid usage for client certificate: {each}"
    return None if "client auth" in usages else "missing required usage for client certificate: client auth"
