"""Certificates of credentials in a real ledger, and what is revoked of them."""

import os
from dataclasses import replace
from datetime import datetime

from clustercert.model import AuditEvent, CertificateRecord, Revocation
from clustercert.store.database import Database
from clustercert.store.enforcement import EnforcementRows
from clustercert.store.ledger import Ledger
from clustercert.store.revocations import Revocations
from nouns import CLUSTER_ID
from stores import NOW, certificate_record, event

HERE, THERE = CLUSTER_ID, "5" * 8 + CLUSTER_ID[8:]


class Shelf:
    """A ledger and what is revoked of it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rows = EnforcementRows(database)
        self.ledger = Ledger(database)
        self.revocations = Revocations(database)

    async def issue(self, **changed: object) -> CertificateRecord:
        """One that is recorded, and whose credential group is its only group."""
        record, recorded = self.prepare(**changed)
        await self.ledger.record(record, recorded)
        return record

    def prepare(self, **changed: object) -> tuple[CertificateRecord, AuditEvent]:
        """One that isn't recorded yet, and the event of its issuance."""
        record, recorded = certificate_record()
        said: dict[str, object] = {"cluster_id": HERE, "groups": (), "rule": "admin"}
        return replace(record, **(said | changed)), recorded  # type: ignore[arg-type] # as the tests say

    async def issue_as_before(self, **changed: object) -> CertificateRecord:
        """The same, as a program before credential numbers recorded it: its group has its serial."""
        serial = f"{int.from_bytes(os.urandom(19)):040x}"
        groups = (f"clustercert:credential:{serial}",)
        return await self.issue(serial=serial, credential_number=None, groups=groups, **changed)

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
