"""Deletes old audit events, and checks the certificates in the ledger."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from cryptography import x509

from clustercert.audit.event_parsing import ranges_of
from clustercert.model import (
    Actor,
    CertificateRecord,
    ClientCA,
    Grant,
    SigningRequest,
    rfc3339,
)
from clustercert.model.errors import ClustercertError, NotFound, SignerError
from clustercert.model.events.administration import EventsDeleted
from clustercert.model.events.operation import CertificateMismatch
from clustercert.model.issuance import jti_fingerprint
from clustercert.observability import metrics
from clustercert.pki.certificates import fingerprint
from clustercert.pki.keys import PARSE_ERRORS, accepted_key, key_type_of
from clustercert.pki.leaf import (
    START_TOLERANCE,
    check_leaf,
    has_kubernetes_subject,
    leaf_profile,
    serial_hex,
    subject,
)
from clustercert.policy.decision import Policy
from clustercert.policy.lifetime import BACKDATE, MOST_DAYS
from clustercert.store.audit.evidence import EvidenceQueries
from clustercert.store.certificates.maintenance import CertificateMaintenance, StoredCertificate
from clustercert.store.engine.database import Database
from clustercert.store.job_cursors import Findings, JobCursor


@dataclass(frozen=True, slots=True)
class Retention:
    """Deletes events. Each deletion is recorded in the same transaction by a deletion event, which is never deleted."""

    queries: EvidenceQueries
    now: Callable[[], datetime]

    async def prune(self, before: datetime, *, actor: Actor) -> int:
        """Delete a batch of sealed events older than `before`.

        Returns the number of deleted events, or 0 if there are no older events. Raises Unavailable.
        """
        marker = self._marker(f"before {rfc3339(before)}", "retention", actor, before)
        return len(await self.queries.delete(marker, before=before))

    async def erase(self, place: int, why: str, *, actor: Actor) -> None:
        """Delete the event at a leaf index. Raises NotFound if the event is missing or is a deletion event."""
        marker = self._marker(str(place), why, actor)
        if not await self.queries.delete(marker, only=place):
            raise NotFound(
                f"There is no event {place} that can be erased. The event may have been deleted already. Deletion"
                " events can't be erased."
            )

    def _marker(
        self, subject: str, why: str, actor: Actor, before: datetime | None = None
    ) -> Callable[[Sequence[int]], EventsDeleted]:
        return lambda places: EventsDeleted(
            at=self.now(),
            actor=actor,
            subject=subject,
            why=why,
            count=len(places),
            places=tuple(ranges_of(places)),
            before=before,
        )


def certificate_problems(row: StoredCertificate, policy: Policy, now: datetime) -> tuple[str, ...]:
    """Check a stored certificate. Returns one sentence for each problem."""
    record = row.record
    if record.kind == "token":
        return _token_problems(record, policy, now)
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


def _token_problems(record: CertificateRecord, policy: Policy, now: datetime) -> tuple[str, ...]:
    """Check a stored token. Compares the columns with each other, because only the cluster knows the token itself."""
    wrong = []
    try:
        if jti_fingerprint(str(UUID(hex=record.serial))) != record.fingerprint:
            wrong.append("serial")
    except ValueError:
        wrong.append("serial")
    if record.der or record.key_type:
        wrong.append("kind")
    found = [f"The token's row does not match its fingerprint in: {', '.join(wrong)}."] if wrong else []
    return (*found, *_name_problems(record, policy, record.not_after, now))


def _name_problems(record: CertificateRecord, policy: Policy, ends_at: datetime, now: datetime) -> list[str]:
    # Expired credentials are skipped: they give no access, and an older policy may have allowed their names.
    if ends_at <= now:
        return []
    names = [record.common_name, *record.groups]
    return [f"Not allowed now: {problem}" for name in names if (problem := policy.name_problem(name))]


def _row_problems(leaf: x509.Certificate, record: CertificateRecord) -> list[str]:
    key, grant, number = accepted_key(leaf.public_key()), _grant(record), record.credential_number
    if leaf_profile(leaf) == "own":
        has_subject = leaf.subject.public_bytes() == subject(grant, number).public_bytes()
    else:
        has_subject = has_kubernetes_subject(leaf, grant, number)
    columns = {
        "fingerprint": (fingerprint(leaf), record.fingerprint),
        "serial": (serial_hex(leaf.serial_number), record.serial),
        "user and groups": (has_subject, True),
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
        found.append("The lifetime exceeds the longest lifetime that any rule can allow.")
    tolerance = timedelta(0) if leaf_profile(leaf) == "own" else START_TOLERANCE
    if abs(leaf.not_valid_before_utc - record.issued_at.replace(microsecond=0) + BACKDATE) > tolerance:
        found.append("The certificate's start of validity does not match its time of issue.")
    return found + _name_problems(record, policy, leaf.not_valid_after_utc, now)


# Cached: the certificates in a batch were signed by only a few CAs.
_parse_ca = functools.lru_cache(maxsize=64)(x509.load_der_x509_certificate)


def _ca_problems(leaf: x509.Certificate, record: CertificateRecord, ca_der: bytes) -> list[str]:
    """Rebuild the certificate from its row, compare the bytes with the stored certificate, and verify the signature."""
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
        profile=leaf_profile(leaf),
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


logger = structlog.get_logger()

NAME = "certificates"
MISMATCH = "mismatch"
LAST_ID = 2**63 - 1
# A batch takes about 20 ms: each certificate is parsed, and its signature is verified.
BATCH_SIZE = 100


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A certificate that failed the check, with one sentence for each problem."""

    certificate: StoredCertificate
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScrubResult:
    """The result of one step of the scrubber.

    Attributes:
        count: the number of certificates checked; less than the limit if the step reached the end of the ledger.
        last_id: the row id of the last certificate checked.
    """

    count: int
    last_id: int
    mismatches: tuple[Mismatch, ...]


class CertificateScrubber:
    """Checks the ledger's certificates in steps. The position in the ledger is stored in the database.

    Attributes:
        policy: the policy in force; may be replaced at any time.
    """

    def __init__(self, database: Database, policy: Policy, now: Callable[[], datetime]) -> None:
        self._queries = CertificateMaintenance(database)
        self._cursor = JobCursor(database, NAME)
        self._known = Findings(database, MISMATCH)
        self.policy = policy
        self._now = now

    async def step(self, limit: int = BATCH_SIZE) -> ScrubResult:
        """Check the next certificates, and record mismatches. Raises Unavailable.

        After the last certificate in the ledger, the next step starts again with the first certificate.
        """
        position = int(await self._cursor.value() or 0)
        checked = await self.check_after(position, limit)
        at_the_end = checked.count < limit
        for mismatch in checked.mismatches:
            await self._record(mismatch)
        wrong = [mismatch.certificate.id for mismatch in checked.mismatches]
        await self._known.remove(position, LAST_ID if at_the_end else checked.last_id, keep=wrong)
        await self._cursor.set("0" if at_the_end else str(checked.last_id))
        metrics.CHECKED.inc(checked.count)
        return checked

    async def check_after(self, row_id: int, limit: int = BATCH_SIZE) -> ScrubResult:
        """Check the certificates after the given row, without recording mismatches."""
        rows = await self._queries.certificates_after(row_id, limit)
        found = [(row, certificate_problems(row, self.policy, self._now())) for row in rows]
        mismatches = tuple(Mismatch(row, problems) for row, problems in found if problems)
        return ScrubResult(len(rows), rows[-1].id if rows else row_id, mismatches)

    async def _record(self, mismatch: Mismatch) -> None:
        """Record and log a mismatch, unless it is already recorded."""
        record = mismatch.certificate.record
        event = CertificateMismatch(
            at=self._now(),
            project_id=record.project_id,
            actor=Actor.service(),
            subject=record.fingerprint.hex(),
            cluster_id=record.cluster_id,
            serial=record.serial,
            problems=mismatch.problems,
        )
        if await self._known.add(mismatch.certificate.id, "\n".join(mismatch.problems), event):
            metrics.MISMATCHES.inc()
            logger.error(
                "stored certificate failed its check", fingerprint=event.subject, problems=event.problems
            )
