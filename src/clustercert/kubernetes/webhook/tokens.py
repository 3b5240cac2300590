"""The tokens with which API servers authenticate to the webhooks."""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cachetools import LRUCache

from clustercert.model import Actor, Cluster, new_id
from clustercert.model.errors import NotFound, Unauthenticated, Unavailable
from clustercert.model.events.administration import WebhookTokenChange, WebhookTokenChanged
from clustercert.store.clusters.registry import ClusterWebhookConfig, WebhookToken, WebhookTokenQueries
from clustercert.store.engine.generation import Cache, Generation

# The prefix by which people and secret scanners recognize a webhook token.
PREFIX = "ccw_"
TOKEN_BYTES = 32

CACHED_CONFIGS = 4096
# The time limit for reading from the database. By default, an API server waits three seconds for a response.
READ_SECONDS = 2.0

_CLUSTER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class IssuedWebhookToken:
    """A new token. The token is shown only once; the store contains only the token's hash."""

    text: str = field(repr=False)
    token: WebhookToken


class WrongToken(Unauthenticated):
    """The token is not a token of this cluster. The response is the same as for an unknown cluster."""


class WebhookTokens:
    """Creates and checks tokens. A check computes one hash, and queries the database if the cluster is not cached."""

    def __init__(
        self,
        queries: WebhookTokenQueries,
        generation: Generation,
        now: Callable[[], datetime],
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self.queries = queries
        self._now = now
        self._generation = generation
        self._read_seconds = read_seconds
        self._last: LRUCache[str, ClusterWebhookConfig] = LRUCache(CACHED_CONFIGS)
        self._cache: Cache[str, ClusterWebhookConfig] = Cache(generation, CACHED_CONFIGS)

    async def authenticate(self, cluster_id: str, token: str) -> ClusterWebhookConfig:
        """Return the cluster's webhook configuration.

        Raises Unauthenticated, with the same response for an unknown cluster and for a wrong token.
        """
        webhook_config = None
        if _CLUSTER_ID.fullmatch(cluster_id):
            # Unknown ids are not cached, because an attacker could fill the cache with random ids.
            webhook_config = await self._cache.get(cluster_id, self._read)
        if webhook_config is None:
            raise Unauthenticated("unknown cluster")
        self._last[cluster_id] = webhook_config
        if not _has_token(webhook_config, token):
            raise WrongToken("invalid webhook token")
        return webhook_config

    def last_valid(self, cluster_id: str, token: str) -> ClusterWebhookConfig | None:
        """Return the configuration that the database returned last, if the token was valid then.

        Always returns None while the cache is up to date.
        """
        last = self._last.get(cluster_id)
        if last is None or self._generation.fresh() or not _has_token(last, token):
            return None
        return last

    async def _read(self, cluster_id: str) -> ClusterWebhookConfig | None:
        try:
            async with asyncio.timeout(self._read_seconds):
                return await self.queries.webhook_config(cluster_id)
        except TimeoutError as error:
            raise Unavailable("The database did not answer in time. Try again later.") from error

    async def webhook_config(self, cluster_id: str) -> ClusterWebhookConfig:
        """Return a cluster's webhook configuration, without checking a token. Raises NotFound."""
        webhook_config = await self.queries.webhook_config(cluster_id)
        if webhook_config is None:
            raise NotFound
        return webhook_config

    async def create(self, cluster: Cluster, *, actor: Actor) -> IssuedWebhookToken:
        """Create a token. Raises NotFound if the cluster was removed, or Conflict if it has too many tokens already."""
        text = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        token = WebhookToken(
            id=new_id(), cluster_id=cluster.id, hash=token_hash(text), created_at=self._now()
        )
        await self.queries.add(token, self._event("webhook_token.created", cluster, token.id, actor))
        return IssuedWebhookToken(text, token)

    async def is_valid(self, cluster_id: str, token: str) -> bool:
        """Whether the cluster has the token. Does not use the cache."""
        return token_hash(token) in {each.hash for each in await self.queries.tokens_of_cluster(cluster_id)}

    async def remove(self, cluster: Cluster, token_id: str, *, actor: Actor) -> None:
        """Remove a token, which is then rejected within a second. Raises NotFound if there is no such token."""
        event = self._event("webhook_token.removed", cluster, token_id, actor)
        await self.queries.remove(cluster.id, token_id, event)

    def _event(
        self, kind: WebhookTokenChange, cluster: Cluster, token_id: str, actor: Actor
    ) -> WebhookTokenChanged:
        return WebhookTokenChanged(
            at=self._now(),
            kind=kind,
            project_id=cluster.project_id,
            actor=actor,
            subject=token_id,
            cluster_id=cluster.id,
        )


def _has_token(webhook_config: ClusterWebhookConfig, token: str) -> bool:
    presented = token_hash(token)
    return bool(sum(hmac.compare_digest(presented, stored) for stored in webhook_config.hashes))


def token_hash(token: str) -> bytes:
    """Compute the stored form of a token: SHA-256, 32 bytes."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
