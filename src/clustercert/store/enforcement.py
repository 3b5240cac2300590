"""Every SQL statement of keeping API servers up to date: what a revocation touches, what lives, what is revoked."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.model import AuditEvent, number_of, without_credential_group
from clustercert.store import tables
from clustercert.store.credentials import is_bound_by_serial
from clustercert.store.database import Database
from clustercert.store.revocations import is_revoked, stands_after

_certificate, _revocation = tables.certificate, tables.revocation

# More at once, and it is simpler to look at every cluster.
MAX_CHANGES = 1000
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Touched:
    """What revocations, and what undid them, have touched since a generation.

    Attributes:
        cluster_ids: where; None where there are too many changes to say.
        newest: the generation of the last change, to ask from next.
    """

    cluster_ids: frozenset[str] | None
    newest: int


@dataclass(frozen=True, slots=True)
class Credential:
    """A live certificate, as far as its binding depends on it. Field meanings as in `CertificateRecord`."""

    id: int
    fingerprint: bytes
    credential_number: str | None
    groups: tuple[str, ...]
    rule: str | None
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Revoked:
    """A revoked certificate that has not ended. Field meanings as in `CertificateRecord`."""

    fingerprint: bytes
    credential_number: str | None
    not_after: datetime


class EnforcementRows:
    """What API servers have to know."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> int:
        """The generation as of now."""
        return await self._database.read_generation()

    async def touched(self, since: int, now: datetime) -> Touched:
        """Where something was revoked, or a revocation undone, after a generation."""
        columns = (_revocation.c.cluster_id, _revocation.c.user_id, _revocation.c.changed)
        query = (
            select(*columns)
            .where(_revocation.c.changed > since)
            .order_by(_revocation.c.changed)
            .limit(MAX_CHANGES + 1)
        )
        async with self._database.read() as connection:
            changes = (await connection.execute(query)).all()
            if len(changes) > MAX_CHANGES:
                newest = (await connection.execute(select(func.max(_revocation.c.changed)))).scalar_one()
                return Touched(None, newest)
            everywhere = {row.user_id for row in changes if not row.cluster_id}
            found = {row.cluster_id for row in changes if row.cluster_id}
            found |= await _clusters_of(connection, everywhere, now)
        return Touched(frozenset(found), max((row.changed for row in changes), default=since))

    async def live(self, cluster_id: str, now: datetime, after: Credential | None) -> tuple[Credential, ...]:
        """A page of a cluster's certificates that are neither revoked nor expired, those first that end first."""
        ends, number = _certificate.c.not_after, _certificate.c.id
        # The first of the two is what an index is searched by.
        beyond = (
            and_(ends >= max(after.not_after, now), or_(ends > after.not_after, number > after.id))
            if after
            else ends > now
        )
        query = (
            select(
                number,
                _certificate.c.fingerprint,
                _certificate.c.credential_number,
                _certificate.c.serial,
                _certificate.c.groups,
                _certificate.c.rule,
                ends,
            )
            .where(_certificate.c.cluster_id == cluster_id, beyond, ~is_revoked())
            .order_by(ends, number)
            .limit(PAGE)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return tuple(_credential(row) for row in rows)

    async def ended(self, fingerprints: Collection[bytes], now: datetime) -> dict[bytes, bool]:
        """Of those of the fingerprints that are in the ledger, whether they are revoked or expired."""
        over = or_(_certificate.c.not_after <= now, is_revoked()).label("over")
        query = select(_certificate.c.fingerprint, over).where(_certificate.c.fingerprint.in_(fingerprints))
        async with self._database.read() as connection:
            return {row.fingerprint: bool(row.over) for row in await connection.execute(query)}

    async def is_revoked(self, fingerprint: bytes) -> bool:
        """Whether one certificate is."""
        query = select(_certificate.c.id).where(_certificate.c.fingerprint == fingerprint, is_revoked())
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def revoked(self, cluster_id: str, now: datetime, limit: int) -> tuple[Revoked, ...]:
        """A cluster's revoked certificates without the expired, those revoked last first."""
        query = _revoked(cluster_id, now).order_by(_revoked_at().desc(), _certificate.c.id.desc())
        async with self._database.read() as connection:
            return tuple(
                Revoked(
                    row.fingerprint,
                    number_of(row.credential_number, row.serial, row.groups),
                    row.not_after,
                )
                for row in await connection.execute(query.limit(limit))
            )

    async def count_revoked(self, cluster_id: str, now: datetime) -> int:
        """How many certificates `revoked` would find without its limit."""
        query = select(func.count()).select_from(_revoked(cluster_id, now).subquery())
        async with self._database.read() as connection:
            count: int = (await connection.execute(query)).scalar_one()
            return count

    async def last_unnumbered(self, now: datetime) -> datetime | None:
        """When the last certificate without a credential group ends, of whatever cluster; None where all have one.

        A cluster that was registered again trusts the certificates of its former registration.
        """
        query = select(_certificate.c.not_after).where(
            _certificate.c.not_after > now,
            _certificate.c.credential_number.is_(None),
            ~is_bound_by_serial(),
        )
        async with self._database.read() as connection:
            ends = await connection.execute(query.order_by(_certificate.c.not_after.desc()).limit(1))
            return ends.scalar_one_or_none()

    async def note(self, event: AuditEvent) -> None:
        """Record an event by itself."""
        async with self._database.write(event):
            pass


def _credential(row: Any) -> Credential:
    number = number_of(row.credential_number, row.serial, row.groups)
    groups = without_credential_group(row.groups, number)
    return Credential(row.id, row.fingerprint, number, groups, row.rule, row.not_after)


def _revoked(cluster_id: str, now: datetime) -> Select[Any]:
    columns = ("fingerprint", "credential_number", "serial", "groups", "not_after")
    return select(*(_certificate.c[name] for name in columns)).where(
        _certificate.c.cluster_id == cluster_id, _certificate.c.not_after > now, is_revoked()
    )


def _revoked_at() -> Any:
    """When a revoked certificate was: by itself, or else along with others."""
    along = (
        select(func.max(_revocation.c.at))
        .where(
            _revocation.c.user_id.in_((_certificate.c.user_id, "")),
            _revocation.c.cluster_id.in_((_certificate.c.cluster_id, "")),
            stands_after(),
        )
        .correlate(_certificate)
        .scalar_subquery()
    )
    return case(
        (_certificate.c.revoked_at.is_not(None), _certificate.c.revoked_at),
        else_=along,
    )


async def _clusters_of(connection: AsyncConnection, user_ids: Collection[str], now: datetime) -> set[str]:
    """Where these have certificates that haven't expired."""
    if not user_ids:
        return set()
    query = (
        select(_certificate.c.cluster_id)
        .where(_certificate.c.user_id.in_(user_ids), _certificate.c.not_after > now)
        .distinct()
    )
    return set((await connection.execute(query)).scalars())
