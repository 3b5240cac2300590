"""Lists of issued certificates."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    bindparam,
    func,
    not_,
    or_,
    select,
)

from clustercert.model import KeyOrigin
from clustercert.model.choices import CaState, CertificateState, CredentialKind
from clustercert.store import tables
from clustercert.store.certificates.views import (
    CertificateLookup,
    CertificateView,
    certificate_views,
    is_named,
    is_revoked,
    is_used_after_revocation,
    is_verification,
    view_query,
)
from clustercert.store.clusters.ca_rotations import OWN_USERS
from clustercert.store.clusters.overview import Projects, is_accepted_though_revoked
from clustercert.store.clusters.registry import select_named
from clustercert.store.engine.database import Database
from clustercert.store.engine.keyset_pagination import (
    AFTER_LAST_ID,
    FIRST_ID,
    compares_row_values,
    keyset_range,
)

_certificate, _cluster, _ca = tables.certificate, tables.cluster, tables.client_ca

Scope = Literal["project", "user", "cluster"]
"""The filter whose index a list uses. The list scans only the rows that match this filter."""

# A page reads at most this many index entries, even if few of them match the filter. So the cost of a page does not
# grow with the ledger.
MAX_SCANNED = 2000
# The maximum number of ids in one statement.
_MAX_IDS = 500


@dataclass(frozen=True, slots=True)
class CertificateFilter:
    """Selects certificates. A field that is `None` does not filter. The described fields are parameters of the API.

    A field `…_before` excludes the given time, and a field `…_after` includes it. `user_name` is compared as
    `belongs_to` says. `certificate` is in lower-case hex here, see `recorder.certificate_name`.
    """

    project: str | None = None
    user: Annotated[str | None, "Only certificates of this user, by id."] = None
    user_name: Annotated[
        str | None, "Only certificates of users with this name, DOMAIN/NAME or common name."
    ] = None
    state: Annotated[
        CertificateState | None,
        "Only certificates in this state. `revoked` includes expired certificates.",
    ] = None
    expires_before: Annotated[
        datetime | None, "Only certificates that expire before this time, RFC 3339."
    ] = None
    expires_after: Annotated[
        datetime | None, "Only certificates that expire at or after this time, RFC 3339."
    ] = None
    seen_before: Annotated[
        datetime | None, "Only certificates whose use was last reported before this time, RFC 3339."
    ] = None
    seen_after: Annotated[
        datetime | None, "Only certificates whose use was last reported at or after this time, RFC 3339."
    ] = None
    key_origin: Annotated[KeyOrigin | None, "Only certificates with this key origin."] = None
    kind: Annotated[CredentialKind | None, "Only certificates, or only tokens of service accounts."] = None
    never_seen: Annotated[bool, "Only certificates whose use has never been reported by an API server."] = (
        False
    )
    access_request: Annotated[str | None, "Only certificates of this access request, by id."] = None
    cluster: Annotated[str | None, "Only certificates for this cluster, by id."] = None
    domain: Annotated[str | None, "Only certificates for clusters of this domain, by the domain's name."] = (
        None
    )
    certificate: Annotated[
        str | None,
        "Only certificates with this credential number, serial, or fingerprint, complete or its first digits. Also a"
        " credential id of an audit log: `X509SHA256=` and a fingerprint, or `JTI=` and the id of a token.",
    ] = None
    revoked_use_after: Annotated[
        datetime | None,
        "Only revoked certificates that an API server accepted after the revocation, at or after this time, RFC 3339.",
    ] = None
    accepted: Annotated[
        bool,
        "Only revoked certificates that have not expired, in clusters where nothing stops them: what the overview"
        " counts as `revoked_accepted`.",
    ] = False
    without_own: Annotated[
        bool, "Without the certificates of the service itself, with which it verifies clusters."
    ] = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page of certificates, newest first, which may be incomplete or empty even if there is a next page.

    `next` is the value of `before` that requests the next page, or None on the last page.
    """

    items: tuple[CertificateView, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class PlaceNames:
    """Names of clusters and projects by id, without removed clusters and projects.

    Attributes:
        domains: the name of each project's domain, by the project's id.
    """

    clusters: Mapping[str, str]
    projects: Mapping[str, str]
    domains: Mapping[str, str]


class InventoryQueries(CertificateLookup):
    """Lists and finds issued certificates."""

    def __init__(self, database: Database, max_scanned: int = MAX_SCANNED) -> None:
        super().__init__(database)
        self._max_scanned = max_scanned

    async def of_verifications(self, fingerprints: Collection[bytes]) -> frozenset[bytes]:
        """Return the fingerprints of the certificates with `CertificateRecord.is_verification`."""
        column = _certificate.c.fingerprint
        query = select(column).where(column.in_(fingerprints), is_verification())
        return frozenset(fingerprint for (fingerprint,) in await self._rows(query))

    async def page(
        self,
        certificate_filter: CertificateFilter,
        now: datetime,
        *,
        limit: int,
        before: int | None = None,
        scope: Scope | None = None,
        projects: Projects = None,
    ) -> Page:
        """Return a page of the certificates that the filter selects, with ids below `before`.

        Scans the index of the column of `scope`, by default the first filter in `_SCOPES` that is given. The end of an
        incomplete page reveals how many rows have the same value in this column, so the caller must be allowed to
        see all these rows. With a filter that selects few certificates, scans only those; see `_few`.

        Args:
            projects: the ids of the projects whose certificates are listed; None for all.
        """
        given = {name: getattr(certificate_filter, name) for name in _CONDITIONS}
        given = {name: value for name, value in given.items() if value not in (None, False)}
        scope = scope or next((name for name in _SCOPES if name in given), None)
        last_scanned, matching = _statements(
            frozenset(given),
            certificate_filter.state,
            scope,
            by_row_values=compares_row_values(self._database),
        )
        values = {
            **given,
            "now": now,
            "before": AFTER_LAST_ID if before is None else before,
            "lowest": FIRST_ID,
        }
        values["user_domain"], values["user_name_in_domain"] = name_parts(certificate_filter.user_name or "")
        if few := _few(certificate_filter, scope, projects, now):
            matching = _statements(frozenset(given), certificate_filter.state, None, by_row_values=False)[1]
            return await self._page_of(few, matching, values, limit)
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

    async def _page_of(
        self,
        few: Sequence[ColumnElement[bool]],
        matching: Select[Any],
        values: Mapping[str, object],
        limit: int,
    ) -> Page:
        """Return a page of the certificates that meet the conditions `few`, and that `matching` selects."""
        # A function wraps the column, so that the planner uses the index of one of the conditions.
        row_id = func.coalesce(_certificate.c.id, _certificate.c.id)
        scanned = select(row_id).where(*few, row_id < values["before"]).order_by(row_id.desc())
        found: list[CertificateView] = []
        async with self._database.read() as connection:
            ids = (await connection.scalars(scanned.limit(self._max_scanned))).all()
            for start in range(0, len(ids), _MAX_IDS):
                part = matching.where(_certificate.c.id.in_(ids[start : start + _MAX_IDS]))
                left = {"limit": limit + 1 - len(found)}
                found += await certificate_views(connection, part, {**values, **left})
                if len(found) > limit:
                    return Page(tuple(found[:limit]), found[limit - 1].id)
        return Page(tuple(found), ids[-1] if len(ids) == self._max_scanned else None)

    async def live(self, now: datetime, *, limit: int) -> tuple[CertificateView, ...]:
        """Return at most `limit` valid and unrevoked certificates, latest expiry first."""
        query = view_query().where(_certificate.c.not_after > now, ~is_revoked())
        async with self._database.read() as connection:
            latest = query.order_by(_certificate.c.not_after.desc()).limit(limit)
            return await certificate_views(connection, latest)

    async def place_names(self, places: Iterable[tuple[str, str]]) -> PlaceNames:
        """Return the names of clusters and projects, given pairs of cluster id and project id."""
        ids = list(places)
        project, domain = tables.project, tables.domain
        clusters = await self._rows(
            select(_cluster.c.id, _cluster.c.name).where(_cluster.c.id.in_({each for each, _ in ids}))
        )
        projects = await self._rows(
            select(project.c.id, project.c.name, domain.c.name.label("domain"))
            .join(domain, domain.c.id == project.c.domain_id)
            .where(project.c.id.in_({each for _, each in ids}))
        )
        return PlaceNames(
            {row.id: row.name for row in clusters},
            {row.id: row.name for row in projects},
            {row.id: row.domain for row in projects},
        )

    async def shown_names(self, ids: Collection[str]) -> Mapping[str, str]:
        """Return the names of the clusters and projects with these ids, as DOMAIN/PROJECT/CLUSTER and DOMAIN/NAME."""
        clusters = select_named(_cluster.c.id).where(_cluster.c.id.in_(ids))
        name = (tables.domain.c.name + "/" + tables.project.c.name).label("shown_name")
        projects = select(tables.project.c.id, name).join(
            tables.domain, tables.domain.c.id == tables.project.c.domain_id
        )
        rows = await self._rows(clusters), await self._rows(projects.where(tables.project.c.id.in_(ids)))
        return {row.id: row.shown_name for found in rows for row in found}

    async def ca_states(self, ca_ids: Collection[str]) -> dict[str, CaState]:
        """Return the states of client CAs, by id. Omits the CAs of removed clusters."""
        return {
            row.id: row.state
            for row in await self._rows(select(_ca.c.id, _ca.c.state).where(_ca.c.id.in_(ca_ids)))
        }


# A function wraps the column, so that the planner uses no index on the column. If the planner scanned rows in the order
# of expiry, it would have to sort them by id.
_not_after = func.coalesce(_certificate.c.not_after, _certificate.c.not_after)


def belongs_to(
    name: ColumnElement[str], domain: ColumnElement[str], name_in_domain: ColumnElement[str]
) -> ColumnElement[bool]:
    """Return a condition that matches certificates of the users with a name.

    Matches the user's name and the common name in the certificate. Also matches the current name of a known user, if
    the name is `DOMAIN/NAME`.

    Args:
        name: the name as it was given.
        domain, name_in_domain: the parts of the name, from `name_parts`.
    """
    user, federated = tables.user, tables.federated_user
    built_in = select(user.c.id).join(tables.domain, tables.domain.c.id == user.c.domain_id)
    return or_(
        _certificate.c.user_name == name,
        _certificate.c.username == name,
        _certificate.c.user_id.in_(
            built_in.where(tables.domain.c.name == domain, user.c.name == name_in_domain)
        ),
        _certificate.c.user_id.in_(
            select(federated.c.id).where(federated.c.domain == domain, federated.c.name == name_in_domain)
        ),
    )


def name_parts(name: str) -> tuple[str, str]:
    """Split `DOMAIN/NAME`. The name part is empty, and so matches no user, if there is no slash."""
    domain, _, name_in_domain = name.partition("/")
    return domain, name_in_domain


# Conditions, keyed by the `CertificateFilter` field that provides the value.
_CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "project": _certificate.c.project_id == bindparam("project"),
    "cluster": _certificate.c.cluster_id == bindparam("cluster"),
    "user": _certificate.c.user_id == bindparam("user"),
    "user_name": belongs_to(
        bindparam("user_name"), bindparam("user_domain"), bindparam("user_name_in_domain")
    ),
    "expires_before": _not_after < bindparam("expires_before"),
    "expires_after": _not_after >= bindparam("expires_after"),
    "key_origin": _certificate.c.key_origin == bindparam("key_origin"),
    "kind": _certificate.c.kind == bindparam("kind"),
    "seen_before": _certificate.c.last_seen_at < bindparam("seen_before"),
    "seen_after": _certificate.c.last_seen_at >= bindparam("seen_after"),
    "never_seen": _certificate.c.last_seen_at.is_(None),
    "access_request": _certificate.c.access_request_id == bindparam("access_request"),
    "without_own": _certificate.c.user_id.not_in(OWN_USERS),
}
_STATES: Mapping[CertificateState | None, tuple[ColumnElement[bool], ...]] = {
    None: (),
    "live": (_not_after > bindparam("now"), not_(is_revoked())),
    "revoked": (is_revoked(),),
    "expired": (_not_after <= bindparam("now"), not_(is_revoked())),
}
# The first of these filters that is given selects the index. A list of one project's certificates must not
# read rows of other projects, and a user usually has fewer rows than a cluster.
_SCOPES: tuple[Scope, ...] = ("project", "user", "cluster")


def _few(
    selected: CertificateFilter, scope: Scope | None, projects: Projects, now: datetime
) -> list[ColumnElement[bool]]:
    """Return the conditions that select few certificates by an index; none if the filter has no such condition.

    They include the condition on the column of `scope`, so that the end of an incomplete page reveals nothing more.
    """
    conditions: list[ColumnElement[bool]] = []
    if projects is not None:
        conditions.append(_certificate.c.project_id.in_(projects))
    if selected.domain is not None:
        project, domain = tables.project, tables.domain
        of_domain = select(project.c.id).join(domain, domain.c.id == project.c.domain_id)
        conditions.append(_certificate.c.project_id.in_(of_domain.where(domain.c.name == selected.domain)))
    if selected.certificate is not None:
        conditions.append(is_named(selected.certificate))
    if selected.revoked_use_after is not None:
        conditions += [
            _certificate.c.revoked_used_at >= selected.revoked_use_after,
            is_used_after_revocation(),
        ]
    if selected.accepted:
        conditions += is_accepted_though_revoked(projects, now)
    if scope is None and selected.state == "live" and selected.expires_before is not None:
        conditions += [_certificate.c.not_after > now, _certificate.c.not_after < selected.expires_before]
    if conditions and scope is not None:
        conditions.append(_certificate.c[f"{scope}_id"] == getattr(selected, scope))
    return conditions


@lru_cache(maxsize=128)
def _statements(
    given: frozenset[str], state: CertificateState | None, scope: Scope | None, *, by_row_values: bool
) -> tuple[Select[int] | None, Select[Any]]:
    """Build the query for the last row that a page may scan, and the query for the rows that match.

    The first query is None if the scope is the only condition, because then the size of the page limits the scan.
    Results are cached, because building the queries costs more than running them. `by_row_values`: see `keyset_range`.
    """
    row_id = _certificate.c.id
    before, lowest = (bindparam(name, type_=row_id.type) for name in ("before", "lowest"))
    # Leave out the simple condition on the scope's column, because `keyset_range` adds a condition on this column. With
    # the simple condition, PostgreSQL's planner could choose another index.
    filters = [condition for name, condition in _CONDITIONS.items() if name in given and name != scope]
    filters += _STATES[state]
    owner = None
    if scope is not None:
        column = _certificate.c[f"{scope}_id"]
        owner = column, bindparam(scope, type_=column.type)
    rows = keyset_range(row_id, lowest, before, owner, by_row_values=by_row_values)
    newest_first = rows.order(_certificate, newest_first=True)
    matching = view_query().where(rows.condition, *filters).order_by(*newest_first)
    matching = matching.limit(bindparam("limit", type_=Integer))
    if not filters:
        return None, matching
    last = select(row_id).where(rows.condition).order_by(*newest_first).limit(1)
    return last.offset(bindparam("skipped", type_=Integer)), matching
