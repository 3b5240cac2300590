"""Every SQL statement that a certificate revocation list is made from."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from sqlalchemy import Row, func, select

from clustercert.crl import Entry
from clustercert.model import ClientCA, Revocation
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.inventory import covering, revocations_of
from clustercert.store.revocations import is_revoked

_certificate, _ca, _revocation = tables.certificate, tables.client_ca, tables.revocation
_last_change = select(func.coalesce(func.max(_revocation.c.changed), 0))


@dataclass(frozen=True, slots=True)
class Revoked:
    """What of a client CA's certificates is revoked and has not ended, at one moment.

    Attributes:
        generation: the store's number at that moment.
        changed: the number that the last change of any revocation had made by then.
    """

    entries: tuple[Entry, ...]
    generation: int
    changed: int


class CrlRows:
    """What is revoked, by the CA that issued it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.generation = database.generation

    async def authority(self, cluster_id: str, ca_id: str) -> ClientCA | None:
        """A client CA of a cluster, in whatever state."""
        query = select(_ca).where(_ca.c.id == ca_id, _ca.c.cluster_id == cluster_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        certificate = x509.load_der_x509_certificate(row.certificate_der)
        return ClientCA(row.id, row.cluster_id, certificate, row.sealed_key, row.state)

    async def last_change(self) -> int:
        """The generation that the last change of any revocation made."""
        async with self._database.read() as connection:
            changed: int = (await connection.execute(_last_change)).scalar_one()
            return changed

    async def revoked(self, ca: ClientCA, now: datetime, *, limit: int) -> Revoked:
        """Looks at what has not ended in the CA's cluster, and at nothing else that the ledger keeps."""
        query = (
            select(
                _certificate.c.serial,
                _certificate.c.revoked_at,
                _certificate.c.revoked_why,
                covering().label("covering"),
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
            many = await revocations_of(connection, {row.covering for row in rows} - {None})
        return Revoked(tuple(_entry(row, many) for row in rows), generation, changed)


def _entry(row: Row[Any], many: dict[int, Revocation]) -> Entry:
    if row.revoked_at is not None:
        return Entry(row.serial, row.revoked_at, row.revoked_why)
    return Entry(row.serial, many[row.covering].at, many[row.covering].reason)
