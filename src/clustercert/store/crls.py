"""Queries for certificate revocation lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from sqlalchemy import Row, func, select

from clustercert.model import ClientCA, Revocation
from clustercert.pki.crl import CrlEntry
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.engine.queries import Queries
from clustercert.store.revocation_state import is_revoked, revocations_by_id, wider_revocation_id

_certificate, _cluster, _ca = tables.certificate, tables.cluster, tables.client_ca
_revocation = tables.revocation
_last_change = select(func.coalesce(func.max(_revocation.c.changed), 0))


@dataclass(frozen=True, slots=True)
class RevokedByCA:
    """The revoked, unexpired certificates from a client CA, read in one snapshot.

    `generation` is the generation number in that snapshot, and `changed` that of the last change to any revocation.
    """

    entries: tuple[CrlEntry, ...]
    generation: int
    changed: int


class CrlQueries(Queries):
    """Reads the revoked certificates of a client CA."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.generation = database.generation

    async def authority(self, cluster_id: str, ca_id: str) -> tuple[ClientCA, str] | None:
        """Return a cluster's client CA, in any state, and the name of the cluster's signer."""
        query = select(_ca, _cluster.c.signer).join(_cluster, _cluster.c.id == _ca.c.cluster_id)
        query = query.where(_ca.c.id == ca_id, _ca.c.cluster_id == cluster_id)
        row = await self._row(query)
        if row is None:
            return None
        certificate = x509.load_der_x509_certificate(row.certificate_der)
        ca = ClientCA(row.id, row.cluster_id, certificate, row.sealed_key, row.state)
        return ca, row.signer

    async def last_change(self) -> int:
        """Return the generation number of the last change to any revocation."""
        return await self._scalar(_last_change) or 0

    async def revoked(self, ca: ClientCA, now: datetime, *, limit: int) -> RevokedByCA:
        """Return the CA's revoked certificates. Reads only unexpired certificates for the CA's cluster."""
        query = (
            select(
                _certificate.c.serial,
                _certificate.c.revoked_at,
                _certificate.c.revoked_why,
                wider_revocation_id().label("wider_revocation_id"),
            )
            .where(
                _certificate.c.cluster_id == ca.cluster_id,
                _certificate.c.not_after > now,
                _certificate.c.ca_id == ca.id,
                is_revoked(),
            )
            .limit(limit)
        )
        async with self._database.read() as connection:
            generation = (await connection.execute(select(tables.generation.c.value))).scalar_one()
            changed = (await connection.execute(_last_change)).scalar_one()
            rows = (await connection.execute(query)).all()
            wider = await revocations_by_id(connection, {row.wider_revocation_id for row in rows} - {None})
        return RevokedByCA(tuple(_entry(row, wider) for row in rows), generation, changed)


def _entry(row: Row[Any], wider: Mapping[int, Revocation]) -> CrlEntry:
    if row.revoked_at is not None:
        return CrlEntry(row.serial, row.revoked_at, row.revoked_why)
    revocation = wider[row.wider_revocation_id]
    return CrlEntry(row.serial, revocation.at, revocation.reason)
