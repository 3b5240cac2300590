"""Counts, checks and deletes issued certificates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    delete,
    func,
    select,
)

from clustercert.model import AuditEvent, CertificateRecord
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.certificates.views import is_revoked
from clustercert.store.engine.queries import BATCH, Queries

_certificate, _revocation, _ca = tables.certificate, tables.revocation, tables.client_ca

_FIELDS = [field.name for field in fields(CertificateRecord)]


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """A row of the ledger, which may have been tampered with. `ca_der` is None if the certificate's CA was deleted."""

    id: int
    record: CertificateRecord
    ca_der: bytes | None


class CertificateMaintenance(Queries):
    """Counts, reads and deletes certificates in the ledger."""

    async def live(self, now: datetime, horizons: Sequence[datetime]) -> tuple[int, tuple[int, ...]]:
        """Return how many certificates are valid now, and how many of these expire by each time in `horizons`.

        Excludes certificates that were revoked individually. Includes certificates that only a revocation of
        their user or cluster covers, because excluding them would require a scan of all certificates.
        """
        ends_after_now = _certificate.c.not_after > now
        counts = [func.count().filter(_certificate.c.not_after <= horizon) for horizon in horizons]
        query = select(func.count(), *counts).where(ends_after_now, _certificate.c.revoked_at.is_(None))
        ((total, *windows),) = await self._rows(query)
        return total, tuple(windows)

    async def count_live(
        self, now: datetime, *, user_id: str | None = None, cluster_id: str | None = None
    ) -> int:
        """Count the valid and unrevoked certificates of a user, of a cluster, or of a user for a cluster.

        The count for a user and a cluster reads the index entries of all unexpired certificates for the cluster, and
        the rows of the user.
        """
        query = select(func.count()).where(_certificate.c.not_after > now, ~is_revoked())
        if user_id is not None:
            query = query.where(_certificate.c.user_id == user_id)
        if cluster_id is not None:
            query = query.where(_certificate.c.cluster_id == cluster_id)
        return await self._scalar(query) or 0

    async def count_expired(self, ended_before: datetime) -> int:
        """Count the certificates that expired before a time."""
        query = select(func.count()).where(_certificate.c.not_after < ended_before)
        return await self._scalar(query) or 0

    async def certificates_after(self, row_id: int, limit: int) -> list[StoredCertificate]:
        """Return at most `limit` rows with higher ids than `row_id`, sorted by id. Raises Unavailable."""
        query = (
            select(
                *(_certificate.c[name] for name in ("id", *_FIELDS)), _ca.c.certificate_der.label("ca_der")
            )
            .outerjoin(_ca, _ca.c.id == _certificate.c.ca_id)
            .where(_certificate.c.id > row_id)
            .order_by(_certificate.c.id)
            .limit(limit)
        )
        return [_stored(row._asdict()) for row in await self._rows(query)]

    async def prune(self, ended_before: datetime, event: Callable[[int], AuditEvent]) -> int:
        """Delete a batch of certificates that expired before a time, oldest first.

        Returns the number of deleted certificates.

        Also deletes the revocations of these individual certificates, but not the audit events of their issuance.
        `event` creates an audit event from the number of deleted certificates, and is not called if the number is 0.
        """
        ended = (
            select(_certificate.c.fingerprint)
            .where(_certificate.c.not_after < ended_before)
            .order_by(_certificate.c.not_after)
            .limit(BATCH)
        )
        async with self._database.transaction() as connection:
            fingerprints = (await connection.execute(ended)).scalars().all()
            these = delete(_certificate).where(_certificate.c.fingerprint.in_(fingerprints))
            count = (await connection.execute(these)).rowcount
            # Keep revocations of users and clusters, because such revocations also cover other certificates.
            await connection.execute(delete(_revocation).where(_revocation.c.fingerprint.in_(fingerprints)))
            if count:
                await record_events(connection, (event(count),))
        return count


def _stored(row: dict[str, Any]) -> StoredCertificate:
    row_id, ca_der, groups = row.pop("id"), row.pop("ca_der"), row["groups"]
    # The column `groups` is JSON, so a row that was tampered with may contain any value.
    row["groups"] = tuple(map(str, groups)) if isinstance(groups, list) else ()
    return StoredCertificate(row_id, CertificateRecord(**row), ca_der)
