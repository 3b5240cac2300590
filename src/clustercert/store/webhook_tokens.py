"""Queries for webhook tokens, with which a cluster's API server authenticates."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select

from clustercert.model import AuditEvent, ClusterOptions
from clustercert.model.errors import Conflict, NotFound
from clustercert.store import tables
from clustercert.store.clusters import options_of
from clustercert.store.engine.queries import Queries, exists

_cluster, _token = tables.cluster, tables.webhook_token

# A cluster can have two tokens, so that an API server can switch to a new one before the old one is removed.
MAX_TOKENS = 2


@dataclass(frozen=True, slots=True)
class WebhookToken:
    """A stored token. Only its hash is stored.

    Attributes:
        id: 32 hex digits; identifies the token in lists and logs.
        hash: SHA-256 of the token string, 32 bytes.
        last_asked_at: when an API server last requested an authorization with it, to the minute, or None.
        refused_at: when an authorization was last requested for the cluster with a wrong token, to the minute, or None.
        last_events_at: when the cluster's API servers last sent audit events, to the minute, or None.
        last_use_at: when an audit event last told of a request that the webhook should have reviewed, to the minute.
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
    """The part of a cluster that its webhooks need, with the hashes of its webhook tokens."""

    cluster_id: str
    project_id: str
    options: ClusterOptions
    hashes: tuple[bytes, ...]


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
        )

    async def of_cluster(self, cluster_id: str) -> tuple[WebhookToken, ...]:
        """Return a cluster's tokens, oldest first."""
        query = select(_token).where(_token.c.cluster_id == cluster_id)
        rows = await self._rows(query.order_by(_token.c.created_at, _token.c.id))
        return tuple(WebhookToken(**row._asdict()) for row in rows)

    async def add(self, token: WebhookToken, event: AuditEvent) -> None:
        """Add a token. Raises NotFound if the cluster no longer exists, or Conflict if it has `MAX_TOKENS` tokens."""
        this = _token.c.cluster_id == token.cluster_id
        async with self._database.transaction(event, invalidate=True) as connection:
            # Lock the cluster's row, so that concurrent calls can't exceed the limit together.
            cluster = select(_cluster.c.id).where(_cluster.c.id == token.cluster_id)
            if not await exists(connection, cluster.with_for_update()):
                raise NotFound("The cluster no longer exists.")
            count = (await connection.execute(select(func.count()).select_from(_token).where(this))).scalar()
            if count is not None and count >= MAX_TOKENS:
                raise Conflict(
                    f"The cluster already has {MAX_TOKENS} webhook tokens. Remove the one that its API server no"
                    " longer uses."
                )
            await connection.execute(insert(_token).values(asdict(token)))

    async def remove(self, cluster_id: str, token_id: str, event: AuditEvent) -> None:
        """Remove a token. Raises NotFound if the cluster has no such token."""
        this = delete(_token).where(_token.c.cluster_id == cluster_id, _token.c.id == token_id)
        await self._change(this, event, "The cluster has no such webhook token. List them to see their ids.")


_WEBHOOK_CONFIG = (
    select(_cluster.c.id, _cluster.c.project_id, _cluster.c.options, _token.c.hash)
    .outerjoin(_token, _token.c.cluster_id == _cluster.c.id)
    .where(_cluster.c.id == bindparam("cluster_id"))
)
