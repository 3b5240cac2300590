"""Verifies tokens: issuer and algorithm, then the signature (or a TokenReview by a cluster), then the claims."""

import asyncio
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.keys import VerificationKey
from clustercert.authn.oidc.token_reviews import TokenReviewer
from clustercert.authn.oidc.tokens import (
    Result,
    UnverifiedToken,
    audience_and_time_results,
    claim_results,
    parse_token,
)
from clustercert.background import keep_running

# The maximum number of issuers listed in an error message.
MAX_LISTED = 5


class KeyLookup(Protocol):
    """Finds the public keys of one issuer."""

    @property
    def version(self) -> int:
        """A number that changes whenever the keys change, or are dropped because they are too old."""

    async def watch(self, stop: asyncio.Event) -> None:
        """Keep the keys up to date until `stop` is set."""

    async def find(self, key_id: str | None, algorithm: str) -> VerificationKey:
        """Return a key. Raises TokenRefused for an unknown key, or Unavailable if the issuer can't be reached."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Verifies the tokens of all issuers.

    Attributes:
        issuers: all issuers, by their exact URLs.
        keys: by issuer URL, the keys of the issuers whose signatures this service verifies.
        reviewers: by issuer URL, a `TokenReviewer` for each issuer whose tokens a cluster verifies.
    """

    issuers: Mapping[str, OidcIssuer]
    keys: Mapping[str, KeyLookup]
    now: Callable[[], datetime]
    reviewers: Mapping[str, TokenReviewer] = field(default_factory=dict)

    async def verify(self, text: str) -> tuple[OidcIssuer, UnverifiedToken]:
        """Verify a token's signature and claims, and return the issuer and the token.

        Raises TokenRefused or Unavailable.
        """
        issuer, token = self.issued(text)
        _check_algorithm(issuer, token)
        if issuer.token_review:
            # The claims are not verified yet, so don't match them against patterns before the cluster is asked.
            require_passed(audience_and_time_results(issuer, token, self.now()))
        token = await self._authentic(issuer, token)
        require_passed(claim_results(issuer, token, self.now()))
        return issuer, token

    def issued(self, text: str) -> tuple[OidcIssuer, UnverifiedToken]:
        """Parse a token, and find the issuer that the claim `iss` names. Raises TokenRefused."""
        token = parse_token(text)
        issuer = self.issuers.get(token.issuer)
        if issuer is None:
            listed = ", ".join(itertools.islice(self.issuers, MAX_LISTED))
            expected = f"exactly the URL of an issuer in the settings: {listed}"
            raise TokenRefused("iss", token.issuer, expected)
        return issuer, token

    async def verify_signature(self, issuer: OidcIssuer, token: UnverifiedToken) -> UnverifiedToken:
        """Verify that this issuer issued the token, and return the token. Raises TokenRefused or Unavailable."""
        _check_algorithm(issuer, token)
        return await self._authentic(issuer, token)

    def version(self, issuer: str) -> int:
        """Return a number that changes whenever an issuer's keys change. `issuer` is the URL of the issuer."""
        keys = self.keys.get(issuer)
        return keys.version if keys is not None else 0

    async def _authentic(self, issuer: OidcIssuer, token: UnverifiedToken) -> UnverifiedToken:
        """Check the token's signature, or let a cluster review the token.

        Returns the token. After a review, the returned token has the claims that the cluster confirmed. Raises
        TokenRefused or Unavailable.
        """
        if issuer.token_review:
            return await self.reviewers[issuer.url].verified(token)
        key = await self.keys[issuer.url].find(token.key_id, token.algorithm)
        _check_signature(token, key)
        return token


def require_passed(results: Iterable[Result]) -> None:
    """Raise the TokenRefused of the first check that failed."""
    for _, refusal in results:
        if refusal is not None:
            raise refusal


def _check_algorithm(issuer: OidcIssuer, token: UnverifiedToken) -> None:
    if token.algorithm not in issuer.algorithms:
        raise TokenRefused("alg", token.algorithm, ", ".join(sorted(issuer.algorithms)))


def _check_signature(token: UnverifiedToken, key: VerificationKey) -> None:
    # `parse_token` has already refused harmful header parameters, so accept all other header parameters.
    registry = jws.JWSRegistry(algorithms=[token.algorithm], strict_check_header=False)
    registry.max_header_length = registry.max_payload_length = registry.max_signature_length = len(token.text)
    try:
        with warnings.catch_warnings():
            # The library warns about `EdDSA`, which does not specify the curve. The issuer's key specifies the curve.
            warnings.simplefilter("ignore", SecurityWarning)
            jws.deserialize_compact(token.text, key.key, registry=registry)
    except (JoseError, ValueError, TypeError) as error:
        raise TokenRefused("signature", type(error).__name__, f"a signature by the key {key.id}") from None


class KeyUpdates:
    """Runs a task for each issuer in use, which keeps the issuer's keys up to date."""

    def __init__(self) -> None:
        self._running: dict[KeyLookup, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def use(self, lookups: "Iterable[KeyLookup]") -> None:
        """Keep these keys up to date from now on, and stop updating all other keys."""
        current = set(lookups)
        for lookup in self._running.keys() - current:
            stop, task = self._running.pop(lookup)
            stop.set()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        for lookup in current - self._running.keys():
            stop = asyncio.Event()
            watching = keep_running("fetch issuer keys", lookup.watch, stop)
            self._running[lookup] = stop, asyncio.create_task(watching)

    async def close(self) -> None:
        """Stop all tasks, and wait until they have ended."""
        self.use(())
        await asyncio.gather(*self._ending)
