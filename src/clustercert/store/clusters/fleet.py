"""Queries for lists of clusters with their state: enforcement, client CA, rotation and live certificates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from sqlalchemy import ColumnElement, Select, Table, and_, func, literal, or_, select

from clustercert.model.choices import EnforcementState, FleetOrder, RotationChoice, RotationState
from clustercert.model.enforcement import WORKING
from clustercert.store import tables
from clustercert.store.certificates.views import is_revoked
from clustercert.store.clusters.ca_rotations import OWN_USERS, RUNNING
from clustercert.store.clusters.enforcement_state import enforcement_state
from clustercert.store.clusters.overview import (
    Projects,
    ids_in,
    in_projects,
    is_ready,
)
from clustercert.store.clusters.registry import silent_clusters
from clustercert.store.engine.queries import Queries

_certificate, _cluster, _ca = tables.certificate, tables.cluster, tables.client_ca
_project, _domain, _rotation = tables.project, tables.domain, tables.ca_rotation
_unknown = tables.unknown_identity


@dataclass(frozen=True, slots=True)
class FleetFilter:
    """Selects clusters. A field that is `None` does not filter. The fields are parameters of the API.

    `text` may also be the beginning of the cluster's id. `revoked_use_after` may include clusters where the use came
    before the revocation. A field `…_after` includes the given time.
    """

    text: Annotated[
        str | None, "Only clusters with this text in the name of the cluster or of its project."
    ] = None
    project: Annotated[str | None, "Only clusters of this project, by id."] = None
    label: Annotated[str | None, "Only clusters with this label: KEY or KEY=VALUE."] = None
    version: Annotated[
        str | None, "Only clusters with this Kubernetes version; empty: those without one."
    ] = None
    enforcement: Annotated[
        Literal[EnforcementState, "behind"] | None,
        "Only clusters in this state. `behind`: in all states but `bindings`, `tokens` and `verified`.",
    ] = None
    without_reviews: Annotated[
        bool,
        "Only clusters whose API servers never asked the webhook since it was set up, or did not ask it about a known"
        " use.",
    ] = False
    rotation: Annotated[
        RotationChoice | None,
        "Only clusters with a running rotation, with a problem, or that can be completed.",
    ] = None
    unknown_after: Annotated[
        datetime | None,
        "Only clusters with an unknown identity first seen at or after this time, RFC 3339.",
    ] = None
    revoked_use_after: Annotated[
        datetime | None,
        "Only clusters whose API server accepted a certificate at or after this time, RFC 3339, that is now revoked.",
    ] = None
    client_ca_starts_before: Annotated[
        datetime | None, "Only clusters whose active client CA begins before this time, RFC 3339."
    ] = None
    client_ca_starts_after: Annotated[
        datetime | None, "Only clusters whose active client CA begins at or after this time, RFC 3339."
    ] = None
    client_ca_ends_before: Annotated[
        datetime | None, "Only clusters whose active client CA ends before this time, RFC 3339."
    ] = None
    client_ca_ends_after: Annotated[
        datetime | None, "Only clusters whose active client CA ends at or after this time, RFC 3339."
    ] = None
    certificates: Annotated[bool, "Only clusters with live certificates."] = False
    certificates_end_before: Annotated[
        datetime | None, "Only clusters with a live certificate that ends before this time, RFC 3339."
    ] = None


@dataclass(frozen=True, slots=True)
class FleetCluster:
    """A cluster with its state.

    Attributes:
        version: the Kubernetes version as registered; empty if it is not known.
        asked_at: when the API server last called the webhook, or `None`.
        ca_starts_at, ca_ends_at: the validity of the active client CA.
        rotation: the state of the running rotation, or `None`.
        problem: why the rotation does not go on, or `None`.
        certificates: how many live certificates there are for the cluster, without the service's own.
        unknown: how many unknown identities the API server reported.
    """

    id: str
    name: str
    project_id: str
    project: str
    domain: str
    version: str
    labels: Mapping[str, str]
    created_at: datetime
    verified_at: datetime | None
    enforcement: EnforcementState
    asked_at: datetime | None
    ca_starts_at: datetime | None
    ca_ends_at: datetime | None
    signer: str
    rotation: RotationState | None
    problem: str | None
    certificates: int
    unknown: int


@dataclass(frozen=True, slots=True)
class FleetPage:
    """A page of clusters.

    Attributes:
        total: the number of clusters on all pages.
        following: the id of the last cluster of this page; `None` if this is the last page.
    """

    clusters: tuple[FleetCluster, ...]
    total: int
    following: str | None


_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_ORDERS: Mapping[FleetOrder, ColumnElement[Any]] = {
    "name": func.lower(_cluster.c.name),
    "ca_start": _ca.c.not_before,
    "ca_end": _ca.c.not_after,
    # Never verified clusters come first.
    "verified": func.coalesce(_cluster.c.verified_at, literal(_NEVER, tables.Utc())),
}
_NAMES = ("id", "name", "project_id", "version", "labels", "created_at", "verified_at")
_COUNTED = ("certificates", "unknown")


class FleetQueries(Queries):
    """Lists clusters with their state."""

    async def page(
        self,
        projects: Projects,
        selected: FleetFilter,
        now: datetime,
        *,
        order: FleetOrder,
        after: str | None,
        limit: int,
    ) -> FleetPage | None:
        """Return a page of the selected clusters. Returns `None` if `after` is not the id of a cluster in `projects`.

        Sorts all selected clusters, but reads only those of the page.
        """
        sort_key = _ORDERS[order]
        matching = _matching(projects, selected, now)
        if order in ("ca_start", "ca_end"):
            matching = matching.where(_ca.c.certificate_der.is_not(None))
        async with self._database.read() as connection:
            total = (await connection.execute(matching.with_only_columns(func.count()))).scalar_one()
            if after is not None:
                last = _with_ca().with_only_columns(sort_key).where(_cluster.c.id == after)
                row = (await connection.execute(last.where(in_projects(projects)))).first()
                if row is None:
                    return None
                is_later = and_(sort_key == row[0], _cluster.c.id > after)
                matching = matching.where(or_(sort_key > row[0], is_later))
            found = await connection.scalars(matching.order_by(sort_key, _cluster.c.id).limit(limit + 1))
            ids = found.all()
            shown = ids[:limit]
            rows = {row.id: row._asdict() for row in await connection.execute(_details(shown, now))}
            counts = [dict(map(tuple, await connection.execute(each))) for each in _counts(shown, now)]
        clusters = (
            rows[each] | {name: count.get(each, 0) for name, count in zip(_COUNTED, counts, strict=True)}
            for each in shown
        )
        following = shown[-1] if len(ids) > limit else None
        return FleetPage(tuple(FleetCluster(**each) for each in clusters), total, following)

    async def versions(self, projects: Projects, limit: int) -> dict[str, int]:
        """Count the clusters by their registered Kubernetes version, the most frequent versions first."""
        count = func.count()
        query = select(_cluster.c.version, count).where(in_projects(projects)).group_by(_cluster.c.version)
        rows = await self._rows(query.order_by(count.desc(), _cluster.c.version).limit(limit))
        return {row[0]: row[1] for row in rows}


def _with_ca() -> Select[str]:
    """Return the query for the ids of all clusters, joined with client CA, project and domain."""
    ca = and_(_ca.c.cluster_id == _cluster.c.id, _ca.c.state == "active")
    return (
        select(_cluster.c.id)
        .join(_ca, ca)
        .join(_project, _project.c.id == _cluster.c.project_id)
        .join(_domain, _domain.c.id == _project.c.domain_id)
    )


_RUNNING = and_(_rotation.c.cluster_id == _cluster.c.id, _rotation.c.state.in_(RUNNING))


def _matching(projects: Projects, selected: FleetFilter, now: datetime) -> Select[str]:
    """Return the query for the ids of the selected clusters. It joins only the tables that the filter needs."""
    query = _with_ca().where(in_projects(projects), *_conditions(selected, now))
    if selected.enforcement is not None:
        state, contacts = enforcement_state(ids_in(projects), now)
        query = query.outerjoin(contacts, contacts.c.cluster_id == _cluster.c.id)
        is_selected = (
            state.not_in(WORKING) if selected.enforcement == "behind" else state == selected.enforcement
        )
        query = query.where(is_selected)
    if selected.rotation is not None:
        query = query.outerjoin(_rotation, _RUNNING).where(_rotation_condition(selected.rotation, now))
    return query


def _details(cluster_ids: Sequence[str], now: datetime) -> Select[Any]:
    """Return the query for the columns of these clusters."""
    state, contacts = enforcement_state(cluster_ids, now)
    columns = (
        *(_cluster.c[name] for name in _NAMES),
        _project.c.name.label("project"),
        _domain.c.name.label("domain"),
        state.label("enforcement"),
        contacts.c.asked_at,
        _ca.c.not_before.label("ca_starts_at"),
        _ca.c.not_after.label("ca_ends_at"),
        _ca.c.signer,
        _rotation.c.state.label("rotation"),
        _rotation.c.problem,
    )
    joined = _with_ca().outerjoin(contacts, contacts.c.cluster_id == _cluster.c.id)
    joined = joined.outerjoin(_rotation, _RUNNING).where(_cluster.c.id.in_(cluster_ids))
    return joined.with_only_columns(*columns)


def _conditions(selected: FleetFilter, now: datetime) -> list[ColumnElement[bool]]:
    of_cluster = _certificate.c.cluster_id == _cluster.c.id
    live = select(_certificate.c.id).where(of_cluster, *_live(now)).correlate(_cluster)
    conditions: list[tuple[Any, Callable[[Any], ColumnElement[bool]]]] = [
        (selected.text, _has_text),
        (selected.project, _cluster.c.project_id.__eq__),
        (selected.label, _has_label),
        (selected.version, _cluster.c.version.__eq__),
        (
            selected.without_reviews or None,
            lambda _: _cluster.c.id.in_(silent_clusters(also_unused=True)),
        ),
        (selected.unknown_after, lambda time: _reported(_unknown, _unknown.c.first_seen_at >= time)),
        (
            selected.revoked_use_after,
            lambda time: _reported(_certificate, _certificate.c.revoked_used_at >= time),
        ),
        (selected.client_ca_starts_before, _ca.c.not_before.__lt__),
        (selected.client_ca_starts_after, _ca.c.not_before.__ge__),
        (selected.client_ca_ends_before, _ca.c.not_after.__lt__),
        (selected.client_ca_ends_after, _ca.c.not_after.__ge__),
        (selected.certificates or None, lambda _: _finds_row(live)),
        (
            selected.certificates_end_before,
            lambda time: _finds_row(live.where(_certificate.c.not_after < time)),
        ),
    ]
    return [condition(value) for value, condition in conditions if value is not None]


def _finds_row(correlated: Select[Any]) -> ColumnElement[bool]:
    """Return a condition that is true if a correlated query finds a row.

    With EXISTS, PostgreSQL could join all live certificates instead of looking for the first one of each cluster.
    """
    return correlated.limit(1).scalar_subquery().is_not(None)


def _has_text(text: str) -> ColumnElement[bool]:
    names = (each.icontains(text, autoescape=True) for each in (_cluster.c.name, _project.c.name))
    return or_(*names, _cluster.c.id.startswith(text.lower(), autoescape=True))


def _has_label(label: str) -> ColumnElement[bool]:
    key, equals, value = label.partition("=")
    stored: ColumnElement[str] = _cluster.c.labels[key].as_string()
    return stored == value if equals else stored.is_not(None)


def _reported(table: Table, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a condition that matches the clusters of the rows that meet a condition."""
    return _cluster.c.id.in_(select(table.c.cluster_id).where(condition))


def _rotation_condition(choice: RotationChoice, now: datetime) -> ColumnElement[bool]:
    """Return a condition on the outer join with the running rotations."""
    match choice:
        case "running":
            return _rotation.c.state.is_not(None)
        case "failing":
            return _rotation.c.problem.is_not(None)
        case "ready":
            return is_ready(now)


def _live(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return _certificate.c.not_after > now, _certificate.c.user_id.not_in(OWN_USERS), ~is_revoked()


def _counts(cluster_ids: Sequence[str], now: datetime) -> tuple[Select[Any], Select[Any]]:
    """Return the queries for the counts of these clusters, in the order of `_COUNTED`."""
    live = select(_certificate.c.cluster_id, func.count()).where(
        _certificate.c.cluster_id.in_(cluster_ids), *_live(now)
    )
    unknown = select(_unknown.c.cluster_id, func.count()).where(_unknown.c.cluster_id.in_(cluster_ids))
    return live.group_by(_certificate.c.cluster_id), unknown.group_by(_unknown.c.cluster_id)
