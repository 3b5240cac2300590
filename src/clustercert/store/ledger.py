"""The ledger: the only writer of certificates, each with its audit event in the same transaction."""

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from clustercert.errors import Unavailable
from clustercert.model import AuditEvent, CertificateRecord
from clustercert.store import tables
from clustercert.store.database import Database

_certificate = tables.certificate


class Ledger:
    """Records certificates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Return when the certificate and its event are durable, once each. Raises Unavailable.

        A failure of a commit leaves open whether it happened. So after one, the fingerprint is looked up, and
        only where it is missing the transaction is run once more. Where even that fails, Unavailable may be
        raised for a certificate that is in the ledger all the same, but never the other way round.
        """
        failure = await self._try(record, event)
        if failure is not None:
            failure = await self._try(record, event)
        if failure is not None:
            raise failure

    async def _try(self, record: CertificateRecord, event: AuditEvent) -> Unavailable | None:
        """One transaction; what went wrong if the certificate is not in the ledger after it."""
        begun = False
        try:
            async with self._database.write(event) as connection:
                begun = True
                await connection.execute(insert(_certificate).values(_row(record)))
        except Unavailable as failure:
            # Nothing was written yet: the database is busy or away, and a second try at once helps neither.
            if not begun:
                raise
            return None if await self._holds(record.fingerprint) else failure
        except IntegrityError:
            # An earlier try's commit has arrived meanwhile.
            if not await self._holds(record.fingerprint):
                raise
        return None

    async def _holds(self, fingerprint: bytes) -> bool:
        query = select(_certificate.c.id).where(_certificate.c.fingerprint == fingerprint)
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None


def _row(record: CertificateRecord) -> dict[str, object]:
    return {
        "fingerprint": record.fingerprint,
        "serial": record.serial,
        "epoch": record.epoch,
        "cluster_id": record.cluster_id,
        "project_id": record.project_id,
        "ca_id": record.ca_id,
        "user_id": record.user_id,
        "user_name": record.user_name,
        "groups": list(record.groups),
        "not_before": record.not_before,
        "not_after": record.not_after,
        "key_type": record.key_type,
        "key_origin": record.key_origin,
        "auth_method": record.auth_method,
        "source_address": record.source_address,
        "request_id": record.request_id,
        "reason": record.reason,
        "issued_at": record.issued_at,
        "der": record.der,
    }
