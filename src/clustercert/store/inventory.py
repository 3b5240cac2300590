"""Every SQL statement that looks at issued certificates for people: lists, one certificate, what still holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Row,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    func,
    literal,
    not_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from clustercert.model import Revocation, number_of, without_credential_group
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.revocations import is_revoked, number_or_serial, revocation_of, stands_after
from clustercert.store.walk import BEHIND_ALL, FIRST, compares_rows, walk

T = TypeVar("T")

_certificate, _revocation = tables.certificate, tables.revocation

State = Literal["live", "revoked", "expired"]
"""`revoked` wins over `expired`: what was revoked says so for as long as it is kept."""

Along = Literal["user_id", "cluster_id", "project_id"]
"""Whose certificates are walked along, looking for those that are wanted: an index has them together."""

# Rows of an index that a page looks at, whatever it finds there: what it costs at most does not depend on the
# ledger's size.
EXAMINED = 2000

# As many ids as stand in one statement.
AT_ONCE = 500

FINGERPRINT_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Listed:
    """A certificate of the ledger, and what became of it. Field meanings as in `CertificateRecord`.

    Attributes:
        id: rises with each certificate, and is the order of lists.
        groups: its Kubernetes groups, the credential group aside.
        rule: of the policy, by which it was issued; None where an older program did not say.
        credential_number: that its credential group names; None where it has no such group.
        altered_at: when an altered copy of it was last reported, or None.
        revoked_at, revoked_by, revoked_why: of the revocation of this one certificate, or else of one that it falls
            under with others; all None where nothing revokes it.
        first_seen_at, last_seen_at: when an API server was seen to be asked with it, or None.
        der: empty in lists.
    """

    id: int
    fingerprint: bytes
    serial: str
    cluster_id: str
    project_id: str
    ca_id: str
    user_id: str
    user_name: str
    groups: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    key_type: str
    key_origin: str
    auth_method: str
    source_address: str
    request_id: str
    reason: str | None
    issued_at: datetime
    rule: str | None
    revoked_at: datetime | None
    revoked_by: str | None
    revoked_why: str | None
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    credential_number: str | None
    altered_at: datetime | None
    der: bytes = b""

    @property
    def bound_alone(self) -> bool:
        """Whether the credential group is its only group, so that a binding of that is all it may do."""
        return self.credential_number is not None and not self.groups

    def state(self, now: datetime) -> State:
        """What it is at a time."""
        if self.revoked_at is not None:
            return "revoked"
        return "live" if self.not_after > now else "expired"


_NAMES = [each.name for each in fields(Listed)]
_GROUPS, _SERIAL, _NUMBER = (_NAMES.index(name) for name in ("groups", "serial", "credential_number"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which certificates; what is None doesn't matter. `…_before` excludes its time, `…_after` includes it.

    Attributes:
        never_seen: only those that no API server was seen to be asked with.
    """

    project_id: str | None = None
    cluster_id: str | None = None
    user_id: str | None = None
    state: State | None = None
    expires_before: datetime | None = None
    expires_after: datetime | None = None
    key_origin: str | None = None
    seen_before: datetime | None = None
    seen_after: datetime | None = None
    never_seen: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a list, the newest first.

    Attributes:
        next: the `before` of the page after this one, or None at the end. A page may be short, or even empty, and have
            one after it all the same.
    """

    items: tuple[Listed, ...]
    next: int | None


class InventoryRows:
    """What the ledger holds of issued certificates."""

    def __init__(self, database: Database, examined: int = EXAMINED) -> None:
        self._database = database
        self._examined = examined

    async def page(
        self,
        wanted: Wanted,
        now: datetime,
        *,
        limit: int,
        before: int | None = None,
        along: Along | None = None,
    ) -> Page:
        """A page of those that are wanted, of ids under `before`.

        Looks at so many rows at most as were said, or at as many as the page has, all of them of who is wanted `along`.
        A page's end tells that there are some: without `along` they are of the project, if one is wanted, or else of
        the user, or the cluster.
        """
        all_of_it = {name: getattr(wanted, name) for name in _CONDITIONS}
        asked = {name: value for name, value in all_of_it.items() if value not in (None, False)}
        walked = along or next((name for name in _WALKED if name in asked), None)
        end_of_walk, matching = _statements(
            frozenset(asked), wanted.state, walked, by_rows=compares_rows(self._database)
        )
        values = {**asked, "now": now, "before": BEHIND_ALL if before is None else before, "lowest": FIRST}
        # The id of the last row that may be looked at; None where there are fewer, or where all are wanted.
        lowest = None
        async with self._database.read() as connection:
            if end_of_walk is not None:
                skipped = {"skipped": self._examined - 1}
                lowest = (await connection.execute(end_of_walk, values | skipped)).scalar()
            values |= {"lowest": lowest or FIRST, "limit": limit + 1}
            found = await explained(connection, (await connection.execute(matching, values)).all())
        if len(found) > limit:
            return Page(found[:limit], found[limit - 1].id)
        return Page(found, lowest)

    async def find(
        self, wanted: str, *, cluster_id: str | None = None, abbreviated: bool = False
    ) -> tuple[Listed, ...]:
        """Up to two certificates of that fingerprint, credential number or serial, in lower-case hex.

        `abbreviated` lets the beginning of a fingerprint do.
        """
        whole = len(wanted) == FINGERPRINT_DIGITS
        ways = [_fingerprint_begins(wanted)] if whole else number_or_serial(wanted)
        if abbreviated and not whole:
            ways.append(_fingerprint_begins(wanted))
        async with self._database.read() as connection:
            for named in ways:
                query = _whole().where(named).limit(2)
                if cluster_id is not None:
                    query = query.where(_certificate.c.cluster_id == cluster_id)
                if found := (await connection.execute(query)).all():
                    return await explained(connection, found)
        return ()


def listed_query(*more: Column[Any]) -> Select[Any]:
    """Certificates as `Listed` has them, and which revocation of many they fall under."""
    columns = (_certificate.c[each.name] for each in fields(Listed) if each.name != "der")
    return select(*columns, *more, covering().label("covering"))


@cache
def _whole() -> Select[Any]:
    return listed_query(_certificate.c.der)


def _off_index(column: Column[T]) -> ColumnElement[T]:
    """The column in a form that no index has: following that of the end of validity would need a sort by id."""
    return func.coalesce(column, column)


_not_after = _off_index(_certificate.c.not_after)

# What is asked of rows, by the field of `Wanted` that asks for it and that gives the value.
_CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "project_id": _certificate.c.project_id == bindparam("project_id"),
    "cluster_id": _certificate.c.cluster_id == bindparam("cluster_id"),
    "user_id": _certificate.c.user_id == bindparam("user_id"),
    "expires_before": _not_after < bindparam("expires_before"),
    "expires_after": _not_after >= bindparam("expires_after"),
    "key_origin": _certificate.c.key_origin == bindparam("key_origin"),
    "seen_before": _certificate.c.last_seen_at < bindparam("seen_before"),
    "seen_after": _certificate.c.last_seen_at >= bindparam("seen_after"),
    "never_seen": _certificate.c.last_seen_at.is_(None),
}
_STATES: Mapping[State | None, tuple[ColumnElement[bool], ...]] = {
    None: (),
    "live": (_not_after > bindparam("now"), not_(is_revoked())),
    "revoked": (is_revoked(),),
    "expired": (_not_after <= bindparam("now"), not_(is_revoked())),
}
# The first of these that is asked for is walked, unless somebody says: others' rows are a project's, and behind that
# a user has the fewest, as a rule.
_WALKED: tuple[Along, ...] = ("project_id", "user_id", "cluster_id")


@lru_cache(maxsize=128)
def _statements(
    asked: frozenset[str], state: State | None, walked: Along | None, *, by_rows: bool
) -> tuple[Select[int] | None, Select[Any]]:
    """Where the walk of a list with these conditions ends, and what it finds.

    Where every row of the walk is wanted, the page's last one ends it, and there is nothing to ask. Kept, since putting
    them together costs more than running them. `by_rows` as `walk` has it.
    """
    number = _certificate.c.id
    before, lowest = (bindparam(name, type_=number.type) for name in ("before", "lowest"))
    # What is walked says its own condition, which by itself would let PostgreSQL's planner stray from it.
    filters = [condition for name, condition in _CONDITIONS.items() if name in asked and name != walked]
    filters += _STATES[state]
    owned = None
    if walked is not None:
        owned = _certificate.c[walked], bindparam(walked, type_=_certificate.c[walked].type)
    rows = walk(number, lowest, before, owned, by_rows=by_rows)
    newest_first = rows.order(_certificate, newest_first=True)
    matching = listed_query().where(rows.condition, *filters).order_by(*newest_first)
    matching = matching.limit(bindparam("limit", type_=Integer))
    if not filters:
        return None, matching
    last = select(number).where(rows.condition).order_by(*newest_first).limit(1)
    return last.offset(bindparam("skipped", type_=Integer)), matching


def _fingerprint_begins(digits: str) -> ColumnElement[bool]:
    first, last = (bytes.fromhex(digits.ljust(FINGERPRINT_DIGITS, fill)) for fill in "0f")
    return _certificate.c.fingerprint.between(first, last)


def covering() -> ColumnElement[int | None]:
    """The id of a revocation of many that a row of `certificate` falls under: three probes, as in `is_revoked`."""
    user_id, cluster_id = _certificate.c.user_id, _certificate.c.cluster_id
    nobody = literal("")
    return func.coalesce(_first(user_id, cluster_id), _first(user_id, nobody), _first(nobody, cluster_id))


def _first(user_id: ColumnElement[str], cluster_id: ColumnElement[str]) -> ScalarSelect[int]:
    """Of a user's or a cluster's standing revocations, the first one after the certificate."""
    standing = and_(
        _revocation.c.user_id == user_id,
        _revocation.c.cluster_id == cluster_id,
        stands_after(),
    )
    # In the whole order of the index, though the fingerprint is none: PostgreSQL would sort them otherwise.
    order = (_revocation.c.fingerprint, _revocation.c.epoch)
    query = select(_revocation.c.id).where(standing).order_by(*order).limit(1)
    return query.correlate(_certificate).scalar_subquery()


async def explained(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> tuple[Listed, ...]:
    """The rows as nouns; those that fall under a revocation of many say what it says."""
    revocations = await revocations_of(connection, {row.covering for row in rows} - {None})
    return tuple(_explain(_parsed(row), revocations.get(row.covering)) for row in rows)


async def revocations_of(connection: AsyncConnection, ids: Iterable[int]) -> dict[int, Revocation]:
    """Revocations by id."""
    wanted, found = sorted(ids), {}
    for start in range(0, len(wanted), AT_ONCE):
        query = select(_revocation).where(_revocation.c.id.in_(wanted[start : start + AT_ONCE]))
        for row in (await connection.execute(query)).mappings():
            revocation = revocation_of(row)
            found[revocation.id] = revocation
    return found


def _parsed(row: Row[Any]) -> Listed:
    # The columns stand in the order of the fields, and what it falls under is the last.
    values: list[Any] = list(row[:-1])
    number = number_of(values[_NUMBER], values[_SERIAL], values[_GROUPS])
    values[_GROUPS] = without_credential_group(values[_GROUPS], number)
    values[_NUMBER] = number
    return Listed(*values)


def _explain(listed: Listed, revocation: Revocation | None) -> Listed:
    if listed.revoked_at is not None or revocation is None:
        return listed
    return replace(listed, revoked_at=revocation.at, revoked_by=revocation.by, revoked_why=revocation.reason)
