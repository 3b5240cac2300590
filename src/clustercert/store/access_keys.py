"""Every SQL statement about access keys, permanent and temporary."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, insert, select, update

from clustercert.errors import NotFound, Unauthenticated
from clustercert.model import AccessKey, AuditEvent, Caller, User
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.nouns import change_one, columns, noun_of, user_columns, user_of
from clustercert.store.roles import Roles, roles_everywhere
from clustercert.store.tokens import PRUNED_AT_ONCE, token_is_there, user_is_usable
from clustercert.store.transaction import Transaction

_domain, _user, _key = tables.domain, tables.user, tables.access_key

_GONE = "This access key does not exist any more."


@dataclass(frozen=True, slots=True)
class LiveKey:
    """An access key and all that decides what it is worth, read in one transaction; not judged yet."""

    key: AccessKey
    user: User
    roles: Roles


class AccessKeyRows:
    """Access keys, permanent and temporary."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_user(self, user_id: str) -> tuple[AccessKey, ...]:
        """Oldest first."""
        query = (
            select(*_key_columns()).where(_key.c.user_id == user_id).order_by(_key.c.created_at, _key.c.id)
        )
        async with self._database.read() as connection:
            return tuple(noun_of(AccessKey, row, "key") for row in await connection.execute(query))

    async def key(self, key_id: str) -> AccessKey | None:
        async with self._database.read() as connection:
            row = (await connection.execute(select(*_key_columns()).where(_key.c.id == key_id))).first()
            return noun_of(AccessKey, row, "key") if row is not None else None

    async def live(self, key_id: str) -> LiveKey | None:
        """The key, its user and their roles everywhere."""
        async with self._database.read() as connection:
            row = (await connection.execute(_LIVE, {"key_id": key_id})).first()
            if row is None:
                return None
            return LiveKey(
                noun_of(AccessKey, row, "key"), user_of(row), await roles_everywhere(connection, row.user_id)
            )

    async def add(self, key: AccessKey, event: AuditEvent) -> None:
        """Raises NotFound where the user is gone."""
        async with self._database.write(event) as connection:
            user = select(_user.c.id).where(_user.c.id == key.user_id).with_for_update()
            if (await connection.execute(user)).first() is None:
                raise NotFound("The user does not exist any more.")
            await connection.execute(insert(_key).values(asdict(key)))

    async def add_temporary(self, key: AccessKey, caller: Caller, event: AuditEvent) -> None:
        """Raises Unauthenticated where the user or the caller's credential was revoked a moment ago."""
        async with self._database.write(event) as connection:
            usable = await user_is_usable(connection, key.user_id)
            if not usable or not await _still_holds(connection, caller):
                raise Unauthenticated("the credential was revoked a moment ago")
            await connection.execute(insert(_key).values(asdict(key)))

    async def enable(self, key: AccessKey, enabled: bool, event: AuditEvent) -> None:
        """Disabling ends the user's temporary keys: one may have been made with it. Raises NotFound."""
        async with self._database.change(event) as connection:
            query = update(_key).where(_key.c.id == key.id).values(enabled=enabled)
            await change_one(connection, query, _GONE)
            if not enabled:
                await end_temporary_keys(connection, key.user_id)

    async def remove(self, key: AccessKey, event: AuditEvent) -> None:
        """Ends the user's temporary keys: one may have been made with it. Raises NotFound."""
        async with self._database.change(event) as connection:
            await change_one(connection, delete(_key).where(_key.c.id == key.id), _GONE)
            await end_temporary_keys(connection, key.user_id)

    async def prune(self, now: datetime) -> int:
        """Forget some expired temporary keys; how many. No cache answers with an expired one."""
        expired = select(_key.c.id).where(_key.c.expires_at <= now).limit(PRUNED_AT_ONCE)
        async with self._database.write() as connection:
            return (await connection.execute(delete(_key).where(_key.c.id.in_(expired)))).rowcount


async def end_temporary_keys(connection: Transaction, user_id: str) -> None:
    temporary = _key.c.security_token_hash.is_not(None)
    await connection.execute(delete(_key).where(_key.c.user_id == user_id, temporary))


async def _still_holds(connection: Transaction, caller: Caller) -> bool:
    """Whether the caller's credential is still in the store."""
    if caller.method == "token":
        return await token_is_there(connection, bytes.fromhex(caller.credential_id))
    query = select(_key.c.id).where(_key.c.id == caller.credential_id, _key.c.enabled).with_for_update()
    return (await connection.execute(query)).first() is not None


def _key_columns() -> tuple[ColumnElement[Any], ...]:
    return columns(_key, "key", *_key.c.keys())


# Made once: putting such a statement together takes longer than running it.
_LIVE = (
    select(*_key_columns(), *user_columns(_domain))
    .join(_user, _user.c.id == _key.c.user_id)
    .join(_domain, _domain.c.id == _user.c.domain_id)
    .where(_key.c.id == bindparam("key_id"))
)
