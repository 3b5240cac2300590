"""Every SQL statement that revokes, and the one expression that says whether a certificate is revoked.

Whoever revokes raises the generation first and holds its row until the commit, so revocations happen one after
another, on every engine: what one of them reads, no other changes meanwhile.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, insert, literal, or_, select, update

from clustercert.errors import Conflict, NotFound
from clustercert.model import AuditEvent, Revocation
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.transaction import Transaction

_certificate, _revocation = tables.certificate, tables.revocation

NO_END = 2**63 - 1
"""The epoch of a revocation that holds for what is recorded later too: while its user is disabled, or deleted.

A worker may know the user as enabled for a second more, and issue meanwhile. Enabling the user gives the revocation
the epoch of that moment.
"""


@dataclass(frozen=True, slots=True)
class Revocable:
    """What revoking has to know of a certificate. Field meanings as in `CertificateRecord`.

    Attributes:
        revoked: whether it is, by whatever revocation.
        revoked_at: when this one certificate was revoked, or None where it wasn't, or only along with others.
    """

    fingerprint: bytes
    serial: str
    cluster_id: str
    project_id: str
    user_id: str
    not_after: datetime
    der: bytes
    revoked: bool
    revoked_at: datetime | None


def is_revoked() -> ColumnElement[bool]:
    """Whether a row of the table `certificate`, in the enclosing statement, is revoked: three probes of an index."""
    user_id, cluster_id = _certificate.c.user_id, _certificate.c.cluster_id
    nobody = literal("")
    return or_(
        _certificate.c.revoked_at.is_not(None),
        _covered(user_id, cluster_id),
        _covered(user_id, nobody),
        _covered(nobody, cluster_id),
    )


def _covered(user_id: ColumnElement[str], cluster_id: ColumnElement[str]) -> ColumnElement[bool]:
    standing = and_(
        _revocation.c.user_id == user_id,
        _revocation.c.cluster_id == cluster_id,
        stands_after(),
    )
    return select(literal(1)).select_from(_revocation).where(standing).correlate(_certificate).exists()


def stands_after() -> ColumnElement[bool]:
    """Whether a row of `revocation` is one of many that stands, and came after a row of `certificate`."""
    return and_(
        # Those of one certificate stand in the same index; their number must not matter here.
        _revocation.c.fingerprint.is_(None),
        _revocation.c.epoch > _certificate.c.epoch,
        _revocation.c.undone_at.is_(None),
    )


class Revocations:
    """What is not to be honoured any more."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def revoke(self, wanted: Revocation, event: AuditEvent) -> Revocation:
        """Make it durable, with the epoch that it makes; one certificate's row says so too. Raises Unavailable.

        What was recorded before is revoked, and what is asked for after this returns is not.
        """
        async with self._database.epoch(event) as (connection, epoch):
            made = await add_revocation(connection, wanted, epoch=epoch, changed=epoch)
            if made.fingerprint is not None:
                await _mark(connection, made.fingerprint)
        return made

    async def undo(self, revocation_id: int, *, by: str, at: datetime, event: AuditEvent) -> Revocation:
        """Let what it revoked be good again, unless something else revokes it too.

        Whether it may be undone is the use case's to say. Raises NotFound, or Conflict where it was undone already or
        its user is disabled.
        """
        this = _revocation.c.id == revocation_id
        async with self._database.epoch(event) as (connection, epoch):
            found = (await connection.execute(select(_revocation).where(this))).mappings().first()
            if found is None:
                raise NotFound("There is no such revocation.")
            if found["undone_at"] is not None:
                raise Conflict("This revocation was undone already.")
            if found["epoch"] == NO_END:
                raise Conflict(
                    "This revocation holds for as long as its user is disabled. Enable the user first."
                )
            undone = {"undone_at": at, "undone_by": by, "changed": epoch}
            await connection.execute(update(_revocation).where(this).values(undone))
            if found["fingerprint"] is not None:
                await _mark(connection, found["fingerprint"])
        return revocation_of({**found, **undone})

    async def find(self, wanted: str, *, cluster_id: str | None = None) -> tuple[Revocable, ...]:
        """The certificates of a fingerprint, credential number or serial, lower-case hex, in a cluster or everywhere.

        More than one only where two signers chose the same serial.
        """
        whole = len(wanted) == 64  # noqa: PLR2004 - hex digits of a SHA-256
        fingerprint = _certificate.c.fingerprint
        names = [fingerprint == bytes.fromhex(wanted)] if whole else number_or_serial(wanted)
        async with self._database.read() as connection:
            for named in names:
                query = revocable_query().where(named).limit(2)
                if cluster_id is not None:
                    query = query.where(_certificate.c.cluster_id == cluster_id)
                if found := (await connection.execute(query)).mappings().all():
                    return tuple(Revocable(**row) for row in found)
        return ()

    async def revocation(self, revocation_id: int) -> Revocation | None:
        return next(iter(await self._all(_newest(1).where(_revocation.c.id == revocation_id))), None)

    async def of_certificate(self, fingerprint: bytes) -> tuple[Revocation, ...]:
        """Those that stand of this one certificate alone, the newest first."""
        standing = and_(_revocation.c.fingerprint == fingerprint, _revocation.c.undone_at.is_(None))
        return await self._all(_newest(16).where(standing))

    async def of_cluster(
        self, project_id: str, cluster_id: str, *, limit: int, before: int | None = None
    ) -> tuple[Revocation, ...]:
        """Those about this cluster, undone ones too, the newest first; only those with ids under `before`."""
        here = and_(_revocation.c.project_id == project_id, _revocation.c.cluster_id == cluster_id)
        return await self._all(_page(limit, before).where(here))

    async def of_user(self, user_id: str, *, limit: int, before: int | None = None) -> tuple[Revocation, ...]:
        """Those about a user in all clusters, undone ones too, the newest first; only those with ids under `before`."""
        everywhere = and_(
            _revocation.c.user_id == user_id,
            _revocation.c.cluster_id == "",
            _revocation.c.fingerprint.is_(None),
        )
        return await self._all(_page(limit, before).where(everywhere))

    async def _all(self, query: Select[Any]) -> tuple[Revocation, ...]:
        async with self._database.read() as connection:
            return tuple(revocation_of(row) for row in (await connection.execute(query)).mappings())


def number_or_serial(wanted: str) -> list[ColumnElement[bool]]:
    """Conditions that find a certificate: by its credential number, then by its serial.

    The number comes first, since another signer may have chosen the same value as a serial.
    """
    return [_certificate.c.credential_number == wanted, _certificate.c.serial == wanted]


def revocable_query() -> Select[Any]:
    """Certificates as `Revocable` has them."""
    names = ("fingerprint", "serial", "cluster_id", "project_id", "user_id", "not_after", "der", "revoked_at")
    return select(*(_certificate.c[name] for name in names), is_revoked().label("revoked"))


def revocation_of(row: Mapping[Any, Any]) -> Revocation:
    """A row of the table `revocation`, all of its columns."""
    return Revocation(**{name: value for name, value in row.items() if name != "changed"})


async def add_revocation(
    connection: Transaction, wanted: Revocation, *, epoch: int, changed: int
) -> Revocation:
    """Write a revocation into the caller's transaction, which made the generation `changed`."""
    values = {
        "epoch": epoch,
        "changed": changed,
        "fingerprint": wanted.fingerprint,
        "user_id": wanted.user_id,
        "cluster_id": wanted.cluster_id,
        "project_id": wanted.project_id,
        "at": wanted.at,
        "by": wanted.by,
        "reason": wanted.reason,
        "note": wanted.note,
        "proved": wanted.proved,
    }
    query = insert(_revocation).values(values).returning(_revocation)
    return revocation_of((await connection.execute(query)).mappings().one())


async def revoke_disabled(connection: Transaction, wanted: Revocation, changed: int) -> None:
    """Revoke what a user has and gets, in the transaction that disables or deletes them. Twice is once."""
    without_end = _without_end(wanted.user_id)
    if (await connection.execute(select(_revocation.c.id).where(without_end))).first() is None:
        await add_revocation(connection, wanted, epoch=NO_END, changed=changed)


async def end_disabled(connection: Transaction, user_id: str, epoch: int) -> None:
    """What a user gets from now on is good, in the transaction that enables them; what they had stays revoked."""
    query = update(_revocation).where(_without_end(user_id))
    await connection.execute(query.values(epoch=epoch, changed=epoch))


def _without_end(user_id: str) -> ColumnElement[bool]:
    return and_(
        _revocation.c.user_id == user_id,
        _revocation.c.cluster_id == "",
        _revocation.c.fingerprint.is_(None),
        _revocation.c.epoch == NO_END,
    )


async def _mark(connection: Transaction, fingerprint: bytes) -> None:
    """Let a certificate's own row say what stands of it: the first of its revocations, or nothing."""
    standing = and_(_revocation.c.fingerprint == fingerprint, _revocation.c.undone_at.is_(None))
    query = select(_revocation).where(standing).order_by(_revocation.c.id).limit(1)
    first: Row[Any] | None = (await connection.execute(query)).first()
    said = (first.at, first.by, first.reason) if first is not None else (None, None, None)
    await connection.execute(
        update(_certificate)
        .where(_certificate.c.fingerprint == fingerprint)
        .values(dict(zip(("revoked_at", "revoked_by", "revoked_why"), said, strict=True)))
    )


def _newest(limit: int) -> Select[Any]:
    return select(_revocation).order_by(_revocation.c.id.desc()).limit(limit)


def _page(limit: int, before: int | None) -> Select[Any]:
    query = _newest(limit)
    return query if before is None else query.where(_revocation.c.id < before)
