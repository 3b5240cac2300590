"""Certificates and revocations in a real ledger."""

from dataclasses import replace
from datetime import datetime

from clustercert.model import AuditEvent, CertificateRecord, Revocation
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.enforcement import EnforcementQueries
from support.samples import CLUSTER_ID
from support.stores import NOW, certificate_record, event

HERE, THERE = CLUSTER_ID, "5" * 8 + CLUSTER_ID[8:]


class CredentialLedger:
    """Issues and revokes certificates in a ledger."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.queries = EnforcementQueries(database)
        self.ledger = Ledger(database)
        self.revocations = RevocationQueries(database)

    async def issue(self, **changed: object) -> CertificateRecord:
        """A recorded certificate with no group besides its credential group."""
        record, recorded = self.prepare(**changed)
        await self.ledger.record(record, recorded)
        return record

    def prepare(self, **changed: object) -> tuple[CertificateRecord, AuditEvent]:
        """A certificate that is not recorded yet, and its event."""
        record, recorded = certificate_record()
        said: dict[str, object] = {"cluster_id": HERE, "groups": (), "rule": "admin"}
        return replace(record, **(said | changed)), recorded  # type: ignore[arg-type] # as the tests say

    async def revoke(
        self,
        record: CertificateRecord | None = None,
        *,
        user_id: str = "",
        cluster_id: str = "",
        at: datetime = NOW,
    ) -> Revocation:
        wanted = Revocation(
            id=0,
            epoch=0,
            fingerprint=record.fingerprint if record else None,
            user_id=record.user_id if record else user_id,
            cluster_id=record.cluster_id if record else cluster_id,
            at=at,
            by="cli:test",
            reason="unspecified",
        )
        return await self.revocations.revoke(wanted, event())
