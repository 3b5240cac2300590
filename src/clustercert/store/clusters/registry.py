"""Queries for clusters, their client CAs and their webhook tokens."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from cryptography import x509
from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    extract,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from clustercert.model import AuditEvent, ClientCA, Cluster, ClusterOptions, Domain
from clustercert.model.choices import CredentialKind
from clustercert.model.clusters import credential_kind
from clustercert.model.errors import ConcurrentChange, Conflict, Forbidden, InvalidRequest, NotFound
from clustercert.model.identity import ProjectName
from clustercert.model.kubernetes import TOKEN_SIGNER
from clustercert.store import tables
from clustercert.store.certificates.views import is_revoked
from clustercert.store.clusters.client_cas import add_ca, discard_cas, stored_certificate
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Cache, Generation
from clustercert.store.engine.queries import Queries, conflict_if_violated, exists
from clustercert.store.engine.transaction import Transaction

# The maximum number of cached clusters. Each cached cluster takes a few kilobytes, including the parsed CA.
CACHED_CLUSTERS = 4096


class ClusterLookup(Protocol):
    """Finds clusters; implemented by `ClusterQueries` and `ClusterCache`."""

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None: ...


async def require_cluster(clusters: ClusterLookup, project_id: str, cluster_id: str) -> Cluster:
    """Return a project's cluster. Raises NotFound if the project has no such cluster."""
    cluster = await clusters.cluster(project_id, cluster_id)
    if cluster is None:
        raise NotFound
    return cluster


class ClusterCache:
    """Caches clusters with their active client CA, by project and id."""

    def __init__(
        self, generation: Generation, load: Callable[[tuple[str, str]], Awaitable[Cluster | None]]
    ) -> None:
        self._load = load
        self._cache: Cache[tuple[str, str], Cluster] = Cache(generation, CACHED_CLUSTERS)

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None:
        """Return the cluster if it belongs to the project, else None."""
        # PostgreSQL rejects strings with a zero byte or half a surrogate pair.
        if not cluster_id.isprintable():
            return None
        # For a cluster in a different project, run the same query as for a cluster that does not exist, to avoid a
        # timing oracle.
        return await self._cache.get((project_id, cluster_id), self._load)


_cluster, _ca, _project, _domain = tables.cluster, tables.client_ca, tables.project, tables.domain
_token, _rotation = tables.webhook_token, tables.ca_rotation
_namesake = _project.alias("namesake")
# How many clusters `in_project` reads at once.
_PAGE = 100


class ClusterQueries(Queries):
    """Reads and changes clusters with their active client CA. Only results of the method `cluster` are cached."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.cache = ClusterCache(database.generation, self._load)

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None:
        """Return the cluster if it belongs to the project, else None."""
        return await self.cache.cluster(project_id, cluster_id)

    async def find_by_name(self, project_id: str, name: str) -> Cluster | None:
        """Return the cluster with this name in the project, or None."""
        return await self._first(_cluster.c.project_id == project_id, _cluster.c.name == name)

    async def find(
        self, name_or_id: str, project_id: str | None = None, domain_id: str | None = None
    ) -> tuple[Cluster, ...]:
        """Return at most 16 clusters with this id or name, in one project, in one domain or in all domains."""
        conditions = [or_(_cluster.c.id == name_or_id, _cluster.c.name == name_or_id)]
        if project_id is not None:
            conditions.append(_cluster.c.project_id == project_id)
        if domain_id is not None:
            conditions.append(_project.c.domain_id == domain_id)
        return await self._all(_with_ca().where(*conditions).order_by(_cluster.c.id != name_or_id).limit(16))

    async def reachable(self, cluster_id: str, project_ids: Collection[str] | None) -> Cluster | None:
        """Return the cluster if it belongs to one of the projects, else None. `project_ids=None` means all projects."""
        # PostgreSQL rejects strings with a zero byte or half a surrogate pair.
        if not cluster_id.isprintable():
            return None
        in_projects = () if project_ids is None else (_cluster.c.project_id.in_(project_ids),)
        return await self._first(_cluster.c.id == cluster_id, *in_projects)

    async def reachable_page(
        self,
        project_ids: Collection[str] | None,
        name_or_id: str | None,
        after: str,
        limit: int,
        *,
        search: str | None = None,
        by_name: bool = False,
    ) -> tuple[Cluster, ...]:
        """Return at most `limit` clusters after the cluster with the id `after`, sorted by id, or by name and id.

        Raises InvalidRequest if the clusters are sorted by name and there is no cluster with the id `after`.

        Args:
            project_ids: return only clusters of these projects, without clusters of disabled projects. `None` means all
                projects, including disabled projects.
            search: return only clusters with this part in their name or in the name of their project, in any case.
        """
        # The outer join finds no row of a project that was deleted at the same time. Skip clusters of such a project.
        query = _with_ca().where(_project.c.id.is_not(None))
        if project_ids is not None:
            query = query.where(_cluster.c.project_id.in_(project_ids), _project.c.enabled, _domain.c.enabled)
        order = (_cluster.c.name, _cluster.c.id) if by_name else (_cluster.c.id,)
        if not by_name:
            query = query.where(_cluster.c.id > after)
        elif after:
            # In the same projects, so that nobody learns about a cluster of others from its id.
            last = await self._scalar(query.where(_cluster.c.id == after).with_only_columns(_cluster.c.name))
            if last is None:
                raise InvalidRequest("cursor: its cluster was removed. Begin with the first page.")
            query = query.where(tuple_(*order) > tuple_(literal(last), literal(after)))
        if name_or_id is not None:
            query = query.where(or_(_cluster.c.id == name_or_id, _cluster.c.name == name_or_id))
        if search is not None:
            names = (_cluster.c.name, _project.c.name)
            query = query.where(or_(*(name.icontains(search, autoescape=True) for name in names)))
        return await self._all(query.order_by(*order).limit(limit))

    async def in_project(self, project_id: str) -> AsyncIterator[Cluster]:
        """Yield all clusters in a project, sorted by name. Leaves the field `server_ca_pem` empty, to save memory."""
        after, found = "", tuple[Cluster, ...]()
        while not after or len(found) == _PAGE:
            query = _without_server_ca().where(_cluster.c.project_id == project_id, _cluster.c.name > after)
            found = await self._all(query.order_by(_cluster.c.name).limit(_PAGE))
            for each in found:
                yield each
            if not found:
                return
            after = found[-1].name

    async def page(self, project_id: str, *, after: str, limit: int) -> tuple[Cluster, ...]:
        """Return at most `limit` clusters in a project with ids above `after`, sorted by id."""
        query = _with_ca().where(_cluster.c.project_id == project_id, _cluster.c.id > after)
        return await self._all(query.order_by(_cluster.c.id).limit(limit))

    async def all_clusters(self) -> tuple[Cluster, ...]:
        """Return the clusters in all projects, sorted by project and name."""
        return await self._all(_with_ca().order_by(_cluster.c.project_id, _cluster.c.name))

    async def enforced(self, after: str, limit: int) -> tuple[Cluster, ...]:
        """Return a page, sorted by id, of clusters with options that require bindings or an admission policy."""
        query = _with_ca().where(_cluster.c.id > after, is_enforced_inside())
        return await self._all(query.order_by(_cluster.c.id).limit(limit))

    async def custom_exemptions(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Return id, name and patterns of each cluster whose exemptions are not the default. See `select_named`."""
        default = json.dumps(ClusterOptions().exemptions)
        query = select_named(_cluster.c.id, _cluster.c.options).where(
            _cluster.c.options["exemptions"].as_string() != default
        )
        rows = await self._rows(query.order_by(_cluster.c.name, _cluster.c.id))
        return tuple((row.id, row.shown_name, options_of(row.options).exemptions) for row in rows)

    async def clusters_with_ids(self, ids: Collection[str]) -> tuple[Cluster, ...]:
        """Return the clusters with these ids, in any project. Ignores ids that do not exist."""
        return await self._all(_with_ca().where(_cluster.c.id.in_(ids)))

    async def bundle(self, cluster_id: str) -> tuple[x509.Certificate, ...]:
        """Return the client CAs that the API servers must trust, oldest first.

        Omits the old CA of a rotation as soon as somebody has asked for completion.
        """
        leaving = select(_rotation.c.cluster_id).where(
            _rotation.c.old_ca_id == _ca.c.id, _rotation.c.completion_asked_at.is_not(None)
        )
        trusted = and_(
            _ca.c.cluster_id == cluster_id,
            _ca.c.state != "retired",
            _ca.c.certificate_der.is_not(None),
            ~leaving.exists(),
        )
        rows = await self._rows(select(_ca.c.certificate_der).where(trusted).order_by(_ca.c.not_after))
        return tuple(x509.load_der_x509_certificate(der) for (der,) in rows)

    async def add(self, cluster: Cluster, event: AuditEvent, most: int) -> None:
        """Add a cluster with its client CA.

        Raises Conflict if the project has a cluster with this name or the key of the CA was deleted, or Forbidden if
        the project already has `most` clusters. Concurrent requests may add a few more clusters than `most`.
        """
        count = select(func.count()).select_from(_cluster).where(_cluster.c.project_id == cluster.project_id)
        with conflict_if_violated(_name_taken(cluster)):
            async with self._database.transaction(event) as connection:
                if (await connection.execute(count)).scalar_one() >= most:
                    raise Forbidden(
                        f"The project has {most} clusters, as many as limits.clusters_per_project allows. Remove"
                        " clusters that are gone, or ask the operator to raise the limit."
                    )
                await connection.execute(insert(_cluster).values(_cluster_row(cluster)))
                await add_ca(connection, cluster.client_ca)

    async def replace(self, cluster: Cluster, event: AuditEvent, before: Cluster | None = None) -> None:
        """Replace a cluster's properties, and the sealed secret of its client CA.

        Removes the time of the last verification, unless only properties change that no verification depends on.
        Raises NotFound if the cluster was removed, or Conflict if the project has another cluster with this name. With
        `before`, raises ConcurrentChange if the cluster differs from `before`.
        """
        with conflict_if_violated(_name_taken(cluster)):
            async with self._database.transaction(event, invalidate=True) as connection:
                current = await _locked(connection, cluster.id, before)
                row = _cluster_row(cluster)
                if not _verifies_the_same(current, cluster):
                    row["verified_at"] = None
                await connection.execute(update(_cluster).where(_cluster.c.id == cluster.id).values(row))
                if before is not None and cluster.client_ca != before.client_ca:
                    sealed = {"sealed_key": cluster.client_ca.sealed_key, "access_expires_at": None}
                    await connection.execute(
                        update(_ca).where(_ca.c.id == cluster.client_ca.id).values(sealed)
                    )

    async def record_verification(self, cluster: Cluster, at: datetime) -> None:
        """Record when a verification last found no fault, unless the cluster was changed since it was read."""
        async with self._database.transaction() as connection:
            query = update(_cluster).where(
                _cluster.c.id == cluster.id, _cluster.c.updated_at == cluster.updated_at
            )
            await connection.execute(query.values(verified_at=at))

    async def count_unverified(self, since: Sequence[datetime]) -> tuple[int, Sequence[int]]:
        """Count the clusters that were never verified.

        For each time in `since`, also counts the clusters that were last verified before this time.
        """
        last = _cluster.c.verified_at
        conditions = (last.is_(None), *(last < at for at in since))
        counts = (select(func.count()).where(each).scalar_subquery() for each in conditions)
        [(never, *before)] = await self._rows(select(*counts))
        return never, before

    async def remove(self, cluster_id: str, event: AuditEvent, before: Cluster | None = None) -> None:
        """Delete a cluster and its client CAs. The cluster's certificates stay in the ledger.

        The keys of the CAs stay at their signers until `DiscardedKeys` deletes them. Raises Conflict if a token of
        the cluster is live, because nothing ends the token after the removal.

        With `before`, raises NotFound if the cluster was removed, or ConcurrentChange if the cluster differs from
        `before`.
        """
        async with self._database.transaction(event, invalidate=True) as connection:
            if before is not None:
                await _locked(connection, cluster_id, before)
            # A rotation also locks the cluster's row first.
            owner = select(_cluster.c.project_id).where(_cluster.c.id == cluster_id).with_for_update()
            project_id = (await connection.execute(owner)).scalar()
            if await exists(connection, _live_tokens(cluster_id, event.at)):
                raise Conflict(
                    "The cluster has live tokens, which would work until they expire. Revoke them with `clustercert "
                    "certificate revoke --cluster CLUSTER`, delete the service's objects with `clustercert kubernetes "
                    "remove`, and then remove the cluster."
                )
            # The keys of retired CAs were discarded before.
            kept = select(_ca.c.id).where(_ca.c.cluster_id == cluster_id, _ca.c.state != "retired")
            ca_ids = (await connection.execute(kept)).scalars().all()
            await discard_cas(connection, ca_ids, project_id or "")
            for table in (tables.webhook_token, tables.unknown_identity, tables.ca_rotation):
                await connection.execute(delete(table).where(table.c.cluster_id == cluster_id))
            await connection.execute(delete(_ca).where(_ca.c.cluster_id == cluster_id))
            await connection.execute(delete(_cluster).where(_cluster.c.id == cluster_id))

    async def _load(self, key: tuple[str, str]) -> Cluster | None:
        project_id, cluster_id = key
        return await self._first(_cluster.c.id == cluster_id, _cluster.c.project_id == project_id)

    async def _first(self, *conditions: ColumnElement[bool]) -> Cluster | None:
        row = await self._row(_with_ca().where(*conditions))
        return None if row is None else _parsed(row)

    async def _all(self, query: Select[Any]) -> tuple[Cluster, ...]:
        return tuple(map(_parsed, await self._rows(query)))


def _live_tokens(cluster_id: str, now: datetime) -> Select[Any]:
    this = tables.certificate
    return (
        select(this.c.id)
        .join(_cluster, _cluster.c.id == this.c.cluster_id)
        .where(_cluster.c.id == cluster_id, _cluster.c.signer == TOKEN_SIGNER)
        .where(this.c.not_after > now, ~is_revoked())
        .limit(1)
    )


async def _locked(connection: Transaction, cluster_id: str, before: Cluster | None) -> Cluster:
    """Lock a cluster's row, and return the cluster.

    Raises NotFound if the cluster was removed. With `before`, raises ConcurrentChange if the cluster differs from
    `before`.
    """
    query = _with_ca().where(_cluster.c.id == cluster_id).with_for_update(of=_cluster)
    row = (await connection.execute(query)).first()
    if row is None:
        raise NotFound
    current = _parsed(row)
    if before is not None and current != before:
        raise ConcurrentChange
    return current


def _verifies_the_same(before: Cluster, after: Cluster) -> bool:
    """Return whether the clusters differ only in properties that no verification depends on."""
    return after == replace(
        before,
        name=after.name,
        labels=after.labels,
        version=after.version,
        external_url=after.external_url,
        updated_at=after.updated_at,
        client_ca=after.client_ca,
    )


def _with_ca() -> Select[Any]:
    on = and_(_ca.c.cluster_id == _cluster.c.id, _ca.c.state == "active")
    same_name = select(func.count()).where(_namesake.c.name == _project.c.name).scalar_subquery()
    of_ca = (
        _ca.c.id.label("ca_id"),
        _ca.c.certificate_der,
        _ca.c.sealed_key,
        _ca.c.state,
        _ca.c.signer.label("ca_signer"),
        _ca.c.key_reference,
        _ca.c.problem,
        _ca.c.access_expires_at,
    )
    of_project = (_project.c.name.label("named"), _project.c.domain_id, _domain.c.name.label("domain_name"))
    owned = _cluster.join(_ca, on).outerjoin(_project, _project.c.id == _cluster.c.project_id)
    joined = owned.outerjoin(_domain, _domain.c.id == _project.c.domain_id)
    return select(_cluster, *of_ca, *of_project, same_name.label("same_name")).select_from(joined)


def _without_server_ca() -> Select[Any]:
    selected = _with_ca()
    return selected.with_only_columns(
        *(column for column in selected.selected_columns if column.name != "server_ca_pem"),
        literal(b"").label("server_ca_pem"),
        maintain_column_froms=True,
    )


def _parsed(row: Row[Any]) -> Cluster:
    values = _with_tuples({column.name: getattr(row, column.name) for column in _cluster.c})
    values["options"] = options_of(row.options)
    domain = Domain(row.domain_id, row.domain_name)
    project = None if row.named is None else ProjectName(row.named, domain, row.same_name == 1)
    ca = ClientCA(
        id=row.ca_id,
        cluster_id=row.id,
        certificate=stored_certificate(row.certificate_der),
        sealed_key=row.sealed_key,
        state=row.state,
        signer=row.ca_signer,
        key_reference=row.key_reference,
        problem=row.problem,
        access_expires_at=row.access_expires_at,
    )
    return Cluster(**values, client_ca=ca, project_name=project)


def select_named(*columns: ColumnElement[Any]) -> Select[Any]:
    """Select columns of clusters, and the column `shown_name`: `Cluster.shown_name`."""
    name = _domain.c.name + "/" + _project.c.name + "/" + _cluster.c.name
    owned = _cluster.outerjoin(_project, _project.c.id == _cluster.c.project_id)
    joined = owned.outerjoin(_domain, _domain.c.id == _project.c.domain_id)
    return select(*columns, func.coalesce(name, _cluster.c.name).label("shown_name")).select_from(joined)


# API servers cache an answer of the webhook for less than this time, and then ask the webhook again.
UNREVIEWED_FOR = timedelta(minutes=10)


def is_enforced_inside() -> ColumnElement[bool]:
    """Return an SQL condition that matches clusters with bindings, an admission policy, or tokens.

    Their API servers deny revoked credentials without a webhook, because the service changes objects in the cluster.
    """
    options = _cluster.c.options
    return or_(
        options["admission"].as_boolean().is_(True),
        options["credential_roles"].as_string().is_not(None),
        _cluster.c.signer == TOKEN_SIGNER,
    )


def is_silent(asked_at: ColumnElement[datetime], used_at: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return an SQL condition that matches clusters whose API server did not ask the webhook about a known use.

    A cluster without uses is quiet, not silent. Uses by members of `system:masters` are unknown here, because API
    servers don't ask about them. If a cluster enforces revocations without the webhook, it need not ask at all.

    Args:
        asked_at: when the API server last called the webhook.
        used_at: when an audit event last reported a use of a certificate.
    """
    unasked = extract("epoch", used_at) - extract("epoch", asked_at)
    never_asked = and_(asked_at.is_(None), used_at.is_not(None), ~is_enforced_inside())
    return or_(unasked >= UNREVIEWED_FOR.total_seconds(), never_asked)


def silent_clusters(*, also_unused: bool = False) -> Select[str]:
    """Return the query for the ids of the clusters for which `is_silent` holds.

    With `also_unused`, also those that have a webhook token and never asked the webhook, on which they rely, even if no
    use is known.
    """
    token = tables.webhook_token
    asked_at, used_at = func.max(token.c.last_asked_at), func.max(token.c.last_use_at)
    condition = is_silent(asked_at, used_at)
    if also_unused:
        condition = or_(condition, and_(asked_at.is_(None), ~is_enforced_inside()))
    joined = select(_cluster.c.id).join(token, token.c.cluster_id == _cluster.c.id)
    return joined.group_by(_cluster.c.id).having(condition)


def options_of(stored: dict[str, Any]) -> ClusterOptions:
    """Convert a cluster's stored options."""
    options = _with_tuples(stored)
    if "group_roles" in options:
        options["group_roles"] = _with_tuples(options["group_roles"])
    return ClusterOptions(**options)


def _with_tuples(stored: dict[str, Any]) -> dict[str, Any]:
    """Convert lists back to tuples, because JSON stores tuples as lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


def _cluster_row(cluster: Cluster) -> dict[str, object]:
    # Omit `verified_at`, because a verification may have changed this column since `cluster` was read.
    columns = (column.name for column in _cluster.c if column is not _cluster.c.verified_at)
    row = {name: getattr(cluster, name) for name in columns}
    return row | {"labels": dict(cluster.labels), "options": asdict(cluster.options)}


def _name_taken(cluster: Cluster) -> str:
    return f"The project already has a cluster named {cluster.name}. Choose another name."


# A cluster can have two tokens, so that an API server can switch to a new one before the old one is removed.
MAX_TOKENS = 2


@dataclass(frozen=True, slots=True)
class WebhookToken:
    """A webhook token as stored, with only the hash of the token string.

    Attributes:
        id: 32 hex digits; identifies the token in lists and logs.
        hash: SHA-256 of the token string, 32 bytes.
        last_asked_at: when an API server last requested an authorization with the token, to the minute, or None.
        refused_at: when an authorization was last requested for the cluster with a wrong token, to the minute, or None.
        last_events_at: when the cluster's API servers last sent audit events, to the minute, or None.
        last_use_at: when an audit event last reported a request that the webhook should have reviewed, to the minute,
            or None.
    """

    id: str
    cluster_id: str
    hash: bytes
    created_at: datetime
    last_asked_at: datetime | None = None
    refused_at: datetime | None = None
    last_events_at: datetime | None = None
    last_use_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ClusterWebhookConfig:
    """The fields of a cluster that its webhooks need, and the hashes of its webhook tokens.

    Attributes:
        denied_ca_id: the client CA whose certificates the webhook denies, because the CA is being replaced; None if
            there is none.
        kind: what users of the cluster get, see `Cluster.credential_kind`.
    """

    cluster_id: str
    project_id: str
    options: ClusterOptions
    hashes: tuple[bytes, ...]
    denied_ca_id: str | None = None
    kind: CredentialKind = "certificate"


class WebhookTokenQueries(Queries):
    """Reads and changes the webhook tokens of all clusters."""

    async def webhook_config(self, cluster_id: str) -> ClusterWebhookConfig | None:
        """Return a cluster's webhook configuration, or None if the cluster does not exist."""
        rows = await self._rows(_WEBHOOK_CONFIG, {"cluster_id": cluster_id})
        if not rows:
            return None
        return ClusterWebhookConfig(
            cluster_id=rows[0].id,
            project_id=rows[0].project_id,
            options=options_of(rows[0].options),
            hashes=tuple(row.hash for row in rows if row.hash is not None),
            denied_ca_id=rows[0].old_ca_id,
            kind=credential_kind(rows[0].signer),
        )

    async def tokens_of_cluster(self, cluster_id: str) -> tuple[WebhookToken, ...]:
        """Return a cluster's tokens, oldest first."""
        query = select(_token).where(_token.c.cluster_id == cluster_id)
        rows = await self._rows(query.order_by(_token.c.created_at, _token.c.id))
        return tuple(WebhookToken(**row._asdict()) for row in rows)

    async def add(self, token: WebhookToken, event: AuditEvent) -> None:
        """Add a token.

        Raises NotFound if the cluster no longer exists, or Conflict if the cluster has `MAX_TOKENS` tokens.
        """
        this = _token.c.cluster_id == token.cluster_id
        async with self._database.transaction(event, invalidate=True) as connection:
            # Lock the cluster's row, so that concurrent calls can't exceed the limit together.
            cluster = select(_cluster.c.id).where(_cluster.c.id == token.cluster_id)
            if not await exists(connection, cluster.with_for_update()):
                raise NotFound("The cluster no longer exists.")
            count = (await connection.execute(select(func.count()).select_from(_token).where(this))).scalar()
            if count is not None and count >= MAX_TOKENS:
                raise Conflict(
                    f"The cluster already has {MAX_TOKENS} webhook tokens. Remove the token that no API server uses"
                    " any more."
                )
            await connection.execute(insert(_token).values(asdict(token)))

    async def remove(self, cluster_id: str, token_id: str, event: AuditEvent) -> None:
        """Remove a token. Raises NotFound if the cluster has no such token."""
        this = delete(_token).where(_token.c.cluster_id == cluster_id, _token.c.id == token_id)
        await self._change(this, event, "The cluster has no such webhook token. List them to see their ids.")


_WEBHOOK_CONFIG = (
    select(
        *(_cluster.c[name] for name in ("id", "project_id", "options", "signer")),
        _token.c.hash,
        _rotation.c.old_ca_id,
    )
    .outerjoin(_token, _token.c.cluster_id == _cluster.c.id)
    # The condition is the same as in `CaRotation.denied_ca_id`.
    .outerjoin(
        _rotation,
        and_(
            _rotation.c.cluster_id == _cluster.c.id,
            _rotation.c.deny_old,
            _rotation.c.completion_asked_at.is_not(None),
        ),
    )
    .where(_cluster.c.id == bindparam("cluster_id"))
)
