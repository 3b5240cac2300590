"""Queries for access keys, permanent and temporary."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, insert, select, update

from clustercert.model import AccessKey, AuditEvent, Caller, User
from clustercert.model.errors import ConcurrentChange, NotFound, Unauthenticated
from clustercert.store import tables
from clustercert.store.engine.queries import BATCH, Queries, change_one, exists
from clustercert.store.engine.transaction import Transaction
from clustercert.store.entities import entity_columns, entity_of
from clustercert.store.roles import Roles, roles_everywhere
from clustercert.store.tokens import lock_token, lock_usable_user

_domain, _user, _key = tables.domain, tables.user, tables.access_key

_GONE = "This access key no longer exists."
# An id that no user has.
_NOBODY = "0" * 32


@dataclass(frozen=True, slots=True)
class LiveKey:
    """An access key with its user and roles, from one snapshot. The key or the user may be disabled."""

    key: AccessKey
    user: User
    roles: Roles


class AccessKeyQueries(Queries):
    """Reads and changes access keys, permanent and temporary."""

    async def of_user(self, user_id: str) -> tuple[AccessKey, ...]:
        """Return a user's keys, oldest first."""
        query = _KEYS.where(_key.c.user_id == user_id).order_by(_key.c.created_at, _key.c.id)
        return tuple(entity_of(AccessKey, row) for row in await self._rows(query))

    async def key(self, key_id: str) -> AccessKey | None:
        row = await self._row(_KEYS.where(_key.c.id == key_id))
        return None if row is None else entity_of(AccessKey, row)

    async def live(self, key_id: str) -> LiveKey | None:
        """Return the key with its user and the user's roles in all projects.

        Runs the same queries for a key that does not exist, to avoid a timing oracle.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(_LIVE, {"key_id": key_id})).first()
            roles = await roles_everywhere(connection, row.user_id if row is not None else _NOBODY)
            if row is None:
                return None
            return LiveKey(entity_of(AccessKey, row), entity_of(User, row), roles)

    async def add(self, key: AccessKey, event: AuditEvent) -> None:
        """Add a permanent key. Raises NotFound if the user no longer exists."""
        async with self._database.transaction(event) as connection:
            user = select(_user.c.id).where(_user.c.id == key.user_id).with_for_update()
            if not await exists(connection, user):
                raise NotFound("The user no longer exists.")
            await connection.execute(insert(_key).values(asdict(key)))

    async def add_temporary(self, key: AccessKey, caller: Caller, event: AuditEvent) -> None:
        """Add a temporary key. Raises Unauthenticated if the user or the caller's credential was just revoked."""
        async with self._database.transaction(event) as connection:
            usable = await lock_usable_user(connection, key.user_id)
            if not usable or not await _is_credential_stored(connection, caller):
                raise Unauthenticated("the credential was just revoked")
            await connection.execute(insert(_key).values(asdict(key)))

    async def enable(
        self, key: AccessKey, enabled: bool, event: AuditEvent, *, unchanged: bool = False
    ) -> None:
        """Enable or disable a key. Disabling deletes the user's temporary keys.

        Raises NotFound for a deleted key. With `unchanged`, raises ConcurrentChange if somebody has enabled or
        disabled the key since the caller read it.
        """
        async with self._database.transaction(event, invalidate=True) as connection:
            lock = select(_key.c.enabled).where(_key.c.id == key.id).with_for_update()
            if unchanged and (await connection.execute(lock)).scalar() not in {None, key.enabled}:
                raise ConcurrentChange
            query = update(_key).where(_key.c.id == key.id).values(enabled=enabled)
            await change_one(connection, query, _GONE)
            if not enabled:
                await end_temporary_keys(connection, key.user_id)

    async def remove(self, key: AccessKey, event: AuditEvent) -> None:
        """Delete a key, and the user's temporary keys, which it may have created. Raises NotFound for a deleted key."""
        async with self._database.transaction(event, invalidate=True) as connection:
            await change_one(connection, delete(_key).where(_key.c.id == key.id), _GONE)
            await end_temporary_keys(connection, key.user_id)

    async def prune(self, now: datetime) -> int:
        """Delete a batch of expired temporary keys, and return how many. Caches check expiry themselves."""
        expired = select(_key.c.id).where(_key.c.expires_at <= now).limit(BATCH)
        async with self._database.transaction() as connection:
            return (await connection.execute(delete(_key).where(_key.c.id.in_(expired)))).rowcount


async def end_temporary_keys(connection: Transaction, user_id: str) -> None:
    temporary = _key.c.security_token_hash.is_not(None)
    await connection.execute(delete(_key).where(_key.c.user_id == user_id, temporary))


async def _is_credential_stored(connection: Transaction, caller: Caller) -> bool:
    """Whether the caller's credential is still in the store."""
    if caller.method == "token":
        return await lock_token(connection, bytes.fromhex(caller.credential_id))
    query = select(_key.c.id).where(_key.c.id == caller.credential_id, _key.c.enabled)
    return await exists(connection, query.with_for_update())


_KEYS = select(*entity_columns(AccessKey))
_LIVE = (
    _KEYS.add_columns(*entity_columns(User))
    .join(_user, _user.c.id == _key.c.user_id)
    .join(_domain, _domain.c.id == _user.c.domain_id)
    .where(_key.c.id == bindparam("key_id"))
)
