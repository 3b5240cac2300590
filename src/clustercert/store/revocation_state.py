"""SQL expressions for whether a certificate is revoked, and by which revocation."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, func, literal, or_, select

from clustercert.model import Revocation
from clustercert.store import tables
from clustercert.store.engine.transaction import Transaction

_certificate, _revocation = tables.certificate, tables.revocation

# At most this many ids in one statement.
_MAX_IDS = 500


def is_revoked() -> ColumnElement[bool]:
    """Match rows of `certificate` in the enclosing statement that are revoked. Takes three index probes."""
    return or_(
        _certificate.c.revoked_at.is_not(None),
        *(_wider_revocations(literal(1), *scope).exists() for scope in _scopes()),
    )


def wider_revocation_id() -> ColumnElement[int | None]:
    """Return the id of a user or cluster revocation that covers a row of `certificate`. Takes three index probes."""
    return func.coalesce(*(_first_wider_revocation(*scope) for scope in _scopes()))


def revoked_later() -> ColumnElement[bool]:
    """Match rows of `revocation` for a user or cluster that have not been undone and are newer than the certificate."""
    return and_(
        # This condition skips rows about individual certificates, which are in the same index.
        _revocation.c.fingerprint.is_(None),
        _revocation.c.epoch > _certificate.c.epoch,
        _revocation.c.undone_at.is_(None),
    )


def revocation_of(row: Mapping[Any, Any]) -> Revocation:
    """Map a row of the table `revocation` that has all columns."""
    return Revocation(**{name: value for name, value in row.items() if name != "changed"})


async def revocations_by_id(connection: Transaction, ids: Iterable[int]) -> dict[int, Revocation]:
    wanted, found = sorted(ids), {}
    for start in range(0, len(wanted), _MAX_IDS):
        query = select(_revocation).where(_revocation.c.id.in_(wanted[start : start + _MAX_IDS]))
        for row in (await connection.execute(query)).mappings():
            found[row["id"]] = revocation_of(row)
    return found


_Scope = tuple[ColumnElement[str], ColumnElement[str]]


def _scopes() -> tuple[_Scope, ...]:
    """Return the (user, cluster) pairs of revocations that cover a certificate. An empty string means all."""
    user_id, cluster_id, everything = _certificate.c.user_id, _certificate.c.cluster_id, literal("")
    return (user_id, cluster_id), (user_id, everything), (everything, cluster_id)


def _wider_revocations(
    column: ColumnElement[int], user_id: ColumnElement[str], cluster_id: ColumnElement[str]
) -> Select[int]:
    in_scope = and_(_revocation.c.user_id == user_id, _revocation.c.cluster_id == cluster_id, revoked_later())
    return select(column).select_from(_revocation).where(in_scope).correlate(_certificate)


def _first_wider_revocation(user_id: ColumnElement[str], cluster_id: ColumnElement[str]) -> ScalarSelect[int]:
    query = _wider_revocations(_revocation.c.id, user_id, cluster_id)
    # Order by all columns of the index, although the fingerprint is NULL in these rows. Otherwise PostgreSQL would
    # sort.
    return query.order_by(_revocation.c.fingerprint, _revocation.c.epoch).limit(1).scalar_subquery()
