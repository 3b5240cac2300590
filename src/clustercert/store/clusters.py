"""Every SQL statement about clusters and their client CAs."""

from collections.abc import Collection
from dataclasses import asdict
from typing import Any, Protocol

from cryptography import x509
from sqlalchemy import ColumnElement, Row, Select, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.certificate import certificate_der
from clustercert.errors import Conflict, NotFound
from clustercert.model import AuditEvent, ClientCA, Cluster, ClusterOptions
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.generation import Cache

_cluster, _ca = tables.cluster, tables.client_ca

# Some kilobytes each, the parsed CA included.
CACHED_CLUSTERS = 4096


class ClusterLookup(Protocol):
    """Where the clusters are; `ClusterRows` fills it."""

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None: ...


async def existing(clusters: ClusterLookup, project_id: str, cluster_id: str) -> Cluster:
    """The cluster. Raises NotFound where the project has no such one."""
    cluster = await clusters.cluster(project_id, cluster_id)
    if cluster is None:
        raise NotFound
    return cluster


class ClusterRows:
    """Clusters with their active client CA. One cluster is found from memory when it was found a moment ago."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: Cache[tuple[str, str], Cluster] = Cache(database.generation, CACHED_CLUSTERS)

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None:
        """The cluster, if it is this project's."""
        # What is no text to PostgreSQL is no id either: a zero byte, half a surrogate pair.
        if not cluster_id.isprintable():
            return None
        # Another project's is looked for and not found, as one that isn't there: it takes as long.
        return await self._cache.get((project_id, cluster_id), self._load)

    async def named(self, project_id: str, name: str) -> Cluster | None:
        """The project's cluster of that name, read afresh."""
        return await self._first(_cluster.c.project_id == project_id, _cluster.c.name == name)

    async def find(self, wanted: str, project_id: str | None = None) -> tuple[Cluster, ...]:
        """Those of that id or name, in a project or everywhere, read afresh."""
        conditions = [or_(_cluster.c.id == wanted, _cluster.c.name == wanted)]
        if project_id is not None:
            conditions.append(_cluster.c.project_id == project_id)
        async with self._database.read() as connection:
            # No client has a use for more than a few that it has to choose from.
            query = _with_ca().where(*conditions).order_by(_cluster.c.id != wanted).limit(16)
            return tuple(_parsed(row) for row in await connection.execute(query))

    async def in_project(self, project_id: str) -> tuple[Cluster, ...]:
        """All clusters of a project, by name."""
        async with self._database.read() as connection:
            query = _with_ca().where(_cluster.c.project_id == project_id).order_by(_cluster.c.name)
            return tuple(_parsed(row) for row in await connection.execute(query))

    async def everywhere(self) -> tuple[Cluster, ...]:
        """All clusters of all projects, by project and name."""
        async with self._database.read() as connection:
            query = _with_ca().order_by(_cluster.c.project_id, _cluster.c.name)
            return tuple(_parsed(row) for row in await connection.execute(query))

    async def guarded(self, after: str, limit: int) -> tuple[Cluster, ...]:
        """Those, by id and from behind one, whose options have this service work on their API servers."""
        options = _cluster.c.options
        asked_for = or_(
            options["admission"].as_boolean().is_(True), options["credential_roles"].as_string().is_not(None)
        )
        query = _with_ca().where(_cluster.c.id > after, asked_for).order_by(_cluster.c.id).limit(limit)
        async with self._database.read() as connection:
            return tuple(_parsed(row) for row in await connection.execute(query))

    async def some(self, ids: Collection[str]) -> tuple[Cluster, ...]:
        """Those of the ids that there are, of whatever project, read afresh."""
        async with self._database.read() as connection:
            return tuple(
                _parsed(row) for row in await connection.execute(_with_ca().where(_cluster.c.id.in_(ids)))
            )

    async def bundle(self, cluster_id: str) -> tuple[x509.Certificate, ...]:
        """The client CAs that the API server must trust: the active one and those that will be, oldest first."""
        async with self._database.read() as connection:
            query = (
                select(_ca.c.certificate_der)
                .where(_ca.c.cluster_id == cluster_id, _ca.c.state != "retired")
                .order_by(_ca.c.not_after)
            )
            return tuple(
                x509.load_der_x509_certificate(der) for der in (await connection.execute(query)).scalars()
            )

    async def add(self, cluster: Cluster, event: AuditEvent) -> None:
        """Store a new cluster and its client CA. Raises Conflict where the project has one of that name."""
        try:
            async with self._database.write(event) as connection:
                await connection.execute(insert(_cluster).values(_cluster_row(cluster)))
                await connection.execute(insert(_ca).values(_ca_row(cluster.client_ca)))
        except IntegrityError as error:
            raise _name_taken(cluster) from error

    async def replace(self, cluster: Cluster, event: AuditEvent) -> None:
        """Store a cluster's new properties; its client CA stays. Raises Conflict as `add` does."""
        try:
            async with self._database.change(event) as connection:
                query = update(_cluster).where(_cluster.c.id == cluster.id)
                await connection.execute(query.values(_cluster_row(cluster)))
        except IntegrityError as error:
            raise _name_taken(cluster) from error

    async def remove(self, cluster_id: str, event: AuditEvent) -> None:
        """Forget a cluster and its client CAs. The certificates issued for it stay in the ledger."""
        async with self._database.change(event) as connection:
            # Replicas of before schema 0005 may still write unknown credentials.
            for seen in (tables.webhook_token, tables.unknown_identity, tables.unknown_credential):
                await connection.execute(delete(seen).where(seen.c.cluster_id == cluster_id))
            await connection.execute(delete(_ca).where(_ca.c.cluster_id == cluster_id))
            await connection.execute(delete(_cluster).where(_cluster.c.id == cluster_id))

    async def _load(self, key: tuple[str, str]) -> Cluster | None:
        project_id, cluster_id = key
        return await self._first(_cluster.c.id == cluster_id, _cluster.c.project_id == project_id)

    async def _first(self, *conditions: ColumnElement[bool]) -> Cluster | None:
        async with self._database.read() as connection:
            row = (await connection.execute(_with_ca().where(*conditions))).first()
            return _parsed(row) if row is not None else None


def _with_ca() -> Select[Any]:
    on = and_(_ca.c.cluster_id == _cluster.c.id, _ca.c.state == "active")
    columns = (_ca.c.id.label("ca_id"), _ca.c.certificate_der, _ca.c.sealed_key)
    return select(_cluster, *columns).join(_ca, on)


def _parsed(row: Row[Any]) -> Cluster:
    certificate = x509.load_der_x509_certificate(row.certificate_der)
    said = {column.name: getattr(row, column.name) for column in _cluster.c}
    said |= {"san_urls": tuple(row.san_urls), "options": options_of(row.options)}
    return Cluster(**said, client_ca=ClientCA(row.ca_id, row.id, certificate, row.sealed_key))


def options_of(said: dict[str, Any] | None) -> ClusterOptions:
    """JSON has lists, where the options have tuples; an older program says nothing."""
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in (said or {}).items()
    }
    return ClusterOptions(**known)


def _cluster_row(cluster: Cluster) -> dict[str, object]:
    row = {column.name: getattr(cluster, column.name) for column in _cluster.c}
    return row | {"labels": dict(cluster.labels), "options": _options_row(cluster.options)}


def _options_row(options: ClusterOptions) -> dict[str, object]:
    said = asdict(options)
    # A program before schema 0005 that still runs takes no option that it doesn't know.
    if not options.admission_by_number:
        del said["admission_by_number"]
    return said


def _ca_row(ca: ClientCA) -> dict[str, object]:
    return {
        "id": ca.id,
        "cluster_id": ca.cluster_id,
        "certificate_der": certificate_der(ca.certificate),
        "sealed_key": ca.sealed_key,
        "state": ca.state,
        "not_after": ca.certificate.not_valid_after_utc,
    }


def _name_taken(cluster: Cluster) -> Conflict:
    return Conflict(f"The project has a cluster named {cluster.name} already. Choose another name.")
