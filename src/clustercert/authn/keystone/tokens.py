"""Authentication with Keystone tokens."""

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from clustercert.authn.credentials import BEARER, UnverifiedCredential, is_keystone_token
from clustercert.authn.federated import CLOCK_DIFFERENCE, FederatedLookup, FederatedUser
from clustercert.authn.keystone.client import (
    Found,
    KeystoneDirectory,
    Lookups,
    mapped_user,
    require_undelegated,
    token_roles,
)
from clustercert.authn.keystone.settings import Keystone
from clustercert.model import Caller, Origin, UnverifiedRequest
from clustercert.model.errors import Unauthenticated

# Open Telekom Cloud's tokens are several kilobytes long. A request's headers together can have at most 64 kilobytes.
MAX_TOKEN = 16 * 1024
TOKEN_METHOD, APPLICATION_CREDENTIAL_METHOD = "keystone", "keystone_app"

_PRINTABLE = re.compile("[!-~]+")


@dataclass(frozen=True, slots=True)
class KeystoneTokens:
    """Asks Keystone to validate tokens. Looking up a cached token needs one hash and no I/O."""

    keystone: Keystone
    directory: KeystoneDirectory
    identity: FederatedLookup
    now: Callable[[], datetime]
    lookups: Lookups[FederatedUser] = field(default_factory=Lookups, repr=False)
    _revisions: "itertools.count[int]" = field(default_factory=itertools.count, repr=False)

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return credential.scheme == BEARER and is_keystone_token(credential.text)

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        """See `Authenticator` and `caller_of_token`."""
        return await self.caller_of_token(credential.text, request.origin)

    async def caller_of_token(self, text: str, origin: Origin) -> Caller:
        """Return the token's owner. Raises Unauthenticated.

        Raises CredentialUnverified if the token is not cached and Keystone gives no usable answer.
        """
        if len(text) > MAX_TOKEN or _PRINTABLE.fullmatch(text) is None:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN} characters, or malformed")
        digest = hashlib.sha256(text.encode()).digest()

        async def ask() -> Found[FederatedUser]:
            return await self._ask(text, digest.hex())

        user = await self.lookups.get(digest, ask)
        if user.expires_at is not None and self.now() >= user.expires_at:
            raise Unauthenticated("the token has expired", known=user.user.id)
        return await self.identity.caller_of_federated_user(user, origin)

    async def _ask(self, text: str, digest: str) -> Found[FederatedUser]:
        body = await self.directory.client.token(text)
        if body is None:
            raise Unauthenticated("the token is unknown to Keystone, expired or revoked")
        left = (body.expires_at - self.now()).total_seconds()
        if left <= 0:
            raise Unauthenticated(
                f"the token expired at {body.expires_at} by the clock of this service", known=body.user.id
            )
        require_undelegated(body)
        user = mapped_user(self.keystone, body.user)
        roles, service_roles = token_roles(self.keystone, body)
        is_own = body.application_credential is None
        found = FederatedUser(
            issuer=self.keystone,
            user=user,
            groups=await self.directory.groups(user.id, body.user.domain),
            roles=roles,
            service_roles=service_roles,
            expires_at=body.expires_at,
            credential_id=digest,
            method=TOKEN_METHOD if is_own else APPLICATION_CREDENTIAL_METHOD,
            revision=next(self._revisions),
            logged_in_at=body.issued_at - CLOCK_DIFFERENCE,
        )
        return Found(found, min(left, self.keystone.cache.total_seconds()))
