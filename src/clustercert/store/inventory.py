"""Queries for lists of issued certificates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, not_, or_, select

from clustercert.model.choices import CertificateState
from clustercert.store import tables
from clustercert.store.certificate_view import (
    CertificateLookup,
    CertificateView,
    certificate_views,
    view_query,
)
from clustercert.store.engine.database import Database
from clustercert.store.engine.keyset_pagination import (
    AFTER_LAST_ID,
    FIRST_ID,
    compares_row_values,
    keyset_range,
)
from clustercert.store.revocation_state import is_revoked

_certificate = tables.certificate

Scope = Literal["project_id", "user_id", "cluster_id"]
"""The column whose index a list scans, for all rows with one value in it."""

# A page reads at most this many index entries, even if few match. So its cost does not grow with the ledger.
MAX_SCANNED = 2000


@dataclass(frozen=True, slots=True)
class CertificateFilter:
    """Selects certificates. A field that is `None` selects all. `…_before` excludes its time, `…_after` includes it.

    `user_name` is a name of users, or a common name. `never_seen` selects only certificates that no API server has
    reported as used.
    """

    project_id: str | None = None
    cluster_id: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    state: CertificateState | None = None
    expires_before: datetime | None = None
    expires_after: datetime | None = None
    key_origin: str | None = None
    seen_before: datetime | None = None
    seen_after: datetime | None = None
    never_seen: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page of certificates, newest first, which may be short or empty even if there is a next page.

    `next` is the argument `before` for the next page, or None on the last page.
    """

    items: tuple[CertificateView, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class PlaceNames:
    """Names of clusters and projects by id. Those that were removed have none."""

    clusters: Mapping[str, str]
    projects: Mapping[str, str]


class InventoryQueries(CertificateLookup):
    """Lists and finds issued certificates."""

    def __init__(self, database: Database, max_scanned: int = MAX_SCANNED) -> None:
        super().__init__(database)
        self._max_scanned = max_scanned

    async def page(
        self,
        wanted: CertificateFilter,
        now: datetime,
        *,
        limit: int,
        before: int | None = None,
        scope: Scope | None = None,
    ) -> Page:
        """Return a page of the certificates that the filter selects, with ids below `before`.

        Scans the index on `scope`, by default the first column in `_SCOPES` that the filter restricts. The point where
        a short page ends reveals how many rows the scope has, so the caller must be allowed to see all of them.
        """
        given = {name: getattr(wanted, name) for name in _CONDITIONS}
        given = {name: value for name, value in given.items() if value not in (None, False)}
        scope = scope or next((name for name in _SCOPES if name in given), None)
        last_scanned, matching = _statements(
            frozenset(given), wanted.state, scope, by_row_values=compares_row_values(self._database)
        )
        values = {
            **given,
            "now": now,
            "before": AFTER_LAST_ID if before is None else before,
            "lowest": FIRST_ID,
        }
        # The id of the last row that this page may scan; None if fewer rows are left, or if all rows match.
        lowest = None
        async with self._database.read() as connection:
            if last_scanned is not None:
                skipped = {"skipped": self._max_scanned - 1}
                lowest = (await connection.execute(last_scanned, values | skipped)).scalar()
            values |= {"lowest": lowest or FIRST_ID, "limit": limit + 1}
            found = await certificate_views(connection, matching, values)
        if len(found) > limit:
            return Page(found[:limit], found[limit - 1].id)
        return Page(found, lowest)

    async def place_names(self, places: Iterable[tuple[str, str]]) -> PlaceNames:
        """Return the names of clusters and projects, given pairs of cluster id and project id."""
        found = []
        for table, ids in zip((tables.cluster, tables.project), zip(*places, strict=True), strict=False):
            query = select(table.c.id, table.c.name).where(table.c.id.in_(set(ids)))
            found.append({row.id: row.name for row in await self._rows(query)})
        return PlaceNames(*found) if found else PlaceNames({}, {})


# The column is wrapped, so that no index on it is used: a scan in the order of expiry would need a sort by id.
_not_after = func.coalesce(_certificate.c.not_after, _certificate.c.not_after)

# Conditions, keyed by the `CertificateFilter` field that provides the value.
_CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "project_id": _certificate.c.project_id == bindparam("project_id"),
    "cluster_id": _certificate.c.cluster_id == bindparam("cluster_id"),
    "user_id": _certificate.c.user_id == bindparam("user_id"),
    "user_name": or_(
        _certificate.c.user_name == bindparam("user_name"), _certificate.c.username == bindparam("user_name")
    ),
    "expires_before": _not_after < bindparam("expires_before"),
    "expires_after": _not_after >= bindparam("expires_after"),
    "key_origin": _certificate.c.key_origin == bindparam("key_origin"),
    "seen_before": _certificate.c.last_seen_at < bindparam("seen_before"),
    "seen_after": _certificate.c.last_seen_at >= bindparam("seen_after"),
    "never_seen": _certificate.c.last_seen_at.is_(None),
}
_STATES: Mapping[CertificateState | None, tuple[ColumnElement[bool], ...]] = {
    None: (),
    "live": (_not_after > bindparam("now"), not_(is_revoked())),
    "revoked": (is_revoked(),),
    "expired": (_not_after <= bindparam("now"), not_(is_revoked())),
}
# The first of these conditions that a list has chooses the index. A list of one project must not read rows of other
# projects, and a user usually has fewer rows than a cluster.
_SCOPES: tuple[Scope, ...] = ("project_id", "user_id", "cluster_id")


@lru_cache(maxsize=128)
def _statements(
    given: frozenset[str], state: CertificateState | None, scope: Scope | None, *, by_row_values: bool
) -> tuple[Select[int] | None, Select[Any]]:
    """Build the query for the last row that a page may scan, and the query for the rows that match.

    The first is None if the scope is the only condition, because then the page limit bounds the scan. Cached, because
    building the queries costs more than running them. `by_row_values`: see `keyset_range`.
    """
    row_id = _certificate.c.id
    before, lowest = (bindparam(name, type_=row_id.type) for name in ("before", "lowest"))
    # Leave out the scope's own condition, because PostgreSQL's planner could choose another index for it.
    filters = [condition for name, condition in _CONDITIONS.items() if name in given and name != scope]
    filters += _STATES[state]
    owner = None
    if scope is not None:
        owner = _certificate.c[scope], bindparam(scope, type_=_certificate.c[scope].type)
    rows = keyset_range(row_id, lowest, before, owner, by_row_values=by_row_values)
    newest_first = rows.order(_certificate, newest_first=True)
    matching = view_query().where(rows.condition, *filters).order_by(*newest_first)
    matching = matching.limit(bindparam("limit", type_=Integer))
    if not filters:
        return None, matching
    last = select(row_id).where(rows.condition).order_by(*newest_first).limit(1)
    return last.offset(bindparam("skipped", type_=Integer)), matching
