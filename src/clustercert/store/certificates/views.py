"""The state of issued certificates: views of their rows with revocations, and how to find one certificate."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    ScalarSelect,
    Select,
    and_,
    func,
    literal,
    or_,
    select,
)

from clustercert.model import CertificateRecord, Revocation
from clustercert.model.choices import CertificateState
from clustercert.model.issuance import VERIFICATIONS
from clustercert.store import tables
from clustercert.store.engine.queries import Queries
from clustercert.store.engine.transaction import Transaction

T = TypeVar("T")

_certificate, _revocation = tables.certificate, tables.revocation

# The maximum number of ids in one statement.
_MAX_IDS = 500


def is_revoked() -> ColumnElement[bool]:
    """Return a condition that matches revoked rows of `certificate`, with three index lookups for each row."""
    return or_(
        _certificate.c.revoked_at.is_not(None),
        *(_wider_revocations(literal(1), *scope).exists() for scope in _scopes()),
    )


def is_verification() -> ColumnElement[bool]:
    """Return a condition that matches certificates with `CertificateRecord.is_verification`."""
    return or_(
        *(
            and_(_certificate.c.user_id == user_id, _certificate.c.auth_method == method)
            for user_id, method in VERIFICATIONS.items()
        )
    )


def wider_revocation_id() -> ColumnElement[int | None]:
    """Return the id of a user or cluster revocation that covers a row of `certificate`, with three index lookups."""
    return func.coalesce(*(_first_wider_revocation(_revocation.c.id, *scope) for scope in _scopes()))


def is_used_after_revocation() -> ColumnElement[bool]:
    """Return a condition that matches certificates with `CertificateView.used_after_revocation_at`."""
    wider = (_first_wider_revocation(_revocation.c.at, *scope) for scope in _scopes())
    return _certificate.c.revoked_used_at > func.coalesce(_certificate.c.revoked_at, *wider)


def revoked_later() -> ColumnElement[bool]:
    """Return a condition that matches user and cluster revocations that are newer than a certificate and not undone."""
    return and_(
        # This condition skips revocations of individual certificates, which are in the same index.
        _revocation.c.fingerprint.is_(None),
        _revocation.c.epoch > _certificate.c.epoch,
        _revocation.c.undone_at.is_(None),
    )


def revocation_of(row: Mapping[Any, Any]) -> Revocation:
    """Convert a row that has all columns of the table `revocation`."""
    return Revocation(**{name: value for name, value in row.items() if name != "changed"})


async def revocations_by_id(connection: Transaction, ids: Iterable[int]) -> dict[int, Revocation]:
    ordered, found = sorted(ids), {}
    for start in range(0, len(ordered), _MAX_IDS):
        query = select(_revocation).where(_revocation.c.id.in_(ordered[start : start + _MAX_IDS]))
        for row in (await connection.execute(query)).mappings():
            found[row["id"]] = revocation_of(row)
    return found


_Scope = tuple[ColumnElement[str], ColumnElement[str]]


def _scopes() -> tuple[_Scope, ...]:
    """Return the (user, cluster) pairs of revocations that cover a certificate.

    An empty string means all users or all clusters.
    """
    user_id, cluster_id, everything = _certificate.c.user_id, _certificate.c.cluster_id, literal("")
    return (user_id, cluster_id), (user_id, everything), (everything, cluster_id)


def _wider_revocations(
    column: ColumnElement[T], user_id: ColumnElement[str], cluster_id: ColumnElement[str]
) -> Select[T]:
    in_scope = and_(_revocation.c.user_id == user_id, _revocation.c.cluster_id == cluster_id, revoked_later())
    return select(column).select_from(_revocation).where(in_scope).correlate(_certificate)


def _first_wider_revocation(
    column: Column[T], user_id: ColumnElement[str], cluster_id: ColumnElement[str]
) -> ScalarSelect[T]:
    query = _wider_revocations(column, user_id, cluster_id)
    # Order by all columns of the index, although the fingerprint is NULL in revocations of users and clusters. Without
    # the fingerprint, PostgreSQL would not use the order of the index and would sort the rows.
    return query.order_by(_revocation.c.fingerprint, _revocation.c.epoch).limit(1).scalar_subquery()


FINGERPRINT_DIGITS = 64
# The minimum length of an abbreviated fingerprint. Shorter abbreviations are ambiguous among thousands of certificates.
MIN_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateView(CertificateRecord):
    """A certificate in the ledger with its current state.

    Attributes:
        id: increases with each certificate; lists are sorted by id.
        revoked_at, revoked_by, revocation_reason: from the certificate's own revocation, or else from a revocation of
            its user or cluster; all None if the certificate is not revoked.
        first_seen_at, last_seen_at: when an API server first and last reported the certificate's use, or None.
        altered_at: when an API server last reported a different encoding of the certificate, or None.
        revoked_used_at: when an API server last allowed a request with the revoked certificate, to the minute, or None.
        refused_at: when the webhook last denied a request because the certificate was revoked, to the minute, or None.
        der: the certificate in DER; empty in lists.
    """

    id: int
    revoked_at: datetime | None
    revoked_by: str | None
    revocation_reason: str | None
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    altered_at: datetime | None
    revoked_used_at: datetime | None = None
    refused_at: datetime | None = None
    der: bytes = b""

    @property
    def used_after_revocation_at(self) -> datetime | None:
        """When an API server last allowed a request with the certificate after its revocation, or None."""
        return self._if_after_revocation(self.revoked_used_at)

    @property
    def refused_after_revocation_at(self) -> datetime | None:
        """When the webhook last denied a request because of the current revocation, or None."""
        return self._if_after_revocation(self.refused_at)

    def _if_after_revocation(self, at: datetime | None) -> datetime | None:
        return at if at is not None and self.revoked_at is not None and at > self.revoked_at else None

    @property
    def has_only_credential_group(self) -> bool:
        """Whether the certificate has no group except its credential group."""
        return not self.groups

    def state(self, now: datetime) -> CertificateState:
        """Return the certificate's state at a time."""
        if self.revoked_at is not None:
            return "revoked"
        return "live" if self.not_after > now else "expired"


@cache
def view_query(*, with_der: bool = False) -> Select[Any]:
    """Return the basic query for `certificate_views`. Callers add conditions and an order to the query."""
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
class VisibleCertificates:
    """The certificates that a caller may find: their own, and the certificates of all users in `project_ids`."""

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
        visible: VisibleCertificates | None = None,
        abbreviated: bool = False,
    ) -> tuple[CertificateView, ...]:
        """Find up to two certificates by fingerprint, credential number or serial, in lower-case hex.

        With `abbreviated`, `name` may also be the first digits of a fingerprint, at least MIN_DIGITS. Returns two
        certificates if these digits are ambiguous, or if two signers chose the same serial. Searches only `visible`
        certificates, so that an abbreviation reveals nothing about other certificates.
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
        if visible is not None:
            query = query.where(visible.condition())
        async with self._database.read() as connection:
            for condition in conditions:
                if found := await certificate_views(connection, query.where(condition)):
                    return found
        return ()


def is_named(name: str) -> ColumnElement[bool]:
    """Return a condition that matches certificates by credential number, serial or the first digits of a fingerprint.

    `name`: at most 64 digits in lower-case hex.
    """
    of_number = or_(_certificate.c.credential_number == name, _certificate.c.serial == name)
    return or_(of_number, _fingerprint_begins(name))


def _fingerprint_begins(digits: str) -> ColumnElement[bool]:
    first, last = (bytes.fromhex(digits.ljust(FINGERPRINT_DIGITS, fill)) for fill in "0f")
    return _certificate.c.fingerprint.between(first, last)
