"""Queries for who has access to a cluster besides the live certificates, and which controls would end it."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    func,
    select,
)

from clustercert.store import tables
from clustercert.store.certificates.views import is_revoked
from clustercert.store.clusters.enforcement_state import EnforcementQueries
from clustercert.store.clusters.registry import is_enforced_inside, select_named

_certificate, _cluster = tables.certificate, tables.cluster
_token, _unknown = tables.webhook_token, tables.unknown_identity


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


class AccessQueries(EnforcementQueries):
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

    async def unguarded(self, *, limit: int) -> tuple[str, ...]:
        """Return the names of clusters that have no control and whose API server has never called the webhook.

        The names are those of `Cluster.shown_name`.
        """
        called = select(_token.c.cluster_id).where(_token.c.last_asked_at.is_not(None))
        without = select_named().where(_cluster.c.id.not_in(called), ~is_enforced_inside())
        query = without.order_by(_cluster.c.id).limit(limit)
        return tuple(row.shown_name for row in await self._rows(query))
