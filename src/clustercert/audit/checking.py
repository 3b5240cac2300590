"""Looks over what is in the ledger, slowly and for ever: each certificate against its row, its CA and the bounds.

A mismatch is somebody's hand in the database, a signer that lied, or a bug: an event, a count and a line in the log,
once, and once more where it is another one or was gone meanwhile.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog
from cryptography import x509

from clustercert import metrics
from clustercert.certificate import check_leaf, fingerprint, serial_hex, subject
from clustercert.errors import ClustercertError, SignerError
from clustercert.keypair import UNREADABLE, accepted_key, key_type_of
from clustercert.model import (
    AuditEvent,
    CertificateRecord,
    ClientCA,
    Grant,
    Origin,
    SigningRequest,
    number_of,
    without_credential_group,
)
from clustercert.policy import BACKDATE, MAX_LIFETIME, Policy
from clustercert.store.certificate_checks import CertificateChecks, StoredCertificate
from clustercert.store.database import Database
from clustercert.store.progress import Findings, Progress

logger = structlog.get_logger()

NAME = "certificates"
MISMATCH = "mismatch"
LAST_ID = 2**63 - 1
# A parse and a signature each: a hundredth of a second or two, which nobody notices.
AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A certificate that is not what it should be.

    Attributes:
        problems: sentences, one for each thing that is wrong.
    """

    certificate: StoredCertificate
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What one step came to.

    Attributes:
        count: how many certificates were looked at; fewer than were asked for at the ledger's end.
    """

    count: int
    mismatches: tuple[Mismatch, ...]


class CertificateChecker:
    """Goes through the ledger step by step, and remembers in the store where it is."""

    def __init__(self, database: Database, policy: Policy, now: Callable[[], datetime]) -> None:
        self._rows = CertificateChecks(database)
        self._progress = Progress(database, NAME)
        self._known = Findings(database, MISMATCH)
        self._policy = policy
        self._now = now

    async def step(self, limit: int = AT_ONCE) -> Checked:
        """Look at the next ones, from the beginning again behind the last. Raises Unavailable."""
        position = int(await self._progress.value() or 0)
        checked, reached = await self.after(position, limit)
        # A small ledger is gone through in one step, which ends where it began.
        at_the_end = checked.count < limit
        for mismatch in checked.mismatches:
            await self._record(mismatch)
        wrong = [mismatch.certificate.id for mismatch in checked.mismatches]
        await self._known.forget(position, LAST_ID if at_the_end else reached, but=wrong)
        await self._progress.change("0" if at_the_end else str(reached))
        metrics.CHECKED.inc(checked.count)
        return checked

    async def after(self, row_id: int, limit: int = AT_ONCE) -> tuple[Checked, int]:
        """Look at those behind a row, and record nothing; with the id of the last one."""
        rows = await self._rows.after(row_id, limit)
        found = [(row, problems(row, self._policy, self._now())) for row in rows]
        mismatches = tuple(Mismatch(row, sentences) for row, sentences in found if sentences)
        return Checked(len(rows), mismatches), rows[-1].id if rows else row_id

    async def _record(self, mismatch: Mismatch) -> None:
        """Say what is wrong, unless it was said."""
        what = "\n".join(mismatch.problems)
        if not await self._known.found(mismatch.certificate.id, what, self._event(mismatch)):
            return
        metrics.MISMATCHES.inc()
        logger.error(
            "a stored certificate is not what it should be",
            fingerprint=mismatch.certificate.record.fingerprint.hex(),
            problems=mismatch.problems,
        )

    def _event(self, mismatch: Mismatch) -> AuditEvent:
        record = mismatch.certificate.record
        return AuditEvent(
            at=self._now(),
            kind="certificate.mismatch",
            project_id=record.project_id,
            actor="clustercert",
            subject=record.fingerprint.hex(),
            origin=Origin.local(),
            detail={
                "cluster_id": record.cluster_id,
                "serial": record.serial,
                "problems": list(mismatch.problems),
            },
        )


def problems(row: StoredCertificate, policy: Policy, now: datetime) -> tuple[str, ...]:
    """What is wrong with a certificate, a sentence each; nothing where it is as it was issued."""
    record = row.record
    try:
        leaf = x509.load_der_x509_certificate(record.der)
        found = [*_unlike_its_row(leaf, record), *_beyond_the_bounds(leaf, record, policy, now)]
        if row.ca_der is not None and not found:
            found += _unlike_its_ca(leaf, record, row.ca_der)
    except UNREADABLE as error:
        return (f"The certificate or its row can't be read: {type(error).__name__}.",)
    except ClustercertError as error:
        return (f"The certificate's key is none that is certified here: {error.message}",)
    return tuple(found)


def _unlike_its_row(leaf: x509.Certificate, record: CertificateRecord) -> list[str]:
    key = accepted_key(leaf.public_key())
    columns = {
        "fingerprint": (fingerprint(leaf), record.fingerprint),
        "serial": (serial_hex(leaf), record.serial),
        "user and groups": (
            leaf.subject.public_bytes(),
            subject(_grant(record), record.credential_number).public_bytes(),
        ),
        "not_before": (leaf.not_valid_before_utc, record.not_before),
        "not_after": (leaf.not_valid_after_utc, record.not_after),
        "key_type": (key_type_of(key), record.key_type),
    }
    wrong = [name for name, (in_leaf, in_row) in columns.items() if in_leaf != in_row]
    return [f"The certificate says otherwise than its row: {', '.join(wrong)}."] if wrong else []


def _beyond_the_bounds(
    leaf: x509.Certificate, record: CertificateRecord, policy: Policy, now: datetime
) -> list[str]:
    found = []
    if leaf.not_valid_after_utc - leaf.not_valid_before_utc > MAX_LIFETIME + BACKDATE:
        found.append("The certificate lives longer than any rule allows.")
    if leaf.not_valid_before_utc != record.issued_at.replace(microsecond=0) - BACKDATE:
        found.append("The certificate begins at another time than it was issued at.")
    # What has ended may have been issued under another policy, and nobody gets in with it.
    if leaf.not_valid_after_utc > now:
        number = number_of(record.credential_number, record.serial, record.groups)
        names = [record.user_id, *without_credential_group(record.groups, number)]
        found += [f"Not allowed now: {problem}" for name in names if (problem := policy.name_problem(name))]
    return found


# A page's certificates are of few CAs.
_loaded = functools.lru_cache(maxsize=64)(x509.load_der_x509_certificate)


def _unlike_its_ca(leaf: x509.Certificate, record: CertificateRecord, ca_der: bytes) -> list[str]:
    """Byte for byte what would be asked for again, but for serial and signature; which has to be the CA's."""
    ca = ClientCA(
        id=record.ca_id,
        cluster_id=record.cluster_id,
        certificate=_loaded(ca_der),
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
        username=record.user_id,
        groups=record.groups,
        not_before=record.not_before,
        not_after=record.not_after,
    )
