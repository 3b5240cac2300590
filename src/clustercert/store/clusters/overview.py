"""Counts for an overview: live certificates and their holders, access requests, clusters and client CAs.

Each method takes the ids of projects, and counts only what belongs to these projects. `None` means all projects.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select, true

from clustercert.model.access_requests import OPEN_STATES
from clustercert.model.choices import EnforcementState
from clustercert.model.requests import AuthMethod
from clustercert.store import tables
from clustercert.store.certificates.views import certificate_views, is_revoked, view_query
from clustercert.store.clusters.ca_rotations import OWN_USERS, RUNNING
from clustercert.store.clusters.enforcement_state import enforcement_state
from clustercert.store.engine.queries import Queries

_certificate, _cluster, _ca = tables.certificate, tables.cluster, tables.client_ca
_rotation, _request, _unknown = tables.ca_rotation, tables.access_request, tables.unknown_identity

Projects = Collection[str] | None

MACHINE_METHODS: tuple[AuthMethod, ...] = ("access_key", "keystone_key", "keystone_app")
"""How machines authenticate, besides tokens of OIDC issuers whose users are machines."""

UNENFORCED: tuple[EnforcementState, ...] = ("none", "unreviewed")
"""The states of clusters whose API servers accept revoked certificates."""

# The states of client CAs that API servers may trust.
TRUSTED = ("next", "active", "retiring")
# The maximum number of certificates that `revoked_uses` reads.
_MAX_USES = 1000


@dataclass(frozen=True, slots=True)
class LiveCounts:
    """How many certificates are live, and who holds them. Leaves out the service's own certificates.

    Attributes:
        people: users with a live certificate that they got after a login.
        machines: users with a live certificate that they got with an access key, an application credential of Keystone,
            or a token of an issuer for machines. A user who did both counts as both.
        ending: how many of these certificates end by the given time.
    """

    people: int
    machines: int
    certificates: int
    ending: int


@dataclass(frozen=True, slots=True)
class UnknownCounts:
    """Identities in client certificates that are not in the ledger, and the number of clusters that reported them."""

    identities: int
    clusters: int


@dataclass(frozen=True, slots=True)
class RunningRotations:
    """Rotations of client CAs.

    Attributes:
        running: all that are neither complete nor aborted.
        failing: the running ones whose last attempt to go on failed.
        ready: the running ones that wait for somebody to complete them, while no certificate of the old CA is valid.
    """

    running: int
    failing: int
    ready: int


class OverviewQueries(Queries):
    """Counts what an overview shows."""

    async def live(
        self, projects: Projects, now: datetime, until: datetime, machine_issuers: Collection[str]
    ) -> LiveCounts:
        """Count the live certificates and their holders. Reads each live certificate once.

        With `projects`, leaves out certificates for removed clusters.

        Args:
            until: the time by which the certificates end that count as ending.
            machine_issuers: the URLs of the OIDC issuers whose users are machines.
        """
        ending = func.count().filter(_certificate.c.not_after <= until).label("ending")
        # A function wraps the column, so that SQLite does not scan all certificates in the order of the users.
        user_id = func.coalesce(_certificate.c.user_id, _certificate.c.user_id).label("user_id")
        user = (user_id, _certificate.c.auth_method)
        users = (
            select(*user, func.count().label("certificates"), ending)
            .where(
                _certificate.c.not_after > now,
                user_id.not_in(OWN_USERS),
                of_clusters(_certificate.c.cluster_id, projects),
                ~is_revoked(),
            )
            .group_by(*user)
            .subquery()
        )
        federated = tables.federated_user
        issuer = and_(federated.c.id == users.c.user_id, federated.c.issuer.in_(machine_issuers))
        is_machine = or_(users.c.auth_method.in_(MACHINE_METHODS), federated.c.id.is_not(None))
        query = select(
            func.count(case((~is_machine, users.c.user_id)).distinct()),
            func.count(case((is_machine, users.c.user_id)).distinct()),
            func.coalesce(func.sum(users.c.certificates), 0),
            func.coalesce(func.sum(users.c.ending), 0),
        ).select_from(users.outerjoin(federated, issuer))
        [(people, machines, certificates, ending_of_all)] = await self._rows(query)
        return LiveCounts(people, machines, int(certificates), int(ending_of_all))

    async def requests(self, projects: Projects, now: datetime) -> Mapping[str, int]:
        """Count the open access requests by state, without those whose time is over."""
        query = (
            select(_request.c.state, func.count())
            .where(_request.c.state.in_(OPEN_STATES), _request.c.due_at > now, _of_requests(projects))
            .group_by(_request.c.state)
        )
        found = {row[0]: row[1] for row in await self._rows(query)}
        return {state: found.get(state, 0) for state in OPEN_STATES}

    async def requests_ending(self, projects: Projects, now: datetime, until: datetime) -> int:
        """Count the active access requests that end by a time."""
        ends = _request.c.due_at.between(now, until)
        query = select(func.count()).where(_request.c.state == "active", ends, _of_requests(projects))
        return await self._scalar(query) or 0

    async def unknown(self, projects: Projects, since: datetime) -> UnknownCounts:
        """Count the unknown identities that were first seen at a time or later."""
        query = select(func.count(), func.count(_unknown.c.cluster_id.distinct())).where(
            _unknown.c.first_seen_at >= since, of_clusters(_unknown.c.cluster_id, projects)
        )
        [row] = await self._rows(query)
        return UnknownCounts(*row)

    async def revoked_uses(self, projects: Projects, since: datetime) -> int:
        """Count the certificates that an API server accepted after their revocation, at a time or later; at most 1000.

        A use that the service knows of again counts at most once an hour, see `CredentialUsageQueries`.
        """
        query = view_query().where(_certificate.c.revoked_used_at >= since)
        if projects is not None:
            # A function wraps the column, so that SQLite uses the small index on the times.
            project_id = func.coalesce(_certificate.c.project_id, _certificate.c.project_id)
            query = query.where(project_id.in_(projects))
        async with self._database.read() as connection:
            found = await certificate_views(connection, query.limit(_MAX_USES))
        return sum(each.used_after_revocation_at is not None for each in found)

    async def revoked_accepted(self, projects: Projects, now: datetime) -> int:
        """Count the certificates that match `is_accepted_though_revoked`."""
        query = select(func.count()).where(*is_accepted_though_revoked(projects, now))
        return await self._scalar(query) or 0

    async def enforcement(self, projects: Projects, now: datetime) -> Mapping[EnforcementState, int]:
        """Count the clusters in each state of enforcement. See `enforcement_state`."""
        state, contacts = enforcement_state(ids_in(projects), now)
        query = (
            select(state, func.count())
            .select_from(_cluster.outerjoin(contacts, contacts.c.cluster_id == _cluster.c.id))
            .where(in_projects(projects))
            .group_by(state)
        )
        return {row[0]: row[1] for row in await self._rows(query)}

    async def rotations(self, projects: Projects, now: datetime) -> RunningRotations:
        """Count the running rotations."""
        query = select(
            func.count(), func.count(_rotation.c.problem), func.count().filter(is_ready(now))
        ).where(_rotation.c.state.in_(RUNNING), of_clusters(_rotation.c.cluster_id, projects))
        [row] = await self._rows(query)
        return RunningRotations(*row)

    async def cas_ending(self, projects: Projects, until: datetime) -> int:
        """Count the client CAs in use that end by a time, or have ended."""
        query = select(func.count()).where(
            _ca.c.state.in_(TRUSTED), _ca.c.not_after <= until, of_clusters(_ca.c.cluster_id, projects)
        )
        return await self._scalar(query) or 0


def is_accepted_though_revoked(projects: Projects, now: datetime) -> list[ColumnElement[bool]]:
    """Return conditions that match revoked certificates that have not expired, in clusters where nothing stops them.

    Leaves out the service's own certificates.
    """
    state, contacts = enforcement_state(ids_in(projects), now)
    clusters = (
        select(_cluster.c.id)
        .select_from(_cluster.outerjoin(contacts, contacts.c.cluster_id == _cluster.c.id))
        .where(in_projects(projects), state.in_(UNENFORCED))
    )
    return [
        _certificate.c.not_after > now,
        _certificate.c.user_id.not_in(OWN_USERS),
        _certificate.c.cluster_id.in_(clusters),
        is_revoked(),
    ]


def is_ready(now: datetime) -> ColumnElement[bool]:
    """Return a condition that matches rotations that somebody can complete without taking access from anybody."""
    holders = select(_certificate.c.id).where(
        _certificate.c.cluster_id == _rotation.c.cluster_id,
        _certificate.c.ca_id == _rotation.c.old_ca_id,
        _certificate.c.not_after > now,
        _certificate.c.user_id.not_in(OWN_USERS),
        ~is_revoked(),
    )
    waits = and_(_rotation.c.state == "draining", _rotation.c.completion_asked_at.is_(None))
    return and_(waits, ~holders.correlate(_rotation).exists())


def in_projects(projects: Projects) -> ColumnElement[bool]:
    """Return a condition that matches clusters in these projects."""
    return true() if projects is None else _cluster.c.project_id.in_(projects)


def of_clusters(cluster_id: ColumnElement[str], projects: Projects) -> ColumnElement[bool]:
    """Return a condition that matches rows of clusters in these projects."""
    ids = ids_in(projects)
    return true() if ids is None else cluster_id.in_(ids)


def ids_in(projects: Projects) -> Select[str] | None:
    """Return the query for the ids of the clusters in these projects; `None` for all clusters."""
    return None if projects is None else select(_cluster.c.id).where(_cluster.c.project_id.in_(projects))


def _of_requests(projects: Projects) -> ColumnElement[bool]:
    return true() if projects is None else _request.c.project_id.in_(projects)
