"""Queries for issued certificates: their state, lists, access reports, and their deletion."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Integer,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    delete,
    func,
    literal,
    not_,
    or_,
    select,
)

from clustercert.model import AuditEvent, CertificateRecord, ClusterOptions, Revocation
from clustercert.model.choices import CaState, CertificateState
from clustercert.model.issuance import VERIFICATIONS
from clustercert.store import tables
from clustercert.store.clusters import options_of, select_named
from clustercert.store.engine.database import Database
from clustercert.store.engine.keyset_pagination import (
    AFTER_LAST_ID,
    FIRST_ID,
    compares_row_values,
    keyset_range,
)
from clustercert.store.engine.queries import BATCH, Queries
from clustercert.store.engine.transaction import Transaction
from clustercert.store.events import record_events

_certificate, _revocation, _cluster = tables.certificate, tables.revocation, tables.cluster
_token, _unknown, _ca = tables.webhook_token, tables.unknown_identity, tables.client_ca

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
    return func.coalesce(*(_first_wider_revocation(*scope) for scope in _scopes()))


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
    column: ColumnElement[int], user_id: ColumnElement[str], cluster_id: ColumnElement[str]
) -> Select[int]:
    in_scope = and_(_revocation.c.user_id == user_id, _revocation.c.cluster_id == cluster_id, revoked_later())
    return select(column).select_from(_revocation).where(in_scope).correlate(_certificate)


def _first_wider_revocation(user_id: ColumnElement[str], cluster_id: ColumnElement[str]) -> ScalarSelect[int]:
    query = _wider_revocations(_revocation.c.id, user_id, cluster_id)
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
        revoked_used_at: when an API server last allowed a request with the revoked certificate, to the hour, or None.
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
    der: bytes = b""

    @property
    def used_after_revocation_at(self) -> datetime | None:
        """When an API server last allowed a request with the certificate after its revocation, to the hour, or None."""
        used_at, revoked_at = self.revoked_used_at, self.revoked_at
        return used_at if used_at is not None and revoked_at is not None and used_at > revoked_at else None

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


def _fingerprint_begins(digits: str) -> ColumnElement[bool]:
    first, last = (bytes.fromhex(digits.ljust(FINGERPRINT_DIGITS, fill)) for fill in "0f")
    return _certificate.c.fingerprint.between(first, last)


Scope = Literal["project_id", "user_id", "cluster_id"]
"""The column whose index a list uses. The list scans only the rows with one value in this column."""

# A page reads at most this many index entries, even if few of them match the filter. So the cost of a page does not
# grow with the ledger.
MAX_SCANNED = 2000


@dataclass(frozen=True, slots=True)
class CertificateFilter:
    """Selects certificates. A field that is `None` does not filter.

    A field `…_before` excludes the given time, and a field `…_after` includes it. `user_name` is compared as
    `belongs_to` says. `never_seen` selects only certificates whose use no API server has reported.
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
    access_request_id: str | None = None


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
    ) -> Page:
        """Return a page of the certificates that the filter selects, with ids below `before`.

        Scans the index on the column `scope`, by default the first column in `_SCOPES` that the filter restricts. The
        end of an incomplete page reveals how many rows have the same value in this column, so the caller must be
        allowed to see all these rows.
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
    "project_id": _certificate.c.project_id == bindparam("project_id"),
    "cluster_id": _certificate.c.cluster_id == bindparam("cluster_id"),
    "user_id": _certificate.c.user_id == bindparam("user_id"),
    "user_name": belongs_to(
        bindparam("user_name"), bindparam("user_domain"), bindparam("user_name_in_domain")
    ),
    "expires_before": _not_after < bindparam("expires_before"),
    "expires_after": _not_after >= bindparam("expires_after"),
    "key_origin": _certificate.c.key_origin == bindparam("key_origin"),
    "seen_before": _certificate.c.last_seen_at < bindparam("seen_before"),
    "seen_after": _certificate.c.last_seen_at >= bindparam("seen_after"),
    "never_seen": _certificate.c.last_seen_at.is_(None),
    "access_request_id": _certificate.c.access_request_id == bindparam("access_request_id"),
}
_STATES: Mapping[CertificateState | None, tuple[ColumnElement[bool], ...]] = {
    None: (),
    "live": (_not_after > bindparam("now"), not_(is_revoked())),
    "revoked": (is_revoked(),),
    "expired": (_not_after <= bindparam("now"), not_(is_revoked())),
}
# The first of these columns that a filter restricts selects the index. A list of one project's certificates must not
# read rows of other projects, and a user usually has fewer rows than a cluster.
_SCOPES: tuple[Scope, ...] = ("project_id", "user_id", "cluster_id")


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
        owner = _certificate.c[scope], bindparam(scope, type_=_certificate.c[scope].type)
    rows = keyset_range(row_id, lowest, before, owner, by_row_values=by_row_values)
    newest_first = rows.order(_certificate, newest_first=True)
    matching = view_query().where(rows.condition, *filters).order_by(*newest_first)
    matching = matching.limit(bindparam("limit", type_=Integer))
    if not filters:
        return None, matching
    last = select(row_id).where(rows.condition).order_by(*newest_first).limit(1)
    return last.offset(bindparam("skipped", type_=Integer)), matching


@dataclass(frozen=True, slots=True)
class UnknownIdentity:
    """A user name with groups, seen by the API server in client certificates that are not in the ledger.

    Attributes:
        fingerprints: the fingerprints of the last certificates seen, at most 16, newest last, in lower-case hex.
        hashes: approximate number of certificates seen. A different encoding of a certificate counts as a new
            certificate.
    """

    fingerprints: tuple[str, ...]
    hashes: int
    username: str
    groups: tuple[str, ...]
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class ClusterControls:
    """A cluster's options, which say how the cluster rejects revoked certificates. `name` is `Cluster.shown_name`."""

    name: str
    options: ClusterOptions


@dataclass(frozen=True, slots=True)
class CertifiedCluster:
    """A cluster for which a user has certificates. `until` is the time when the last of these certificates expires."""

    cluster_id: str
    project_id: str
    until: datetime


@dataclass(frozen=True, slots=True)
class LostRole:
    """A role that a user or the members of a group lose in a project, or the roles of a group that its members lose.

    Attributes:
        user_ids: the users; `None` for all members of the group.
        group_id: the group; `None` if only the users are affected.
        project_ids: the projects; `None` for all projects in which the group has a role.
    """

    user_ids: tuple[str, ...] | None = None
    group_id: str | None = None
    project_ids: tuple[str, ...] | None = None

    def users(self) -> ColumnElement[bool]:
        """Return a condition that matches the certificates of the affected users."""
        return _certificate.c.user_id.in_(self.members() if self.user_ids is None else self.user_ids)

    def clusters(self) -> ColumnElement[bool]:
        """Return a condition that matches the clusters of the affected projects."""
        return _cluster.c.project_id.in_(self.projects() if self.project_ids is None else self.project_ids)

    def members(self) -> Select[Any]:
        """Return a query for the ids of the group's members."""
        return select(tables.group_member.c.user_id).where(tables.group_member.c.group_id == self.group_id)

    def projects(self) -> Select[Any]:
        """Return a query for the ids of the projects in which the group has a role."""
        assignment = tables.role_assignment
        return select(assignment.c.project_id).where(assignment.c.actor_id == self.group_id).distinct()


@dataclass(frozen=True, slots=True)
class LiveCertificates:
    """How many valid and unrevoked certificates a user has for a cluster, and when the last of these expires."""

    user_id: str
    cluster_id: str
    project_id: str
    certificates: int
    until: datetime


@dataclass(frozen=True, slots=True)
class WebhookContact:
    """When an API server last called the webhook with a token, and when it last sent audit events; None if never."""

    asked_at: datetime | None
    events_at: datetime | None


class AccessQueries(Queries):
    """Reads the data for access reports."""

    async def clusters_of_user(
        self, user_id: str, now: datetime, *, limit: int
    ) -> tuple[CertifiedCluster, ...]:
        """Return the clusters for which a user has unexpired certificates, revoked or not, latest expiry first."""
        until = func.max(_certificate.c.not_after)
        query = (
            select(_certificate.c.cluster_id, _certificate.c.project_id, until)
            .where(_certificate.c.user_id == user_id, _certificate.c.not_after > now)
            .group_by(_certificate.c.cluster_id, _certificate.c.project_id)
            .order_by(until.desc(), _certificate.c.cluster_id)
            .limit(limit)
        )
        return tuple(CertifiedCluster(*row) for row in await self._rows(query))

    async def of_deleted_group(self, group_id: str, *, limit: int) -> LostRole:
        """Return the roles that the members of a group lose, with at most `limit` members and projects.

        The result stays the same when the group is deleted.
        """
        lost = LostRole(group_id=group_id)
        async with self._database.read() as connection:
            users, projects = [
                tuple((await connection.scalars(query.limit(limit))).all())
                for query in (lost.members(), lost.projects())
            ]
        return LostRole(users, group_id, projects)

    async def live_of_lost_role(
        self, lost: LostRole, now: datetime, *, limit: int
    ) -> tuple[LiveCertificates, ...]:
        """Return the live certificates that a lost role concerns, by user and cluster. Excludes removed clusters.

        Reads the index entries of all unexpired certificates in these clusters, and the users' rows.
        """
        pair = (_certificate.c.user_id, _cluster.c.id, _cluster.c.project_id)
        query = (
            select(*pair, func.count(), func.max(_certificate.c.not_after))
            .join(_cluster, _cluster.c.id == _certificate.c.cluster_id)
            .where(lost.clusters(), _certificate.c.not_after > now, lost.users(), ~is_revoked())
            .group_by(*pair)
            .order_by(*pair)
            .limit(limit)
        )
        return tuple(LiveCertificates(*row) for row in await self._rows(query))

    async def unknown(self, cluster_id: str, *, limit: int) -> tuple[UnknownIdentity, ...]:
        """Return a cluster's unknown identities, most recently seen first."""
        query = (
            select(*(_unknown.c[each.name] for each in fields(UnknownIdentity)))
            .where(_unknown.c.cluster_id == cluster_id)
            .order_by(_unknown.c.last_seen_at.desc(), _unknown.c.identity)
            .limit(limit)
        )
        return tuple(
            UnknownIdentity(tuple(fingerprints), hashes, username, tuple(groups), *seen)
            for fingerprints, hashes, username, groups, *seen in await self._rows(query)
        )

    async def never_called(self, *, limit: int) -> tuple[ClusterControls, ...]:
        """Return clusters whose API server has never called the webhook."""
        called = select(_token.c.cluster_id).where(_token.c.last_asked_at.is_not(None))
        without = select_named(_cluster.c.options).where(_cluster.c.id.not_in(called))
        query = without.order_by(_cluster.c.id).limit(limit)
        return tuple(
            ClusterControls(row.shown_name, options_of(row.options)) for row in await self._rows(query)
        )

    async def webhook_contacts(self, cluster_id: str) -> tuple[WebhookContact, ...]:
        """For each webhook token of the cluster, return when the API server last contacted the service."""
        query = select(_token.c.last_asked_at, _token.c.last_events_at).where(
            _token.c.cluster_id == cluster_id
        )
        return tuple(WebhookContact(*row) for row in await self._rows(query))


_FIELDS = [field.name for field in fields(CertificateRecord)]


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """A row of the ledger, which may have been tampered with. `ca_der` is None if the certificate's CA was deleted."""

    id: int
    record: CertificateRecord
    ca_der: bytes | None


class CertificateMaintenance(Queries):
    """Counts, reads and deletes certificates in the ledger."""

    async def live(self, now: datetime, horizons: Sequence[datetime]) -> tuple[int, tuple[int, ...]]:
        """Return how many certificates are valid now, and how many of these expire by each time in `horizons`.

        Excludes certificates that were revoked individually. Includes certificates that only a revocation of
        their user or cluster covers, because excluding them would require a scan of all certificates.
        """
        ends_after_now = _certificate.c.not_after > now
        counts = [func.count().filter(_certificate.c.not_after <= horizon) for horizon in horizons]
        query = select(func.count(), *counts).where(ends_after_now, _certificate.c.revoked_at.is_(None))
        ((total, *windows),) = await self._rows(query)
        return total, tuple(windows)

    async def count_live(
        self, now: datetime, *, user_id: str | None = None, cluster_id: str | None = None
    ) -> int:
        """Count the valid and unrevoked certificates of a user, of a cluster, or of a user for a cluster.

        The count for a user and a cluster reads the index entries of all unexpired certificates for the cluster, and
        the rows of the user.
        """
        query = select(func.count()).where(_certificate.c.not_after > now, ~is_revoked())
        if user_id is not None:
            query = query.where(_certificate.c.user_id == user_id)
        if cluster_id is not None:
            query = query.where(_certificate.c.cluster_id == cluster_id)
        return await self._scalar(query) or 0

    async def count_expired(self, ended_before: datetime) -> int:
        """Count the certificates that expired before a time."""
        query = select(func.count()).where(_certificate.c.not_after < ended_before)
        return await self._scalar(query) or 0

    async def certificates_after(self, row_id: int, limit: int) -> list[StoredCertificate]:
        """Return at most `limit` rows with higher ids than `row_id`, sorted by id. Raises Unavailable."""
        query = (
            select(
                *(_certificate.c[name] for name in ("id", *_FIELDS)), _ca.c.certificate_der.label("ca_der")
            )
            .outerjoin(_ca, _ca.c.id == _certificate.c.ca_id)
            .where(_certificate.c.id > row_id)
            .order_by(_certificate.c.id)
            .limit(limit)
        )
        return [_stored(row._asdict()) for row in await self._rows(query)]

    async def prune(self, ended_before: datetime, event: Callable[[int], AuditEvent]) -> int:
        """Delete a batch of certificates that expired before a time, oldest first.

        Returns the number of deleted certificates.

        Also deletes the revocations of these individual certificates, but not the audit events of their issuance.
        `event` creates an audit event from the number of deleted certificates, and is not called if the number is 0.
        """
        ended = (
            select(_certificate.c.fingerprint)
            .where(_certificate.c.not_after < ended_before)
            .order_by(_certificate.c.not_after)
            .limit(BATCH)
        )
        async with self._database.transaction() as connection:
            fingerprints = (await connection.execute(ended)).scalars().all()
            these = delete(_certificate).where(_certificate.c.fingerprint.in_(fingerprints))
            count = (await connection.execute(these)).rowcount
            # Keep revocations of users and clusters, because such revocations also cover other certificates.
            await connection.execute(delete(_revocation).where(_revocation.c.fingerprint.in_(fingerprints)))
            if count:
                await record_events(connection, (event(count),))
        return count


def _stored(row: dict[str, Any]) -> StoredCertificate:
    row_id, ca_der, groups = row.pop("id"), row.pop("ca_der"), row["groups"]
    # The column `groups` is JSON, so a row that was tampered with may contain any value.
    row["groups"] = tuple(map(str, groups)) if isinstance(groups, list) else ()
    return StoredCertificate(row_id, CertificateRecord(**row), ca_der)
