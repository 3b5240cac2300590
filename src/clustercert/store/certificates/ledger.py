"""The ledger: records certificates, each with its audit event in one transaction, and events about denied requests."""

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter

from sqlalchemy import select

from clustercert.model import AuditEvent, CertificateRecord
from clustercert.store import tables
from clustercert.store.audit.events import event_row
from clustercert.store.engine.bulk_insert import BulkInsert
from clustercert.store.engine.database import Database
from clustercert.store.engine.group_commit import GATHER_SECONDS, GroupCommit

_certificate = tables.certificate
# The INSERT itself reads the epoch. If a concurrent revocation does not see a certificate, there are two cases: the
# certificate has an older epoch and counts as revoked, or the certificate was recorded after the revocation.
_certificates = BulkInsert(_certificate, epoch="(SELECT value FROM generation)")
_events = BulkInsert(tables.audit_event)
# Each field of `CertificateRecord` has the same name as its column in the table.
_COLUMNS = [each.name for each in fields(CertificateRecord)]
_values = attrgetter(*_COLUMNS)

Row = dict[str, object]


def certificate_row(record: CertificateRecord) -> Row:
    """Return a certificate's row without its epoch."""
    return dict(zip(_COLUMNS, _values(record), strict=True))


class Ledger:
    """Records certificates and events about denied requests, by group commit. Use one ledger per event loop."""

    def __init__(self, database: Database, gather_seconds: float = GATHER_SECONDS) -> None:
        self._database = database
        self._group = GroupCommit(self._write, self._recorded, gather_seconds)

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Record a certificate and its event once, and return when they are durable. Raises Unavailable.

        May raise Unavailable although the certificate was recorded, but returns only if the certificate was recorded.
        """
        await self._group.commit(record.fingerprint, (certificate_row(record), event_row(event)))

    async def record_event(self, event: AuditEvent) -> None:
        """Record an event without a certificate, and return when it is durable. Raises Unavailable.

        If a commit has an unknown outcome, the event may be recorded twice, with the same request id.
        """
        await self._group.commit(None, (None, event_row(event)))

    async def _write(self, rows: Sequence[tuple[Row | None, Row]]) -> None:
        await self._database.insert(
            (_certificates, [certificate for certificate, _ in rows if certificate is not None]),
            (_events, [event for _, event in rows]),
        )

    async def _recorded(self, fingerprints: Sequence[bytes]) -> set[bytes]:
        query = select(_certificate.c.fingerprint).where(_certificate.c.fingerprint.in_(fingerprints))
        async with self._database.read() as connection:
            return set((await connection.execute(query)).scalars())
