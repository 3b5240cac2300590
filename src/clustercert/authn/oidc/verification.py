"""Verifies tokens: issuer, algorithm, key, signature, then the claims."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from joserfc import jws
from joserfc.errors import JoseError

from clustercert.authn.oidc.claim_checks import claim_results
from clustercert.authn.oidc.issuers import Issuer
from clustercert.authn.oidc.jwks import VerificationKey
from clustercert.authn.oidc.refusal import TokenRefused
from clustercert.authn.oidc.tokens import UnverifiedToken, parse_token


class KeyLookup(Protocol):
    """Finds the public keys of one issuer."""

    @property
    def version(self) -> int:
        """A number that changes with each change to the keys, and when they become too old."""

    async def watch(self, stop: asyncio.Event) -> None:
        """Keep the keys up to date until `stop` is set."""

    async def find(self, key_id: str | None, algorithm: str) -> VerificationKey:
        """Return a key. Raises TokenRefused if the issuer has no such key, or Unavailable if it can't be asked."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Verifies the tokens of all issuers.

    Attributes:
        issuers: by their exact URL.
        keys: the keys of each issuer, by the same URL.
    """

    issuers: Mapping[str, Issuer]
    keys: Mapping[str, KeyLookup]
    now: Callable[[], datetime]

    async def verify(self, text: str) -> tuple[Issuer, UnverifiedToken]:
        """Return a token whose signature and claims are right. Raises TokenRefused or Unavailable."""
        issuer, token = await self.verify_signature(text)
        for _, refusal in claim_results(issuer, token, self.now()):
            if refusal is not None:
                raise refusal
        return issuer, token

    async def verify_signature(self, text: str) -> tuple[Issuer, UnverifiedToken]:
        """Return a token whose signature is right. Raises TokenRefused or Unavailable."""
        token = parse_token(text)
        issuer = self.issuers.get(token.issuer)
        if issuer is None:
            raise TokenRefused("iss", token.issuer, "an issuer in the settings, spelled exactly alike")
        if token.algorithm not in issuer.algorithms:
            raise TokenRefused("alg", token.algorithm, ", ".join(sorted(issuer.algorithms)))
        key = await self.keys[issuer.url].find(token.key_id, token.algorithm)
        _check_signature(token, key)
        return issuer, token


def _check_signature(token: UnverifiedToken, key: VerificationKey) -> None:
    # `parse_token` has checked the header, so unknown but harmless parameters are accepted.
    registry = jws.JWSRegistry(algorithms=[token.algorithm], strict_check_header=False)
    registry.max_header_length = registry.max_payload_length = registry.max_signature_length = len(token.text)
    try:
        jws.deserialize_compact(token.text, key.key, registry=registry)
    except (JoseError, ValueError, TypeError) as error:
        raise TokenRefused("signature", type(error).__name__, f"a signature by the key {key.id}") from None
