"""Use case: manage permanent and temporary access keys. `authn.access_keys` verifies signed requests."""

import hashlib
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from clustercert.authn.access_keys import SigningKey
from clustercert.identity.names import checked_description
from clustercert.identity.roles import BuiltInUser
from clustercert.limits.issuing import UserRates
from clustercert.model import AccessKey, Actor, Caller, Origin, User
from clustercert.model.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from clustercert.model.events.administration import AccessKeyChange, AccessKeyChanged
from clustercert.model.identity import BUILT_IN
from clustercert.pki.envelope import SecretSealer
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Cache
from clustercert.store.identity.logins import AccessKeyQueries, LiveKey

# The cloud vendors' format: an access key id (AK) has 20 upper-case letters and digits, and a secret key (SK) has 40
# letters and digits (238 bits).
_AK_ALPHABET, _AK_LENGTH = string.ascii_uppercase + string.digits, 20
_SK_ALPHABET, _SK_LENGTH = string.ascii_letters + string.digits, 40
_MAX_AK = 40

# IAM API reference, "Obtaining a Temporary AK/SK": 15 minutes (the default) to 24 hours.
MIN_LIFETIME = timedelta(minutes=15)
MAX_LIFETIME = timedelta(hours=24)

# The maximum number of cached keys. A cached key takes about three kilobytes.
CACHED_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new permanent access key with its SK, which is shown only once."""

    key: AccessKey
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TemporaryKey(IssuedKey):
    """A new temporary access key with its SK and security token, which are shown only once."""

    security_token: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class _CachedKey:
    """An enabled access key with its decrypted secret and its user."""

    live: LiveKey
    signing_key: SigningKey
    user: BuiltInUser


class AccessKeys:
    """Creates access keys, and finds the callers who own them. Looking up a cached key needs no I/O or decryption.

    A temporary key has all rights of its user, and expires no later than the credential that created the key. All
    temporary keys of a user are deleted when the user or their domain is disabled, the user's password changes, or one
    of the user's keys is disabled or removed.
    """

    def __init__(
        self, database: Database, sealer: SecretSealer, now: Callable[[], datetime], rates: UserRates
    ) -> None:
        self.queries = AccessKeyQueries(database)
        self._sealer = sealer
        self._now = now
        self._rates = rates
        self._cache: Cache[str, _CachedKey] = Cache(database.generation, CACHED_KEYS)

    async def find(self, key_id: str) -> AccessKey:
        """Return an access key. Raises NotFound if the key does not exist."""
        key = await self.queries.key(key_id) if _is_ak(key_id) else None
        if key is None:
            raise _no_such_key(key_id)
        return key

    async def create(self, user: User, *, description: str = "", actor: Actor) -> IssuedKey:
        """Create a permanent key. Raises InvalidRequest for an invalid description, or NotFound for a deleted user."""
        key, secret = await self._new_key(user, description=checked_description(description))
        await self.queries.add(key, self._event("access_key.created", key, actor))
        return IssuedKey(key, secret)

    async def create_temporary(self, caller: Caller, lifetime: timedelta = MIN_LIFETIME) -> TemporaryKey:
        """Create a temporary key for the caller's user.

        Raises InvalidRequest if the lifetime is out of range, Forbidden if the caller uses a temporary key,
        TooManyRequests, or Unauthenticated if the caller's credential was just revoked.
        """
        if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
            raise InvalidRequest("duration_seconds: must be 900 to 86400 (15 minutes to 24 hours).")
        if caller.issuer != BUILT_IN:
            raise Forbidden(
                "Only users of the built-in identity service can have access keys here. Use the credentials of your"
                " identity system."
            )
        if caller.method == "access_key" and caller.expires_at is not None:
            raise Forbidden(
                "A temporary access key can't create access keys. Use a token or a permanent access key."
            )
        self._rates.count("temporary_keys", caller.user)
        ends = self._now() + lifetime
        expires_at = min(ends, caller.expires_at) if caller.expires_at is not None else ends
        security_token = secrets.token_urlsafe(32)
        token_hash = hashlib.sha256(security_token.encode()).digest()
        key, secret = await self._new_key(caller.user, security_token_hash=token_hash, expires_at=expires_at)
        event = self._event("access_key.created", key, caller.actor)
        await self.queries.add_temporary(key, caller, event)
        return TemporaryKey(key, secret, security_token, expires_at)

    async def enable(self, key: AccessKey, *, enabled: bool, actor: Actor) -> None:
        """Enable or disable a key. Disabling deletes the user's temporary keys. Raises NotFound for a deleted key."""
        await self.queries.enable(key, enabled, self._switched(key, enabled, actor))

    async def update(self, key: AccessKey, *, enabled: bool, actor: Actor) -> AccessKey:
        """Like `enable`, but does nothing if `enabled` is unchanged. Raises ConcurrentChange if the key was changed."""
        if key.enabled != enabled:
            event = self._switched(key, enabled, actor)
            await self.queries.enable(key, enabled, event, unchanged=True)
        return replace(key, enabled=enabled)

    async def remove(self, key: AccessKey, *, actor: Actor) -> None:
        """Delete a key and all of the user's temporary keys. Raises NotFound if the key does not exist."""
        await self.queries.remove(key, self._event("access_key.removed", key, actor))

    async def remove_own(self, caller: Caller, key_id: str) -> None:
        """Delete one of the caller's keys, like `remove`. Raises NotFound also for a key of another user."""
        key = await self.find(key_id)
        if key.user_id != caller.user.id:
            raise _no_such_key(key_id)
        await self.remove(key, actor=caller.actor)

    def cached_signing_key(self, access_key_id: str) -> SigningKey | None:
        """Return the key with its decrypted secret if the key is cached, else None."""
        cached = self._cache.cached(access_key_id)
        return cached.signing_key if cached is not None else None

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        """Return the key with its decrypted secret, or None if it is missing or disabled."""
        cached = await self._cached(access_key_id)
        return cached.signing_key if cached is not None else None

    async def look_up_unknown(self, access_key_id: str) -> None:
        """Read a key from the database and discard it, so that known and unknown keys take the same time."""
        await self._load(access_key_id)

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        """Return the caller who signed a request with this key. Raises Unauthenticated for an invalid key or user."""
        cached = await self._cached(key.id)
        if cached is None:
            raise Unauthenticated("the access key was disabled or removed a moment ago", known=key.id)
        if key.expires_at is not None and self._now() >= key.expires_at:
            raise Unauthenticated("the temporary access key has expired", known=key.id)
        if not cached.live.user.enabled or not cached.live.user.domain.enabled:
            raise Unauthenticated("the access key's user or their domain is disabled", known=key.id)
        return cached.user.caller("access_key", origin, expires_at=key.expires_at, credential_id=key.id)

    async def prune(self) -> int:
        """Delete a batch of expired temporary keys, and return the number of deleted keys."""
        return await self.queries.prune(self._now())

    async def _cached(self, access_key_id: str) -> _CachedKey | None:
        return await self._cache.get(access_key_id, self._load) if _is_ak(access_key_id) else None

    async def _load(self, access_key_id: str) -> _CachedKey | None:
        live = await self.queries.live(access_key_id)
        if live is None or not live.key.enabled:
            return None
        return _CachedKey(
            live=live,
            signing_key=SigningKey(
                id=live.key.id,
                user_id=live.key.user_id,
                secret=await self._sealer.unseal(live.key.sealed_secret, _bound_to(live.key.id)),
                security_token_hash=live.key.security_token_hash,
                expires_at=live.key.expires_at,
            ),
            user=BuiltInUser.with_roles(live.user, live.roles),
        )

    async def _new_key(
        self,
        user: User,
        *,
        description: str = "",
        security_token_hash: bytes | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[AccessKey, str]:
        """Generate an access key and its SK, without storing them."""
        key_id = _random_text(_AK_ALPHABET, _AK_LENGTH)
        secret = _random_text(_SK_ALPHABET, _SK_LENGTH)
        key = AccessKey(
            id=key_id,
            user_id=user.id,
            sealed_secret=await self._sealer.seal(secret.encode(), _bound_to(key_id)),
            description=description,
            enabled=True,
            created_at=self._now(),
            security_token_hash=security_token_hash,
            expires_at=expires_at,
        )
        return key, secret

    def _switched(self, key: AccessKey, enabled: bool, actor: Actor) -> AccessKeyChanged:
        return self._event("access_key.enabled" if enabled else "access_key.disabled", key, actor)

    def _event(self, kind: AccessKeyChange, key: AccessKey, actor: Actor) -> AccessKeyChanged:
        return AccessKeyChanged(
            at=self._now(),
            kind=kind,
            actor=actor,
            subject=key.id,
            user_id=key.user_id,
            description=key.description,
            expires_at=key.expires_at,
        )


def _is_ak(text: str) -> bool:
    """Whether a string can be an access key id (AK). Other strings are not looked up in the database."""
    return 1 <= len(text) <= _MAX_AK and text.isascii() and text.isalnum()


def _no_such_key(key_id: str) -> NotFound:
    return NotFound(f"There is no access key {key_id}.")


def _bound_to(key_id: str) -> str:
    return f"access_key:{key_id}"


def _random_text(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
