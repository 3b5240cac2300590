"""Verifies tokens by TokenReview: the API server of a registered cluster checks tokens, instead of this service."""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog
from cachetools import TTLCache

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.connection import FetchFailed
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.tokens import UnverifiedToken
from clustercert.model import JsonObject
from clustercert.model.errors import CredentialUnverified
from clustercert.observability import metrics

REVIEW_SECONDS = 10.0
# The documentation promises that tokens of deleted service accounts are refused within a minute. So keep the sum of
# CACHED_SECONDS and REVIEW_SECONDS below a minute.
CACHED_SECONDS = 45
REFUSED_SECONDS = 5
# After a failed request, no request is sent to the API server for this time.
PAUSE_SECONDS = 5
MAX_REFUSED = 1_000
# The maximum number of requests that wait for one cluster. Without this maximum, waiting requests could use up the
# number of requests that a worker handles at the same time.
MAX_WAITING = 64
REVIEW = "token review"
"""The name of the check in explanations and refusals."""

# Source: kube-apiserver, staging/src/k8s.io/apiserver/pkg/authentication/serviceaccount/util.go.
_USERNAME = re.compile(r"system:serviceaccount:([a-z0-9-]{1,63}):([a-z0-9.-]{1,253})")
_EXTRA = "authentication.kubernetes.io/"
# Claims that are taken from the token, because the API server verifies these claims but does not return them.
_TIMES = ("exp", "iat", "nbf", "jti")

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TokenReview:
    """The answer of an API server about a token. Source: Kubernetes API, authentication.k8s.io/v1, TokenReviewStatus.

    Attributes:
        error: why the token is refused, in the API server's words.
    """

    authenticated: bool
    username: str = ""
    uid: str = ""
    audiences: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    error: str = ""


class ClusterIssuers(Protocol):
    """Connects to API servers of registered clusters. Implemented by `kubernetes.service_accounts`."""

    async def fetch_keys(self, cluster_id: str) -> bytes:
        """Return the JSON Web Key Set of a cluster. Raises FetchFailed."""

    async def review(self, cluster_id: str, token: str, audiences: frozenset[str]) -> TokenReview:
        """Ask a cluster about a token. Raises FetchFailed."""


class TokenReviewer:
    """Asks one cluster about tokens. Concurrent requests with the same token wait for the same answer."""

    def __init__(
        self, issuer: OidcIssuer, clusters: ClusterIssuers, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._clusters = clusters
        self._clock = clock
        self._reviews: dict[bytes, asyncio.Task[TokenReview]] = {}
        self._refused: TTLCache[bytes, str] = TTLCache(MAX_REFUSED, REFUSED_SECONDS, timer=clock)
        self._failed_at = float("-inf")
        self._failure = ""
        self._waiting = 0

    async def verified(self, token: UnverifiedToken) -> UnverifiedToken:
        """Return the token with the claims that the cluster confirms. Raises TokenRefused or CredentialUnverified."""
        digest = hashlib.sha256(token.text.encode()).digest()
        if (error := self._refused.get(digest)) is not None:
            raise _refusal(error)
        review = await self._wait(digest, token.text)
        if not review.authenticated:
            self._refused[digest] = review.error
            raise _refusal(review.error)
        return replace(token, claims=_confirmed_claims(self._issuer, token, review))

    async def _wait(self, digest: bytes, text: str) -> TokenReview:
        """Wait for the running review of a token, or start a review. A cancelled request does not cancel the review."""
        review = self._reviews.get(digest)
        if review is None:
            if self._clock() - self._failed_at < PAUSE_SECONDS:
                raise _unverified() from self._cause
            if self._waiting >= MAX_WAITING:
                raise CredentialUnverified(
                    "A cluster responds slowly. Try again in a moment.", retry_after=PAUSE_SECONDS
                )
            review = self._reviews[digest] = asyncio.create_task(self._review(text))
            review.add_done_callback(lambda done: self._finished(digest, done))
        self._waiting += 1
        try:
            return await asyncio.shield(review)
        except FetchFailed:
            raise _unverified() from self._cause
        finally:
            self._waiting -= 1

    def _finished(self, digest: bytes, review: "asyncio.Task[TokenReview]") -> None:
        del self._reviews[digest]
        if not review.cancelled():
            # Retrieve the exception, or else asyncio logs the exception if all waiting requests were cancelled.
            review.exception()

    async def _review(self, text: str) -> TokenReview:
        """Ask the cluster. Raises FetchFailed."""
        name, cluster = self._issuer.name, self._issuer.cluster or ""
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                review = await self._clusters.review(cluster, text, frozenset(self._issuer.audiences))
        except (FetchFailed, TimeoutError) as error:
            metrics.TOKEN_REVIEWS.labels(name, "failed").inc()
            reason = str(error) or f"no response within {REVIEW_SECONDS:g} seconds"
            if reason != self._failure:
                logger.warning("token not reviewed", issuer=name, cluster=cluster, reason=reason)
            self._failed_at, self._failure = self._clock(), reason
            raise FetchFailed(reason) from None
        if self._failure:
            logger.info("tokens reviewed again", issuer=name, cluster=cluster)
        self._failure = ""
        metrics.TOKEN_REVIEWS.labels(name, "accepted" if review.authenticated else "refused").inc()
        return review

    @property
    def _cause(self) -> FetchFailed:
        """Why the cluster could not be asked, for the log."""
        return FetchFailed(f"{self._issuer.name}: {self._failure}")


def _unverified() -> CredentialUnverified:
    return CredentialUnverified(
        "The cluster that issued this token can't verify it now. Try again in a moment.",
        retry_after=PAUSE_SECONDS,
    )


def _refusal(error: str) -> TokenRefused:
    return TokenRefused(REVIEW, error, "a token that its cluster accepts")


def _confirmed_claims(issuer: OidcIssuer, token: UnverifiedToken, review: TokenReview) -> JsonObject:
    """Return the token's claims with the values that the API server has confirmed. Raises TokenRefused.

    Only the issuer and the claims in `_TIMES` are taken from the token itself.
    """
    if set(issuer.audiences).isdisjoint(review.audiences):
        # An API server that does not support audiences returns no audiences.
        expected = f"{' or '.join(sorted(issuer.audiences))} in the answer of the cluster"
        raise TokenRefused("aud", [*review.audiences], expected)
    parts = _USERNAME.fullmatch(review.username)
    if parts is None or not review.uid or review.username != token.claims.get("sub"):
        raise TokenRefused("sub", review.username, "the service account of the token, with a uid")
    private: dict[str, object] = {
        "namespace": parts[1],
        "serviceaccount": {"name": parts[2], "uid": review.uid},
        **_bound_objects(review.extra),
    }
    times = {name: token.claims[name] for name in _TIMES if name in token.claims}
    return {
        "iss": token.issuer,
        "sub": review.username,
        "aud": [*review.audiences],
        **times,
        "kubernetes.io": private,
    }


def _bound_objects(extra: Mapping[str, tuple[str, ...]]) -> JsonObject:
    """Return the pod and the node that a token is bound to, in the format of the token's claims."""
    found: dict[str, object] = {}
    for kind in ("pod", "node"):
        names, uids = (extra.get(f"{_EXTRA}{kind}-{part}", ()) for part in ("name", "uid"))
        if len(names) == 1:
            found[kind] = {"name": names[0]} | ({"uid": uids[0]} if len(uids) == 1 else {})
    return found
