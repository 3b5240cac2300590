"""Queries for access reports: counts, groups and users of a cluster's unexpired certificates."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    FromClause,
    String,
    Subquery,
    TableValuedAlias,
    and_,
    case,
    column,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
)

from clustercert.model.errors import InvalidRequest
from clustercert.model.kubernetes import AUTHENTICATED, MASTERS
from clustercert.store import tables
from clustercert.store.certificates.access_controls import AccessQueries
from clustercert.store.certificates.views import (
    CertificateView,
    certificate_views,
    is_revoked,
    is_verification,
    view_query,
)

_certificate = tables.certificate
# A report counts at most this many certificates, the longest-lived, so that its cost is bounded: half a second.
MAX_COUNTED = 100_000
MAX_GROUPS = 500
MAX_USED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessFilter:
    """Selects unexpired certificates of a cluster, and says which of them give access. `None` does not filter.

    Attributes:
        group: a Kubernetes group that the API server sees.
        search: a part of a user's name or of a group, in upper or lower case.
        with_verifications: whether to report the certificates used to verify clusters and client CAs.
        webhook: whether the webhook, or the deletion of the accounts of tokens, stops revoked credentials in the
            cluster.
        binding: whether the deletion of bindings stops revoked certificates in the cluster.
        used: the ids of certificates that were used after their revocation, which are always reported.
        recently_used: those of `used` that give access, because an API server allowed their use within the last day.
    """

    cluster_id: str
    now: datetime
    user_id: str | None = None
    group: str | None = None
    search: str | None = None
    with_verifications: bool = False
    webhook: bool = False
    binding: bool = False
    used: Collection[int] = ()
    recently_used: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class AccessTotals:
    """Counts of unexpired certificates and their users. `with_access` and `users_with_access` have access now.

    Attributes:
        verifications: the certificates that are left out of the other counts, because they verify clusters or CAs.
        last_seen_at: when a certificate that gives access was last used, or None.
    """

    certificates: int
    with_access: int
    revoked: int
    users: int
    users_with_access: int
    verifications: int
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class GroupTotals:
    """A Kubernetes group, and the number of users and certificates that have access through it."""

    name: str
    users: int
    credentials: int
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class UserTotals:
    """A user's unexpired certificates for a cluster.

    Attributes:
        certificates, with_access: how many there are, and how many of them give access.
        until: when the last certificate that gives access expires; None if no certificate gives access.
        last_id: the highest id of the certificates, which is the cursor of the page after this user.
    """

    user_name: str
    user_id: str
    certificates: int
    with_access: int
    until: datetime | None
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    last_id: int

    @property
    def key(self) -> tuple[str, str]:
        return self.user_name, self.user_id


class AccessReportQueries(AccessQueries):
    """Reads access reports. The database counts, so that the cost for the event loop depends only on the page."""

    async def used_after_revocation(self, cluster_id: str, now: datetime) -> tuple[CertificateView, ...]:
        """Return the unexpired certificates that were used after their revocation, latest use first."""
        query = (
            view_query()
            .where(
                _certificate.c.cluster_id == cluster_id,
                _certificate.c.not_after > now,
                _certificate.c.revoked_used_at.is_not(None),
            )
            .order_by(_certificate.c.revoked_used_at.desc())
            .limit(MAX_USED)
        )
        async with self._database.read() as connection:
            views = await certificate_views(connection, query)
        return tuple(each for each in views if each.used_after_revocation_at is not None)

    async def totals(self, selection: AccessFilter) -> AccessTotals:
        rows = self._selected(selection)
        reported = not_(rows.c.left_out)
        with_access = and_(reported, self._has_access(rows, selection))
        query = select(
            func.count().filter(reported),
            func.count().filter(with_access),
            func.count().filter(and_(reported, rows.c.revoked)),
            func.count(rows.c.user_id.distinct()).filter(reported),
            func.count(rows.c.user_id.distinct()).filter(with_access),
            func.count().filter(rows.c.left_out),
            func.max(rows.c.last_seen_at).filter(with_access),
        )
        (row,) = await self._rows(query)
        return AccessTotals(*row)

    async def groups(self, selection: AccessFilter) -> tuple[GroupTotals, ...]:
        """Return the groups in certificates that give access, sorted by name.

        Returns at most MAX_GROUPS groups: system:masters, and those with the most certificates. Leaves out
        system:authenticated.
        """
        rows = self._selected(selection)
        group = self._elements(rows)
        certificates = func.count(rows.c.id.distinct())
        query = (
            select(
                group.c.value,
                func.count(rows.c.user_id.distinct()),
                certificates,
                func.max(rows.c.last_seen_at),
            )
            .select_from(rows.join(group, true()))
            .where(not_(rows.c.left_out), self._has_access(rows, selection), group.c.value != AUTHENTICATED)
            .group_by(group.c.value)
            .order_by(case((group.c.value == MASTERS, 0), else_=1), certificates.desc(), group.c.value)
            .limit(MAX_GROUPS)
        )
        return tuple(
            sorted((GroupTotals(*row) for row in await self._rows(query)), key=lambda each: each.name)
        )

    async def users(
        self, selection: AccessFilter, *, after: int | None, limit: int
    ) -> tuple[UserTotals, ...]:
        """Return a page of users, sorted by name and id.

        `after` is `last_id` of the last user on the previous page. Raises InvalidRequest if there is no certificate
        with this id.
        """
        rows = self._selected(selection)
        key, has_access = tuple_(rows.c.user_name, rows.c.user_id), self._has_access(rows, selection)
        query = (
            select(
                rows.c.user_name,
                rows.c.user_id,
                func.count(),
                func.count().filter(has_access),
                func.max(rows.c.not_after).filter(has_access),
                func.min(rows.c.first_seen_at),
                func.max(rows.c.last_seen_at),
                func.max(rows.c.id),
            )
            .where(not_(rows.c.left_out))
            .group_by(rows.c.user_name, rows.c.user_id)
            .order_by(rows.c.user_name, rows.c.user_id)
            .limit(limit)
        )
        if after is not None:
            last = await self._row(
                select(_certificate.c.user_name, _certificate.c.user_id).where(
                    _certificate.c.id == after, _certificate.c.cluster_id == selection.cluster_id
                )
            )
            if last is None:
                raise InvalidRequest(
                    "cursor: the certificate of this page was deleted. Begin with the first page."
                )
            query = query.where(key > tuple_(*last))
        return tuple(UserTotals(*row) for row in await self._rows(query))

    async def groups_of_users(
        self, selection: AccessFilter, user_ids: Collection[str]
    ) -> Mapping[tuple[str, str], Collection[str]]:
        """Return the groups in the certificates of these users, by `UserTotals.key`."""
        rows = self._selected(selection, user_ids)
        group = self._elements(rows)
        query = select(rows.c.user_name, rows.c.user_id, group.c.value)
        query = query.select_from(rows.join(group, true())).where(not_(rows.c.left_out))
        groups: dict[tuple[str, str], set[str]] = {}
        for name, user_id, value in await self._rows(query.distinct()):
            groups.setdefault((name, user_id), set()).add(value)
        return groups

    async def certificates_of_users(
        self, selection: AccessFilter, user_ids: Collection[str], *, most: int
    ) -> tuple[CertificateView, ...]:
        """Return at most `most` certificates of each user, latest expiry first."""
        rows = self._selected(selection, user_ids)
        order = rows.c.not_after.desc(), rows.c.id.desc()
        rank = func.row_number().over(partition_by=(rows.c.user_name, rows.c.user_id), order_by=order)
        ranked = select(rows.c.id, rank.label("rank")).where(not_(rows.c.left_out)).subquery()
        ids = select(ranked.c.id).where(ranked.c.rank <= most)
        query = view_query().where(_certificate.c.id.in_(ids))
        async with self._database.read() as connection:
            ordered = query.order_by(_certificate.c.not_after.desc(), _certificate.c.id.desc())
            return await certificate_views(connection, ordered)

    def _selected(self, selection: AccessFilter, user_ids: Collection[str] | None = None) -> Subquery:
        """Return a subquery for the selected certificates: its columns, `revoked` and `left_out`."""
        certificate = _certificate.c
        conditions = [certificate.cluster_id == selection.cluster_id, certificate.not_after > selection.now]
        if selection.user_id is not None:
            conditions.append(certificate.user_id == selection.user_id)
        if user_ids is not None:
            conditions.append(certificate.user_id.in_(user_ids))
        if selection.group not in (None, AUTHENTICATED):
            conditions.append(self._has_group(_certificate, lambda group: group == selection.group))
        if selection.search is not None:
            text = selection.search
            conditions.append(
                or_(
                    certificate.user_name.icontains(text, autoescape=True),
                    self._has_group(_certificate, lambda group: group.icontains(text, autoescape=True)),
                )
            )
        left_out: ColumnElement[bool] = false()
        if not selection.with_verifications:
            left_out = and_(is_verification(), certificate.id.not_in(selection.used))
        columns = ("id", "user_id", "user_name", "groups", "not_after", "first_seen_at", "last_seen_at")
        return (
            select(
                *(certificate[name] for name in columns),
                is_revoked().label("revoked"),
                left_out.label("left_out"),
            )
            .where(*conditions)
            .order_by(certificate.not_after.desc())
            .limit(MAX_COUNTED)
            .subquery()
        )

    def _has_access(self, rows: Subquery, selection: AccessFilter) -> ColumnElement[bool]:
        """Return a condition that matches certificates that give access, as far as this service knows."""
        if not (selection.webhook or selection.binding):
            return true()
        # The API server never asks the webhook about members of system:masters, who can also remove the bindings.
        stopped = [rows.c.revoked, not_(self._has_group(rows, lambda group: group == MASTERS))]
        if not selection.webhook:
            stopped.append(func.json_array_length(rows.c.groups) == 0)
        return or_(not_(and_(*stopped)), rows.c.id.in_(selection.recently_used))

    def _has_group(
        self, rows: FromClause, condition: Callable[[ColumnElement[str]], ColumnElement[bool]]
    ) -> ColumnElement[bool]:
        """Return a condition that matches rows with a group that meets the condition."""
        group = self._elements(rows)
        found = select(literal(1)).select_from(group).where(condition(group.c.value))
        return found.correlate(rows).exists()

    def _elements(self, rows: FromClause) -> TableValuedAlias:
        """Return a table with one row for each group, in the column `value`."""
        is_sqlite = self._database.url.get_backend_name() == "sqlite"
        elements = func.json_each if is_sqlite else func.json_array_elements_text
        return elements(rows.c.groups).table_valued(column("value", String))
