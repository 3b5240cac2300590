"""Certificate revocation lists: the one builder of them. Pure.

kube-apiserver doesn't read any; they are for other verifiers of the same certificates.

Source: RFC 5280 section 5.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.certificate import authority_key_identifier, digest_for
from clustercert.model import PrivateKey, RevocationReason

# RFC 5280 5.3.1: unspecified should be said by leaving the extension out.
_REASONS: dict[RevocationReason, x509.ReasonFlags] = {
    "keyCompromise": x509.ReasonFlags.key_compromise,
    "affiliationChanged": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessationOfOperation": x509.ReasonFlags.cessation_of_operation,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A revoked certificate.

    Attributes:
        serial: lower-case hex.
    """

    serial: str
    revoked_at: datetime
    reason: RevocationReason


def new_crl(
    ca: x509.Certificate,
    ca_key: PrivateKey,
    entries: Iterable[Entry],
    *,
    number: int,
    this_update: datetime,
    next_update: datetime,
) -> bytes:
    """A signed, complete CRL of version 2, DER. The number must be greater in each newer one, of at most 20 octets."""
    # All entries at once: adding them one by one copies the list each time.
    builder = x509.CertificateRevocationListBuilder(
        revoked_certificates=[_revoked(entry) for entry in entries]
    )
    return (
        builder.issuer_name(ca.subject)
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(authority_key_identifier(ca), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
        .sign(ca_key, digest_for(ca_key))
        .public_bytes(Encoding.DER)
    )


def crl_pem(der: bytes) -> bytes:
    """The same in PEM."""
    return x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)


def _revoked(entry: Entry) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(int(entry.serial, 16))
        .revocation_date(entry.revoked_at)
    )
    if reason := _REASONS.get(entry.reason):
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()
