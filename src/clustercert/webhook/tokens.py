"""The tokens by which a cluster's API server says who it is: made, exchanged, checked."""

import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from clustercert.errors import NotFound, Unauthenticated
from clustercert.model import AuditEvent, Cluster, Origin
from clustercert.store.generation import Cache, Generation
from clustercert.store.webhook_tokens import Gate, WebhookToken, WebhookTokenRows

# So that whoever finds one in a file knows what it is, and scanners for lost secrets find it.
PREFIX = "ccw_"
TOKEN_BYTES = 32

CACHED_GATES = 4096

_CLUSTER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class IssuedWebhookToken:
    """A token that its operator gets to see once."""

    text: str = field(repr=False)
    token: WebhookToken


class WebhookTokens:
    """Makes tokens and answers whose they are. A cluster asked for a moment ago costs one hash and no I/O."""

    def __init__(self, rows: WebhookTokenRows, generation: Generation, now: Callable[[], datetime]) -> None:
        self._rows = rows
        self._now = now
        self._cache: Cache[str, Gate] = Cache(generation, CACHED_GATES)

    async def admit(self, cluster_id: str, token: str) -> Gate:
        """The cluster whose token this is. Raises Unauthenticated, in the same words whatever is wrong."""
        gate = None
        if _CLUSTER_ID.fullmatch(cluster_id):
            # One that doesn't exist costs an indexed read each time. To remember it would spare nothing: whoever wants
            # to be a burden makes up another id for each request.
            gate = await self._cache.get(cluster_id, self._rows.gate)
        if gate is None:
            raise Unauthenticated("there is no such cluster")
        presented = hash_of(token)
        if not sum(hmac.compare_digest(presented, kept) for kept in gate.hashes):
            raise Unauthenticated("the webhook token is none of the cluster's")
        return gate

    async def gate(self, cluster_id: str) -> Gate:
        """The cluster, for an operator, who needs no token. Raises NotFound."""
        gate = await self._rows.gate(cluster_id)
        if gate is None:
            raise NotFound
        return gate

    async def of_cluster(self, cluster_id: str) -> tuple[WebhookToken, ...]:
        """Oldest first."""
        return await self._rows.of_cluster(cluster_id)

    async def create(self, cluster: Cluster, *, actor: str, origin: Origin) -> IssuedWebhookToken:
        """A new token. Raises NotFound, or Conflict where the cluster has as many as it may."""
        text = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        token = WebhookToken(
            id=uuid.uuid4().hex, cluster_id=cluster.id, hash=hash_of(text), created_at=self._now()
        )
        await self._rows.add(token, self._event("webhook_token.created", cluster, token.id, actor, origin))
        return IssuedWebhookToken(text, token)

    async def belongs(self, cluster_id: str, token: str) -> bool:
        """Whether a token is one of the cluster's, read afresh."""
        return hash_of(token) in {each.hash for each in await self._rows.of_cluster(cluster_id)}

    async def remove(self, cluster: Cluster, token_id: str, *, actor: str, origin: Origin) -> None:
        """End a token: whoever shows it is refused within a second. Raises NotFound."""
        event = self._event("webhook_token.removed", cluster, token_id, actor, origin)
        await self._rows.remove(cluster.id, token_id, event)

    def _event(self, kind: str, cluster: Cluster, token_id: str, actor: str, origin: Origin) -> AuditEvent:
        return AuditEvent(
            at=self._now(),
            kind=kind,
            project_id=cluster.project_id,
            actor=actor,
            subject=token_id,
            origin=origin,
            detail={"cluster_id": cluster.id},
        )


def hash_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
