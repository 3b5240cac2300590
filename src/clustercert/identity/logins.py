"""Use case: a user ends all their own logins."""

from collections.abc import Callable, Iterator
from datetime import datetime

from clustercert.model import AuditEvent, Caller, KnownUser
from clustercert.model.events.administration import AccessKeyChanged, LoginsEnded
from clustercert.model.identity import BUILT_IN
from clustercert.store.engine.database import Database
from clustercert.store.user_logins import UserLoginQueries, UserLogins


class Logins:
    """Shows and ends the logins of a caller, on this and on other machines."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._queries = UserLoginQueries(database)
        self._now = now

    async def of_caller(self, caller: Caller) -> UserLogins:
        """Return the caller's tokens and access keys of the built-in identity."""
        return await self._queries.of_user(caller.user.id) if caller.issuer == BUILT_IN else UserLogins()

    async def end_all(self, caller: Caller, *, with_keys: bool) -> UserLogins:
        """End all logins of the caller, also the one of this request. Returns what was deleted.

        Of the built-in identity: deletes the tokens and temporary access keys, and with `with_keys` the permanent ones.
        Of an issuer or Keystone: refuses tokens of logins from before this moment. Raises Unauthenticated or Conflict.
        """
        user, now = caller.user, self._now()

        def event(ended: UserLogins) -> LoginsEnded:
            return LoginsEnded(
                at=now,
                actor=caller.actor,
                subject=user.id,
                name=user.name,
                issuer=caller.issuer,
                tokens=ended.tokens,
                temporary_keys=ended.temporary_keys,
            )

        if caller.issuer != BUILT_IN:
            known = KnownUser(user.id, user.name, user.domain.name, caller.issuer)
            await self._queries.end_federated(known, now, event(UserLogins()))
            return UserLogins()

        def events(ended: UserLogins) -> Iterator[AuditEvent]:
            yield event(ended)
            for key in ended.keys:
                yield AccessKeyChanged(
                    at=now,
                    kind="access_key.removed",
                    actor=caller.actor,
                    subject=key.id,
                    user_id=user.id,
                    description=key.description,
                    expires_at=None,
                )

        return await self._queries.end_built_in(user.id, with_keys=with_keys, events=events)
