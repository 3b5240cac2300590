"""Callers who bring a bearer token. What a token is worth is looked up elsewhere."""

from dataclasses import dataclass
from typing import Protocol

from clustercert.errors import Unauthenticated
from clustercert.model import Caller, Origin

# Ours are far shorter; Keystone's longest, signed ones reach some 3,000 characters.
MAX_TOKEN = 4096


class TokenLookup(Protocol):
    """What the identity answers about tokens."""

    async def caller_of_token(self, token: str, origin: Origin) -> Caller:
        """Find the caller whose token this is.

        Raises:
            Unauthenticated: unknown, expired or revoked, or its user or scope is disabled.
        """


@dataclass(frozen=True, slots=True)
class TokenAuthenticator:
    """Bounds a token, then asks the identity whose it is."""

    identity: TokenLookup

    async def authenticate(self, unverified_token: str, origin: Origin) -> Caller:
        """Tell whose token it is.

        Raises:
            Unauthenticated: the token is too long or holds no caller.
        """
        if len(unverified_token) > MAX_TOKEN:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN} characters")
        return await self.identity.caller_of_token(unverified_token, origin)
