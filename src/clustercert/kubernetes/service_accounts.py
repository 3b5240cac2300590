"""Checks of service account tokens: fetches a registered cluster's keys, or asks its API server (TokenReview)."""

import json
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Protocol, TypeVar

from clustercert.authn.oidc.connection import FetchFailed
from clustercert.authn.oidc.token_reviews import TokenReview
from clustercert.http_client import MAX_RESPONSE_BYTES
from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.kubernetes.cluster_connections import ClusterConnections
from clustercert.model import Cluster, JsonObject
from clustercert.model.errors import ClustercertError

T = TypeVar("T")

# Source: Kubernetes documentation, "ServiceAccount token volume projection", "Service account issuer discovery".
KEYS_PATH = "/openid/v1/jwks"
API_VERSION = "authentication.k8s.io/v1"
REVIEWS_PATH = f"/apis/{API_VERSION}/tokenreviews"
MAX_TEXT = 1_000
# Anyone can cause a TokenReview by sending an invented token, so reading the response must cost little. The response
# repeats the token, which has at most 16 KiB.
MAX_REVIEW_BYTES = 64 * 1024


class RegisteredClusters(Protocol):
    """Finds clusters; implemented by `ClusterQueries`."""

    async def clusters_with_ids(self, ids: Collection[str]) -> tuple[Cluster, ...]:
        """Return the clusters with these ids, in any project. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class ServiceAccounts:
    """Calls API servers with this service's own certificate. See `ClusterIssuers` in `authn.oidc.token_reviews`."""

    clusters: RegisteredClusters
    connections: ClusterConnections

    async def fetch_keys(self, cluster_id: str) -> bytes:
        """Return the JSON Web Key Set of a cluster. Raises FetchFailed."""
        keys = await self._call(cluster_id, lambda api: api.get(KEYS_PATH, max_bytes=MAX_RESPONSE_BYTES))
        return json.dumps(keys).encode()

    async def review(self, cluster_id: str, token: str, audiences: frozenset[str]) -> TokenReview:
        """Ask a cluster whether a token is valid. Raises FetchFailed."""
        asked: dict[str, object] = {
            "apiVersion": API_VERSION,
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": sorted(audiences)},
        }
        answer = await self._call(
            cluster_id, lambda api: api.create(REVIEWS_PATH, asked, max_bytes=MAX_REVIEW_BYTES)
        )
        return parse_review(answer)

    async def _call(self, cluster_id: str, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        try:
            found = await self.clusters.clusters_with_ids([cluster_id])
            if not found:
                raise FetchFailed(f"the cluster {cluster_id} is not registered")
            return await self.connections.call(found[0], work)
        except ClustercertError as error:
            raise FetchFailed(_reason(error)) from None


def _reason(error: ClustercertError) -> str:
    refused = error if isinstance(error, ApiServerRefused) else error.__cause__
    if isinstance(refused, ApiServerRefused):
        return f"the API server answered with status {refused.http_status}: {refused.server_message}"
    return error.message


def parse_review(answer: JsonObject) -> TokenReview:
    """Parse the answer to a TokenReview. Raises FetchFailed if the answer is malformed."""
    status = answer.get("status")
    user = status.get("user", {}) if isinstance(status, dict) else None
    if answer.get("kind") != "TokenReview" or not isinstance(status, dict) or not isinstance(user, dict):
        raise FetchFailed("the API server sent an unexpected response")
    if status.get("authenticated") is not True:
        return TokenReview(False, error=_text(status.get("error")) or "not authenticated")
    extra = user.get("extra")
    return TokenReview(
        authenticated=True,
        username=_text(user.get("username")),
        uid=_text(user.get("uid")),
        audiences=_texts(status.get("audiences")),
        extra={name: _texts(values) for name, values in extra.items()} if isinstance(extra, dict) else {},
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""


def _texts(values: object) -> tuple[str, ...]:
    return tuple(filter(None, map(_text, values))) if isinstance(values, list) else ()
