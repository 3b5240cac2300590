"""A store with a sealed log, for tests of what reads the whole of it."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clustercert.audit.evidence import Finding, Report, Trusted
from clustercert.audit.export import Exporter
from clustercert.audit.log import AuditLog
from clustercert.audit.sealer import LogSealer
from clustercert.audit.verification import verify
from clustercert.merkle import VerifierKey, opened
from clustercert.store.audit import AuditRows
from clustercert.store.database import Database
from clustercert.store.event_pages import EventPages
from clustercert.store.evidence import EvidenceRows
from stores import NOW, event


class Open:
    """A custody that leaves secrets as they are."""

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        return plaintext

    async def unseal(self, sealed: bytes, bound_to: str) -> bytes:
        return sealed


@dataclass(frozen=True)
class Log:
    """A log, and all that works on it."""

    database: Database
    rows: EvidenceRows
    reader: AuditLog
    sealer: LogSealer
    exporter: Exporter

    async def grow(self, count: int, *, at: datetime = NOW) -> None:
        """Record some events, a second apart, and seal them."""
        events = [
            replace(event("thing.happened", f"thing {number}"), at=at + timedelta(seconds=number))
            for number in range(count)
        ]
        async with self.database.write(*events):
            pass
        await self.sealer.seal_all()

    async def key(self) -> VerifierKey:
        found = await self.rows.verifier()
        assert found is not None
        return found

    async def head(self) -> Trusted:
        """The newest checkpoint, as somebody keeps it."""
        note = (await self.rows.head()).note
        assert note is not None
        found = opened(note, await self.key())
        return Trusted("the kept one", found.size, found.root)

    async def private_key(self) -> Ed25519PrivateKey:
        """As it is kept, for those who are to have it."""
        kept = await self.reader.log()
        return Ed25519PrivateKey.from_private_bytes(kept.sealed_key)

    async def verified(self, *trusted: Trusted) -> Report:
        return await verify(self.rows, await self.key(), trusted)


async def new_log(database: Database) -> Log:
    rows = AuditRows(database)
    sealer = LogSealer(rows, Open(), lambda: NOW, "audit.test")
    await sealer.begin()
    evidence = EvidenceRows(database)
    reader = AuditLog(rows, EventPages(database))
    return Log(database, evidence, reader, sealer, Exporter(evidence, reader))


def briefly(findings: list[Finding]) -> list[tuple[str, int | None, int | None]]:
    return [(finding.problem, finding.place, finding.event_id) for finding in findings]
