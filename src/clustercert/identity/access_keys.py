"""Use case: access keys, permanent and temporary. How a signature is checked is `authn`'s business."""

import hashlib
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from clustercert.authn.access_keys import SigningKey
from clustercert.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from clustercert.identity.names import checked_description
from clustercert.identity.roles import role_names, service_role_names
from clustercert.model import AccessKey, AuditEvent, Caller, Origin, User
from clustercert.sealing import Sealer
from clustercert.store.access_keys import AccessKeyRows, LiveKey
from clustercert.store.database import Database
from clustercert.store.generation import Cache

# The vendors' forms: an AK of 20 upper-case letters and digits, an SK of 40 letters and digits (238 bits).
_AK_ALPHABET, _AK_LENGTH = string.ascii_uppercase + string.digits, 20
_SK_ALPHABET, _SK_LENGTH = string.ascii_letters + string.digits, 40
_MAX_AK = 40

# IAM API reference, "Obtaining a Temporary AK/SK": 15 minutes to 24 hours, the former by default.
MIN_LIFETIME = timedelta(minutes=15)
MAX_LIFETIME = timedelta(hours=24)

# About three kilobytes each.
CACHED_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A permanent access key with its SK, which its user gets to see once."""

    key: AccessKey
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TemporaryKey:
    """A temporary access key with its SK and the security token that it must come with, seen once."""

    key: AccessKey
    secret: str = field(repr=False)
    security_token: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that was found enabled, opened, and what its callers are made of."""

    live: LiveKey
    signing_key: SigningKey
    roles: Mapping[str, tuple[str, ...]]
    service_roles: tuple[str, ...]


class AccessKeys:
    """Makes access keys and answers whose they are. A key found a moment ago costs no I/O and no unsealing.

    A temporary key reaches all that its user reaches, as a token does by asking for another scope. It ends
    no later than the credential it was made with; and at once, with all others of its user, when the user's
    password is changed, the user is disabled, or one of their keys is disabled or removed.
    """

    def __init__(self, database: Database, sealer: Sealer, now: Callable[[], datetime]) -> None:
        self._rows = AccessKeyRows(database)
        self._sealer = sealer
        self._now = now
        self._cache: Cache[str, _Known] = Cache(database.generation, CACHED_KEYS)

    async def of_user(self, user: User) -> tuple[AccessKey, ...]:
        """Oldest first, temporary ones too."""
        return await self._rows.of_user(user.id)

    async def find(self, key_id: str) -> AccessKey:
        """Raises NotFound."""
        key = await self._rows.key(key_id) if _is_ak(key_id) else None
        if key is None:
            raise NotFound(f"There is no access key {key_id}.")
        return key

    async def create(self, user: User, *, description: str = "", actor: str, origin: Origin) -> IssuedKey:
        """A permanent key. Raises InvalidRequest or NotFound."""
        key, secret = await self._new_key(user, description=checked_description(description))
        await self._rows.add(key, self._event("access_key.created", key, actor, origin))
        return IssuedKey(key, secret)

    async def create_temporary(self, caller: Caller, lifetime: timedelta = MIN_LIFETIME) -> TemporaryKey:
        """A temporary key for the caller's user. Raises InvalidRequest, Forbidden or Unauthenticated."""
        if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
            raise InvalidRequest("duration_seconds: must be 900 to 86400 (15 minutes to 24 hours).")
        if caller.method == "access_key" and caller.expires_at is not None:
            raise Forbidden(
                "A temporary access key can't make another one. Use a token or a permanent access key."
            )
        ends = self._now() + lifetime
        expires_at = min(ends, caller.expires_at) if caller.expires_at is not None else ends
        security_token = secrets.token_urlsafe(32)
        token_hash = hashlib.sha256(security_token.encode()).digest()
        key, secret = await self._new_key(caller.user, security_token_hash=token_hash, expires_at=expires_at)
        event = self._event("access_key.created", key, caller.user.id, caller.origin)
        await self._rows.add_temporary(key, caller, event)
        return TemporaryKey(key, secret, security_token, expires_at)

    async def enable(self, key: AccessKey, *, enabled: bool, actor: str, origin: Origin) -> None:
        """Disabling ends all temporary keys of the user: one may have been made with it. Raises NotFound."""
        kind = "access_key.enabled" if enabled else "access_key.disabled"
        await self._rows.enable(key, enabled, self._event(kind, key, actor, origin))

    async def remove(self, key: AccessKey, *, actor: str, origin: Origin) -> None:
        """Ends all temporary keys of the user: one may have been made with it. Raises NotFound."""
        await self._rows.remove(key, self._event("access_key.removed", key, actor, origin))

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        """The key in the clear; None where there is none or it is disabled."""
        known = await self._known(access_key_id)
        return known.signing_key if known is not None else None

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        """The caller whose key it is; the proof has been judged. Raises Unauthenticated."""
        known = await self._known(key.id)
        if known is None:
            raise Unauthenticated("the access key was disabled or removed a moment ago")
        if key.expires_at is not None and self._now() >= key.expires_at:
            raise Unauthenticated("the temporary access key has expired")
        if not known.live.user.enabled or not known.live.user.domain.enabled:
            raise Unauthenticated("the access key's user or their domain is disabled")
        return Caller(
            user=known.live.user,
            roles=known.roles,
            method="access_key",
            origin=origin,
            service_roles=known.service_roles,
            expires_at=key.expires_at,
            credential_id=key.id,
        )

    async def prune(self) -> int:
        """Forget some expired temporary keys; how many."""
        return await self._rows.prune(self._now())

    async def _known(self, access_key_id: str) -> _Known | None:
        return await self._cache.get(access_key_id, self._load) if _is_ak(access_key_id) else None

    async def _load(self, access_key_id: str) -> _Known | None:
        live = await self._rows.live(access_key_id)
        if live is None or not live.key.enabled:
            return None
        return _Known(
            live=live,
            signing_key=SigningKey(
                id=live.key.id,
                user_id=live.key.user_id,
                secret=await self._sealer.unseal(live.key.sealed_secret, _bound_to(live.key.id)),
                security_token_hash=live.key.security_token_hash,
                expires_at=live.key.expires_at,
            ),
            roles=role_names(live.roles),
            service_roles=service_role_names(live.roles),
        )

    async def _new_key(
        self,
        user: User,
        *,
        description: str = "",
        security_token_hash: bytes | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[AccessKey, str]:
        """A key, not stored yet, and its SK."""
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

    def _event(self, kind: str, key: AccessKey, actor: str, origin: Origin) -> AuditEvent:
        return AuditEvent(
            at=self._now(),
            kind=kind,
            project_id=None,
            actor=actor,
            subject=key.id,
            origin=origin,
            detail={
                "user_id": key.user_id,
                "description": key.description,
                "expires_at": key.expires_at.isoformat() if key.expires_at else None,
            },
        )


def _is_ak(text: str) -> bool:
    """Whether it may be an AK at all; the store isn't asked about anything else."""
    return 1 <= len(text) <= _MAX_AK and text.isascii() and text.isalnum()


def _bound_to(key_id: str) -> str:
    return f"access_key:{key_id}"


def _random_text(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
