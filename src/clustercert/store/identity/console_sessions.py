"""Queries for sessions of the console."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, bindparam, delete, insert, or_, select, update

from clustercert.model import AuditEvent, User
from clustercert.model.identity import BUILT_IN
from clustercert.model.sessions import IDLE_LIFETIME, LIFETIME, Session
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.engine.database import raise_generation
from clustercert.store.engine.queries import BATCH, Queries
from clustercert.store.engine.transaction import Transaction
from clustercert.store.identity.entities import entity_columns, entity_of
from clustercert.store.identity.roles import UserRoles, roles_in_all_projects

# The maximum number of sessions in a list of a user's sessions.
MAX_LISTED = 500

UserIds = Collection[str] | Select[tuple[str]]
"""Ids of users, or a query for them."""

_session, _user, _domain = tables.console_session, tables.user, tables.domain


@dataclass(frozen=True, slots=True)
class BuiltInAccount:
    """A user of the built-in identity service, who may be disabled, with their roles in all projects."""

    user: User
    roles: UserRoles


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session, which may have expired, and its login, from one snapshot.

    Attributes:
        sealed_credential: the claims or the token of a user of an OIDC issuer or of Keystone; else empty.
        account: the user of the built-in identity service; None for other users, and if the user was deleted.
    """

    session: Session
    sealed_credential: bytes = field(repr=False)
    account: BuiltInAccount | None


class ConsoleSessionQueries(Queries):
    """Reads and changes sessions. Deleting sessions invalidates caches."""

    async def find(self, session_id: str) -> StoredSession | None:
        async with self._database.read() as connection:
            row = (await connection.execute(_SESSION, {"session_id": session_id})).first()
            if row is None:
                return None
            session = _session_of(row)
            account = await _account(connection, session.user_id) if session.issuer == BUILT_IN else None
            return StoredSession(session, row.sealed_credential or b"", account)

    async def seen_at(self, session_id: str) -> datetime | None:
        """Return when the session was last used, or None if it has ended."""
        return await self._scalar(select(_session.c.seen_at).where(_session.c.id == session_id))

    async def record_use(self, session_id: str, now: datetime) -> None:
        """Record that the session was used. Caches stay valid."""
        later = update(_session).where(_session.c.id == session_id, _session.c.seen_at < now)
        async with self._database.transaction() as connection:
            await connection.execute(later.values(seen_at=now))

    async def of_user(self, user_id: str) -> tuple[Session, ...]:
        """Return a user's sessions, newest first, including expired ones. Leaves out the oldest of very many."""
        query = select(_session).where(_session.c.user_id == user_id)
        newest = query.order_by(_session.c.created_at.desc(), _session.c.id).limit(MAX_LISTED)
        rows = await self._rows(newest)
        return tuple(map(_session_of, rows))

    async def add(self, session: Session, sealed_credential: bytes, *events: AuditEvent) -> None:
        """Store a session of a user of an OIDC issuer or of Keystone."""
        async with self._database.transaction(*events) as connection:
            await insert_session(connection, session, sealed_credential)

    async def remove(self, session_id: str, event: AuditEvent) -> bool:
        """Delete a session. Returns False, and records no event, if the session has ended already."""
        async with self._database.transaction() as connection:
            deleted = await connection.execute(delete(_session).where(_session.c.id == session_id))
            if not deleted.rowcount:
                return False
            await raise_generation(connection)
            await record_events(connection, (event,))
        return True

    async def of_issuer(
        self, issuer: str, *, sid: str | None, sub: str | None, at: datetime
    ) -> tuple[Session, ...]:
        """Return the sessions that began with a login at an issuer, in the issuer's session `sid` or by its user `sub`.

        Without `sid`, leaves out the sessions whose login is known to be later than the time `at`.
        """
        query = select(_session).where(_session.c.issuer == issuer)
        if sid is not None:
            query = query.where(_session.c.sid == sid)
        else:
            logged_in_at = _session.c.authenticated_at
            query = query.where(or_(logged_in_at.is_(None), logged_in_at <= at))
        if sub is not None:
            query = query.where(_session.c.sub == sub)
        return tuple(map(_session_of, await self._rows(query)))

    async def prune(self, now: datetime) -> int:
        """Delete a batch of expired sessions. Returns the number of deleted sessions.

        Does not invalidate caches, because caches check the ages of sessions themselves.
        """
        expired = or_(_session.c.created_at <= now - LIFETIME, _session.c.seen_at <= now - IDLE_LIFETIME)
        batch = select(_session.c.id).where(expired).limit(BATCH)
        async with self._database.transaction() as connection:
            return (await connection.execute(delete(_session).where(_session.c.id.in_(batch)))).rowcount


async def end_sessions(connection: Transaction, users: UserIds, *, kept: str | None = None) -> int:
    """Delete the sessions of users in the caller's transaction, which must raise the generation.

    Returns the number of deleted sessions. `kept`: the id of a session to keep.
    """
    query = delete(_session).where(_session.c.user_id.in_(users))
    if kept is not None:
        query = query.where(_session.c.id != kept)
    return (await connection.execute(query)).rowcount


async def insert_session(
    connection: Transaction, session: Session, sealed_credential: bytes | None = None
) -> None:
    """Store a session in the caller's transaction."""
    values = asdict(session) | {"sealed_credential": sealed_credential}
    await connection.execute(insert(_session).values(values))


async def _account(connection: Transaction, user_id: str) -> BuiltInAccount | None:
    row = (await connection.execute(_USER, {"user_id": user_id})).first()
    if row is None:
        return None
    return BuiltInAccount(entity_of(User, row), await roles_in_all_projects(connection, user_id))


def _session_of(row: Row[Any]) -> Session:
    return Session(**{each.name: getattr(row, each.name) for each in fields(Session)})


_SESSION = select(_session).where(_session.c.id == bindparam("session_id"))
_USER = (
    select(*entity_columns(User))
    .join(_domain, _domain.c.id == _user.c.domain_id)
    .where(_user.c.id == bindparam("user_id"))
)
