"""The certificate view that all lists and lookups share: its columns, query and row mapper."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, or_, select

from clustercert.model import CertificateRecord, Revocation
from clustercert.model.choices import CertificateState
from clustercert.store import tables
from clustercert.store.engine.queries import Queries
from clustercert.store.engine.transaction import Transaction
from clustercert.store.revocation_state import revocations_by_id, wider_revocation_id

_certificate = tables.certificate

FINGERPRINT_DIGITS = 64
# Fewer digits begin several fingerprints in a ledger of a few thousand certificates.
MIN_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateView(CertificateRecord):
    """A certificate in the ledger with its current state.

    Attributes:
        id: increases with each certificate; lists are ordered by it.
        revoked_at, revoked_by, revocation_reason: from the certificate's own revocation, or else from a revocation of
            its user or cluster; all None if it is not revoked.
        first_seen_at, last_seen_at: when an API server first and last reported its use, or None.
        altered_at: when an API server last reported another encoding of it, or None.
        revoked_used_at: when an API server last allowed a request after its revocation, to the hour, or None.
        der: the certificate; empty in lists.
    """

    id: int
    revoked_at: datetime | None
    revoked_by: str | None
    revocation_reason: str | None
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    altered_at: datetime | None
    revoked_used_at: datetime | None = None
    der: bytes = b""

    @property
    def used_after_revocation_at(self) -> datetime | None:
        """When an API server last allowed a request after the present revocation, to the hour, or None."""
        used_at, revoked_at = self.revoked_used_at, self.revoked_at
        return used_at if used_at is not None and revoked_at is not None and used_at > revoked_at else None

    @property
    def has_only_credential_group(self) -> bool:
        """Whether its credential group is its only group."""
        return not self.groups

    def state(self, now: datetime) -> CertificateState:
        """Return the certificate's state at a time."""
        if self.revoked_at is not None:
            return "revoked"
        return "live" if self.not_after > now else "expired"


@cache
def view_query(*, with_der: bool = False) -> Select[Any]:
    """Return the query that `certificate_views` runs, to which callers add conditions and an order."""
    names = [each.name for each in fields(CertificateView) if with_der or each.name != "der"]
    stored = {"revocation_reason": "revoked_why"}
    columns = (_certificate.c[stored.get(name, name)].label(name) for name in names)
    return select(*columns, wider_revocation_id().label("wider_revocation_id"))


async def certificate_views(
    connection: Transaction, query: Select[Any], values: Mapping[str, object] | None = None
) -> tuple[CertificateView, ...]:
    """Run a query that was made from `view_query`, and map its rows."""
    rows = (await connection.execute(query, values)).all()
    revocations = await revocations_by_id(connection, {row.wider_revocation_id for row in rows} - {None})
    return tuple(_view(row._asdict(), revocations) for row in rows)


def _view(row: dict[str, Any], revocations: Mapping[int, Revocation]) -> CertificateView:
    revocation = revocations.get(row.pop("wider_revocation_id"))
    row["groups"] = tuple(row["groups"])
    if row["revoked_at"] is None and revocation is not None:
        row |= {
            "revoked_at": revocation.at,
            "revoked_by": revocation.by,
            "revocation_reason": revocation.reason,
        }
    return CertificateView(**row)


@dataclass(frozen=True, slots=True)
class Reach:
    """The certificates that a caller may find: their own, and those of all users in some projects."""

    user_id: str
    project_ids: Collection[str] = ()

    def condition(self) -> ColumnElement[bool]:
        return or_(_certificate.c.user_id == self.user_id, _certificate.c.project_id.in_(self.project_ids))


class CertificateLookup(Queries):
    """Finds individual certificates."""

    async def find(
        self,
        name: str,
        *,
        cluster_id: str | None = None,
        project_id: str | None = None,
        reach: Reach | None = None,
        abbreviated: bool = False,
    ) -> tuple[CertificateView, ...]:
        """Find up to two certificates by fingerprint, credential number or serial, in lower-case hex.

        Finds two only if two signers chose the same serial, or if `abbreviated` allows `name` to be the beginning of a
        fingerprint, of at least MIN_DIGITS. Certificates out of `reach` do not count, so that an abbreviation tells
        nothing about them.
        """
        # Look for the credential number first, because another signer may have chosen the same value as a serial.
        conditions = [_certificate.c.credential_number == name, _certificate.c.serial == name]
        if len(name) == FINGERPRINT_DIGITS:
            conditions = [_fingerprint_begins(name)]
        elif abbreviated and len(name) >= MIN_DIGITS:
            conditions.append(_fingerprint_begins(name))
        query = view_query(with_der=True).limit(2)
        if cluster_id is not None:
            query = query.where(_certificate.c.cluster_id == cluster_id)
        if project_id is not None:
            query = query.where(_certificate.c.project_id == project_id)
        if reach is not None:
            query = query.where(reach.condition())
        async with self._database.read() as connection:
            for condition in conditions:
                if found := await certificate_views(connection, query.where(condition)):
                    return found
        return ()


def _fingerprint_begins(digits: str) -> ColumnElement[bool]:
    first, last = (bytes.fromhex(digits.ljust(FINGERPRINT_DIGITS, fill)) for fill in "0f")
    return _certificate.c.fingerprint.between(first, last)
