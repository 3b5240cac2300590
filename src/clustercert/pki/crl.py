"""Builds and checks certificate revocation lists. Pure functions.

Source: RFC 5280 section 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.model import PrivateKey, RevocationReason
from clustercert.model.errors import SignerError
from clustercert.pki.client_ca import authority_key_identifier, signature_digest
from clustercert.pki.keys import PARSE_ERRORS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes


@dataclass(frozen=True, slots=True)
class CrlEntry:
    """A revoked certificate. The serial is lower-case hex."""

    serial: str
    revoked_at: datetime
    reason: RevocationReason


@dataclass(frozen=True, slots=True)
class CrlContent:
    """The content of a CRL. `number` has at most 20 octets, and increases with each CRL from the same CA."""

    entries: Sequence[CrlEntry]
    number: int
    this_update: datetime
    next_update: datetime


def new_crl(ca: x509.Certificate, ca_key: PrivateKey, content: CrlContent) -> bytes:
    """Build and sign a complete version 2 CRL. Returns DER."""
    # Pass the whole list at once, because `add_revoked_certificate` copies the list for each entry.
    builder = x509.CertificateRevocationListBuilder(
        revoked_certificates=[_revoked_certificate(entry) for entry in content.entries]
    )
    return (
        builder.issuer_name(ca.subject)
        .last_update(content.this_update)
        .next_update(content.next_update)
        .add_extension(authority_key_identifier(ca), critical=False)
        .add_extension(x509.CRLNumber(content.number), critical=False)
        .sign(ca_key, signature_digest(ca_key))
        .public_bytes(Encoding.DER)
    )


def check_crl(der: bytes, ca: x509.Certificate, content: CrlContent) -> None:
    """Raise SignerError if a signer's CRL lacks the CA's signature, or differs from the requested content."""
    try:
        crl = x509.load_der_x509_crl(der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        is_signed = crl.is_signature_valid(cast("CertificateIssuerPublicKeyTypes", ca.public_key()))
        serials = {revoked.serial_number for revoked in crl}
    except (*PARSE_ERRORS, x509.ExtensionNotFound) as error:
        raise SignerError("The signer returned a malformed CRL.") from error
    times = crl.last_update_utc, crl.next_update_utc
    if (
        not is_signed
        or crl.issuer != ca.subject
        or number != content.number
        or times != (content.this_update, content.next_update)
        or serials != {int(entry.serial, 16) for entry in content.entries}
    ):
        raise SignerError("The signer returned a CRL that differs from the request.")


def crl_pem(der: bytes) -> bytes:
    """Convert a CRL from DER to PEM."""
    return x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)


def _revoked_certificate(entry: CrlEntry) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(int(entry.serial, 16))
        .revocation_date(entry.revoked_at)
    )
    # RFC 5280 section 5.3.1: the extension should be absent for `unspecified`.
    if entry.reason != "unspecified":
        builder = builder.add_extension(x509.CRLReason(x509.ReasonFlags(entry.reason)), critical=False)
    return builder.build()
