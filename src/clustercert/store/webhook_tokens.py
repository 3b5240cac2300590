"""Every SQL statement about the tokens by which a cluster's API server says who it is."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select

from clustercert.errors import Conflict, NotFound
from clustercert.model import AuditEvent, ClusterOptions
from clustercert.store import tables
from clustercert.store.clusters import options_of
from clustercert.store.database import Database
from clustercert.store.nouns import change_one

_cluster, _token = tables.cluster, tables.webhook_token

# One in use and one to exchange it for.
MAX_TOKENS = 2


@dataclass(frozen=True, slots=True)
class WebhookToken:
    """A token as the store keeps it: never the token itself.

    Attributes:
        id: 32 hex digits; what it is called where it must not be seen.
        hash: SHA-256 of the token text, 32 bytes.
        last_asked_at: when an API server last asked with it whether to honour a credential, to the minute; None where
            none ever did.
    """

    id: str
    cluster_id: str
    hash: bytes
    created_at: datetime
    last_asked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """A cluster as its webhooks need it: who may come in, and by which rules.

    Attributes:
        hashes: of its tokens.
    """

    cluster_id: str
    project_id: str
    options: ClusterOptions
    hashes: tuple[bytes, ...]


class WebhookTokenRows:
    """Tokens of all clusters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def gate(self, cluster_id: str) -> Gate | None:
        """The cluster with its tokens, or None where there is no such cluster."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_GATE, {"cluster_id": cluster_id})).all()
        if not rows:
            return None
        return Gate(
            cluster_id=rows[0].id,
            project_id=rows[0].project_id,
            options=options_of(rows[0].options),
            hashes=tuple(row.hash for row in rows if row.hash is not None),
        )

    async def of_cluster(self, cluster_id: str) -> tuple[WebhookToken, ...]:
        """Oldest first."""
        query = select(_token).where(_token.c.cluster_id == cluster_id)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(_token.c.created_at, _token.c.id))
            return tuple(WebhookToken(**row) for row in rows.mappings())

    async def add(self, token: WebhookToken, event: AuditEvent) -> None:
        """Raises NotFound where the cluster is gone, or Conflict where it has as many as it may."""
        this = _token.c.cluster_id == token.cluster_id
        async with self._database.change(event) as connection:
            # Whoever adds another one at the same moment waits here, and counts this one.
            cluster = select(_cluster.c.id).where(_cluster.c.id == token.cluster_id).with_for_update()
            if (await connection.execute(cluster)).first() is None:
                raise NotFound("The cluster does not exist any more.")
            count = (await connection.execute(select(func.count()).select_from(_token).where(this))).scalar()
            if count is not None and count >= MAX_TOKENS:
                raise Conflict(
                    f"The cluster has {MAX_TOKENS} webhook tokens already. Remove the one that its API server"
                    " doesn't use any more."
                )
            row = {name: getattr(token, name) for name in ("id", "cluster_id", "hash", "created_at")}
            await connection.execute(insert(_token).values(row))

    async def remove(self, cluster_id: str, token_id: str, event: AuditEvent) -> None:
        """Raises NotFound where the cluster has no such token."""
        this = delete(_token).where(_token.c.cluster_id == cluster_id, _token.c.id == token_id)
        async with self._database.change(event) as connection:
            missing = "The cluster has no such webhook token. List them to see their ids."
            await change_one(connection, this, missing)


# Made once: putting such a statement together takes longer than running it.
_GATE = (
    select(_cluster.c.id, _cluster.c.project_id, _cluster.c.options, _token.c.hash)
    .outerjoin(_token, _token.c.cluster_id == _cluster.c.id)
    .where(_cluster.c.id == bindparam("cluster_id"))
)
