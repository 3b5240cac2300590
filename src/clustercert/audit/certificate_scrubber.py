"""Checks stored certificates in the background: each against its row, its CA and the policy's limits.

A mismatch means tampering with the database, a faulty signer, or a bug. It is recorded and logged once, and again if
it changes or reappears.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from clustercert.audit.certificate_check import certificate_problems
from clustercert.model import Actor
from clustercert.model.events.operation import CertificateMismatch
from clustercert.observability import metrics
from clustercert.policy.decision import Policy
from clustercert.store.certificate_maintenance import CertificateMaintenance, StoredCertificate
from clustercert.store.engine.database import Database
from clustercert.store.job_cursors import Findings, JobCursor

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
        count: the number of certificates checked; less than the limit at the end of the ledger.
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
        """Check the next certificates, and record mismatches. Starts over at the ledger's end. Raises Unavailable."""
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
        rows = await self._queries.after(row_id, limit)
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
