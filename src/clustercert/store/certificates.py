"""Every SQL statement that reads certificates; `ledger` alone writes them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select

from clustercert.store import tables
from clustercert.store.database import Database

_certificate = tables.certificate


class CertificateRows:
    """What was issued."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def live(self, now: datetime, horizons: Sequence[datetime]) -> tuple[int, tuple[int, ...]]:
        """How many certificates are valid now, and how many of these end at or before each horizon."""
        ends_after_now = _certificate.c.not_after > now
        counts = [func.count().filter(_certificate.c.not_after <= horizon) for horizon in horizons]
        query = select(func.count(), *counts).where(ends_after_now, _certificate.c.revoked_at.is_(None))
        async with self._database.read() as connection:
            total, *windows = (await connection.execute(query)).one()
        return total, tuple(windows)
