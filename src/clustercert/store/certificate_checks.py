"""Every SQL statement that reads certificates to check them: in the order of their ids, each with its CA."""

from dataclasses import dataclass, fields

from sqlalchemy import select

from clustercert.model import CertificateRecord
from clustercert.store import tables
from clustercert.store.database import Database

_certificate, _ca = tables.certificate, tables.client_ca
_FIELDS = [field.name for field in fields(CertificateRecord)]


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """A row of the ledger.

    Attributes:
        ca_der: the CA that it says it is from; None where that is gone.
    """

    id: int
    record: CertificateRecord
    ca_der: bytes | None


class CertificateChecks:
    """The ledger, read from one end to the other."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, row_id: int, limit: int) -> list[StoredCertificate]:
        """The next rows behind one. Raises Unavailable."""
        query = (
            select(
                _certificate.c.id,
                *(_certificate.c[name] for name in _FIELDS),
                _ca.c.certificate_der.label("ca_der"),
            )
            .outerjoin(_ca, _ca.c.id == _certificate.c.ca_id)
            .where(_certificate.c.id > row_id)
            .order_by(_certificate.c.id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            StoredCertificate(
                id=row["id"],
                record=CertificateRecord(**{name: row[name] for name in _FIELDS} | {"groups": _groups(row)}),
                ca_der=row["ca_der"],
            )
            for row in rows
        ]


def _groups(row: object) -> tuple[str, ...]:
    """As text, whatever somebody has written there."""
    groups = row["groups"]  # type: ignore[index] # a mapping
    return tuple(str(group) for group in groups) if isinstance(groups, list) else ()
