"""Checks a stored certificate against its row, its CA and the policy's limits."""

import functools
from datetime import datetime, timedelta

from cryptography import x509

from clustercert.model import (
    CertificateRecord,
    ClientCA,
    Grant,
    SigningRequest,
    number_of,
    without_credential_group,
)
from clustercert.model.errors import ClustercertError, SignerError
from clustercert.pki.certificates import fingerprint
from clustercert.pki.key_validation import PARSE_ERRORS, accepted_key
from clustercert.pki.keys import key_type_of
from clustercert.pki.leaf import check_leaf, serial_hex
from clustercert.pki.subject import subject
from clustercert.policy.decision import Policy
from clustercert.policy.lifetime import BACKDATE, MOST_DAYS
from clustercert.store.certificate_maintenance import StoredCertificate


def certificate_problems(row: StoredCertificate, policy: Policy, now: datetime) -> tuple[str, ...]:
    """Check a stored certificate. Returns one sentence for each problem."""
    record = row.record
    try:
        leaf = x509.load_der_x509_certificate(record.der)
        found = [*_row_problems(leaf, record), *_policy_problems(leaf, record, policy, now)]
        if row.ca_der is not None and not found:
            found += _ca_problems(leaf, record, row.ca_der)
    except PARSE_ERRORS as error:
        return (f"The certificate or its row can't be read: {type(error).__name__}.",)
    except ClustercertError as error:
        return (f"The certificate has a key that is not allowed: {error.message}",)
    return tuple(found)


def _row_problems(leaf: x509.Certificate, record: CertificateRecord) -> list[str]:
    key = accepted_key(leaf.public_key())
    columns = {
        "fingerprint": (fingerprint(leaf), record.fingerprint),
        "serial": (serial_hex(leaf.serial_number), record.serial),
        "user and groups": (
            leaf.subject.public_bytes(),
            subject(_grant(record), record.credential_number).public_bytes(),
        ),
        "not_before": (leaf.not_valid_before_utc, record.not_before),
        "not_after": (leaf.not_valid_after_utc, record.not_after),
        "key_type": (key_type_of(key), record.key_type),
    }
    wrong = [name for name, (in_leaf, in_row) in columns.items() if in_leaf != in_row]
    return [f"The certificate differs from its row in: {', '.join(wrong)}."] if wrong else []


def _policy_problems(
    leaf: x509.Certificate, record: CertificateRecord, policy: Policy, now: datetime
) -> list[str]:
    found = []
    if leaf.not_valid_after_utc - leaf.not_valid_before_utc > timedelta(days=MOST_DAYS) + BACKDATE:
        found.append("The lifetime exceeds the longest that any rule can allow.")
    if leaf.not_valid_before_utc != record.issued_at.replace(microsecond=0) - BACKDATE:
        found.append("The certificate's start of validity does not match its time of issue.")
    # Expired certificates are skipped: they give no access, and an older policy may have allowed their names.
    if leaf.not_valid_after_utc > now:
        number = number_of(record.credential_number, record.serial, record.groups)
        names = [record.common_name, *without_credential_group(record.groups, number)]
        found += [f"Not allowed now: {problem}" for name in names if (problem := policy.name_problem(name))]
    return found


# Cached: the certificates in a batch were signed by only a few CAs.
_parse_ca = functools.lru_cache(maxsize=64)(x509.load_der_x509_certificate)


def _ca_problems(leaf: x509.Certificate, record: CertificateRecord, ca_der: bytes) -> list[str]:
    """Rebuild the certificate from its row, compare both byte by byte, and verify the CA's signature."""
    ca = ClientCA(
        id=record.ca_id,
        cluster_id=record.cluster_id,
        certificate=_parse_ca(ca_der),
        sealed_key=None,
    )
    request = SigningRequest(
        grant=_grant(record),
        public_key=accepted_key(leaf.public_key()),
        ca=ca,
        credential_number=record.credential_number,
    )
    try:
        check_leaf((record.der,), request)
    except SignerError as error:
        return [error.message]
    return []


def _grant(record: CertificateRecord) -> Grant:
    return Grant(
        rule=record.rule or "",
        username=record.common_name,
        groups=record.groups,
        not_before=record.not_before,
        not_after=record.not_after,
    )
