"""Queries for all logins of a user: tokens and access keys of the built-in identity, and logins at issuers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.exc import IntegrityError

from clustercert.model import AccessKey, AuditEvent, KnownUser
from clustercert.model.errors import ConcurrentChange, Unauthenticated
from clustercert.store import tables
from clustercert.store.access_keys import end_temporary_keys
from clustercert.store.engine.database import raise_generation
from clustercert.store.engine.queries import BATCH, Queries
from clustercert.store.entities import entity_columns, entity_of
from clustercert.store.events import record_events
from clustercert.store.known_users import put_federated_user
from clustercert.store.tokens import lock_usable_user

_token, _key, _federated = tables.token, tables.access_key, tables.federated_user


@dataclass(frozen=True, slots=True)
class UserLogins:
    """A user's tokens and access keys of the built-in identity.

    Attributes:
        tokens, temporary_keys: how many there are, expired ones included.
        keys: the permanent access keys, oldest first.
    """

    tokens: int = 0
    temporary_keys: int = 0
    keys: tuple[AccessKey, ...] = ()


class UserLoginQueries(Queries):
    """Reads and ends the logins of a user."""

    async def of_user(self, user_id: str) -> UserLogins:
        tokens = select(func.count()).select_from(_token).where(_token.c.user_id == user_id)
        async with self._database.read() as connection:
            count = (await connection.execute(tokens)).scalar_one()
            rows = (await connection.execute(_keys_of(user_id))).all()
        keys = [entity_of(AccessKey, row) for row in rows]
        permanent = tuple(each for each in keys if each.security_token_hash is None)
        return UserLogins(count, len(keys) - len(permanent), permanent)

    async def end_built_in(
        self, user_id: str, *, with_keys: bool, events: Callable[[UserLogins], Iterable[AuditEvent]]
    ) -> UserLogins:
        """Delete a user's tokens and temporary keys, and with `with_keys` the permanent ones. Returns what was deleted.

        Does nothing, and records no event, if there is nothing to delete. Raises Unauthenticated if the user was
        disabled or deleted meanwhile.
        """
        deleted = await self._delete_tokens(user_id)
        async with self._database.transaction() as connection:
            # Lock the row first, so that no token or key is added later.
            if not await lock_usable_user(connection, user_id):
                raise Unauthenticated("the user was disabled during the request", known=user_id)
            rows = (await connection.execute(_keys_of(user_id))).all()
            keys = [entity_of(AccessKey, row) for row in rows]
            permanent = tuple(each for each in keys if each.security_token_hash is None) if with_keys else ()
            tokens = await connection.execute(delete(_token).where(_token.c.user_id == user_id))
            if with_keys:
                await connection.execute(delete(_key).where(_key.c.user_id == user_id))
            else:
                await end_temporary_keys(connection, user_id)
            temporary = sum(each.security_token_hash is not None for each in keys)
            ended = UserLogins(deleted + tokens.rowcount, temporary, permanent)
            if ended != UserLogins():
                await raise_generation(connection)
                await record_events(connection, tuple(events(ended)))
        return ended

    async def _delete_tokens(self, user_id: str) -> int:
        """Delete a user's tokens in batches, so that other writers wait only briefly. Returns how many were deleted.

        Somebody else may add tokens meanwhile.
        """
        batch = select(_token.c.hash).where(_token.c.user_id == user_id).limit(BATCH)
        deleted, count = 0, BATCH
        while count == BATCH:
            async with self._database.transaction() as connection:
                count = (await connection.execute(delete(_token).where(_token.c.hash.in_(batch)))).rowcount
                if count:
                    # In each batch, because the process may end before the last one.
                    await raise_generation(connection)
            deleted += count
        return deleted

    async def end_federated(self, user: KnownUser, at: datetime, event: AuditEvent) -> None:
        """Refuse logins of a user of an issuer or of Keystone from before a time.

        Raises ConcurrentChange if another request records the user at the same time.
        """
        try:
            async with self._database.transaction(event, invalidate=True) as connection:
                query = select(_federated.c.logins_ended_at).where(_federated.c.id == user.id)
                earlier = (await connection.execute(query.with_for_update())).scalar()
                # The clock of another replica may be ahead.
                ended_at = at if earlier is None else max(at, earlier)
                await put_federated_user(connection, user, logins_ended_at=ended_at)
        except IntegrityError:
            raise ConcurrentChange from None


def _keys_of(user_id: str) -> Select[Any]:
    return (
        select(*entity_columns(AccessKey))
        .where(_key.c.user_id == user_id)
        .order_by(_key.c.created_at, _key.c.id)
    )
