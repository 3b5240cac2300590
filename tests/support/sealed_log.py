"""A store with a sealed audit log, for tests of export and verification."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clustercert.audit.export import Exporter
from clustercert.audit.findings import Finding, VerificationReport
from clustercert.audit.log import AuditLog
from clustercert.audit.sealer import LogSealer
from clustercert.audit.verification import TrustedHead, verify
from clustercert.merkle.notes import VerifierKey, verify_checkpoint
from clustercert.store.audit.evidence import EvidenceQueries
from clustercert.store.audit.log import AuditQueries, EventPages
from clustercert.store.engine.database import Database
from support.stores import NOW, event


class PlainCustody:
    """A custody that does not encrypt."""

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        return plaintext

    async def unseal(self, sealed: bytes, bound_to: str) -> bytes:
        return sealed


# Checkpoints are newer than all events that `grow` records.
SEALED_AT = NOW + timedelta(hours=1)


@dataclass(frozen=True)
class SealedLog:
    """A log with its sealer, reader and exporter."""

    database: Database
    queries: EvidenceQueries
    reader: AuditLog
    sealer: LogSealer
    exporter: Exporter

    async def grow(self, count: int, *, at: datetime = NOW) -> None:
        """Record some events, a second apart, and seal them."""
        events = [
            replace(event("thing.happened", f"thing {number}"), at=at + timedelta(seconds=number))
            for number in range(count)
        ]
        async with self.database.transaction(*events):
            pass
        await self.sealer.seal_all()

    async def key(self) -> VerifierKey:
        found = await self.queries.verifier()
        assert found is not None
        return found

    async def head(self) -> TrustedHead:
        """The newest checkpoint, as an auditor keeps it."""
        note = (await self.queries.head()).note
        assert note is not None
        found = verify_checkpoint(note, await self.key())
        return TrustedHead("the kept one", found.size, found.root)

    async def private_key(self) -> Ed25519PrivateKey:
        """The log's private key."""
        kept = await self.reader.log()
        return Ed25519PrivateKey.from_private_bytes(kept.sealed_key)

    async def verified(self, *trusted: TrustedHead, patience: float = 0) -> VerificationReport:
        return await verify(self.queries, await self.key(), trusted, now=lambda: SEALED_AT, patience=patience)


async def new_log(database: Database) -> SealedLog:
    queries = AuditQueries(database)
    now = NOW
    sealer = LogSealer(queries, PlainCustody(), lambda: now, "audit.test")
    await sealer.ensure_log()
    now = SEALED_AT
    evidence = EvidenceQueries(database)
    reader = AuditLog(queries, EventPages(database))
    return SealedLog(database, evidence, reader, sealer, Exporter(evidence, reader, sealer.seal_all))


def briefly(findings: list[Finding]) -> list[tuple[str, int | None, int | None]]:
    return [(finding.kind.problem, finding.place, finding.event_id) for finding in findings]
