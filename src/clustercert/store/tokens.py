"""Every SQL statement about tokens and the logins that they come from."""

import contextlib
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent, Domain, Project, Token, User
from clustercert.store import tables
from clustercert.store.database import Database
from clustercert.store.nouns import (
    Reference,
    change_one,
    columns,
    domain_columns,
    domain_of,
    narrowed,
    noun_of,
    project_columns,
    project_of,
    user_columns,
    user_of,
    users_query,
)
from clustercert.store.roles import Roles, roles_in
from clustercert.store.transaction import Transaction

_domain, _project, _user, _token = tables.domain, tables.project, tables.user, tables.token

# Few enough that other writers wait only for a moment.
PRUNED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Login:
    """A user as a login finds them.

    Attributes:
        password_hash: an Argon2 string, or None for a user who can't log in.
    """

    user: User
    password_hash: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class LiveToken:
    """A token and all that decides what it is worth, read in one transaction; not judged yet.

    Attributes:
        project, domain: its scope; at most one of the two.
        roles: in the project alone; without one, in no project.
    """

    token: Token
    user: User
    project: Project | None
    domain: Domain | None
    roles: Roles


class TokenRows:
    """Tokens, and the users who ask for them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def login(self, wanted: Reference) -> Login | None:
        """The user that is meant."""
        query = narrowed(
            users_query().add_columns(_user.c.password_hash),
            (_user.c.id, wanted.id),
            (_user.c.name, wanted.name),
            (_user.c.domain_id, wanted.domain_id),
            (_domain.c.name, wanted.domain_name),
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            return Login(user_of(row), row.password_hash) if row is not None else None

    async def add_by_password(
        self, token: Token, checked_hash: str, *, fresh_hash: str | None
    ) -> LiveToken | None:
        """Store a token, unless the user was disabled or their password changed since its hash was checked.

        `fresh_hash` replaces the checked one. Nor is one stored whose scope went away meanwhile.
        """
        with contextlib.suppress(IntegrityError):
            async with self._database.write() as connection:
                if not await user_is_usable(connection, token.user_id, _user.c.password_hash == checked_hash):
                    return None
                if fresh_hash is not None:
                    query = update(_user).where(_user.c.id == token.user_id)
                    await connection.execute(query.values(password_hash=fresh_hash))
                return await _added(connection, token)
        return None

    async def add_by_token(self, token: Token, parent: bytes) -> LiveToken | None:
        """Store a token, unless the one it was asked with was revoked, its user disabled, or its scope went away."""
        with contextlib.suppress(IntegrityError):
            async with self._database.write() as connection:
                usable = await user_is_usable(connection, token.user_id)
                if usable and await token_is_there(connection, parent):
                    return await _added(connection, token)
        return None

    async def live(self, token_hash: bytes) -> LiveToken | None:
        """The token, its user, its scope and the roles there."""
        async with self._database.read() as connection:
            return await _live_token(connection, token_hash)

    async def remove(self, token_hash: bytes, event: AuditEvent) -> None:
        """Raises NotFound."""
        async with self._database.change(event) as connection:
            query = delete(_token).where(_token.c.hash == token_hash)
            await change_one(connection, query, "Could not find token.")

    async def prune(self, now: datetime) -> int:
        """Forget some expired tokens; how many. No cache answers with an expired one."""
        expired = select(_token.c.hash).where(_token.c.expires_at <= now).limit(PRUNED_AT_ONCE)
        async with self._database.write() as connection:
            return (await connection.execute(delete(_token).where(_token.c.hash.in_(expired)))).rowcount


async def user_is_usable(connection: Transaction, user_id: str, *conditions: ColumnElement[bool]) -> bool:
    """Whether the user is there, enabled and as the conditions say, until the transaction ends."""
    # Whatever ends a user's tokens and temporary keys writes this row first, so that none slips in behind it.
    query = select(_user.c.id).where(_user.c.id == user_id, _user.c.enabled, *conditions).with_for_update()
    return (await connection.execute(query)).first() is not None


async def token_is_there(connection: Transaction, token_hash: bytes) -> bool:
    """Whether the token is there, until the transaction ends."""
    query = select(_token.c.user_id).where(_token.c.hash == token_hash).with_for_update()
    return (await connection.execute(query)).first() is not None


async def _added(connection: Transaction, token: Token) -> LiveToken | None:
    await connection.execute(insert(_token).values(asdict(token)))
    return await _live_token(connection, token.hash)


def _live_query() -> Select[Any]:
    users, projects, scope = (_domain.alias(name) for name in ("users", "projects", "scope"))
    return (
        select(
            *columns(_token, "token", *_token.c.keys()),
            *user_columns(users),
            *project_columns(projects),
            *domain_columns(scope, "scope"),
        )
        .join(_user, _user.c.id == _token.c.user_id)
        .join(users, users.c.id == _user.c.domain_id)
        .outerjoin(_project, _project.c.id == _token.c.project_id)
        .outerjoin(projects, projects.c.id == _project.c.domain_id)
        .outerjoin(scope, scope.c.id == _token.c.domain_id)
        .where(_token.c.hash == bindparam("token_hash"))
    )


async def _live_token(connection: Transaction, token_hash: bytes) -> LiveToken | None:
    row = (await connection.execute(_LIVE, {"token_hash": token_hash})).first()
    if row is None:
        return None
    token = noun_of(Token, row, "token", methods=tuple(row.token_methods))
    return LiveToken(
        token=token,
        user=user_of(row),
        project=project_of(row) if token.project_id is not None else None,
        domain=domain_of(row, "scope") if token.domain_id is not None else None,
        roles=await roles_in(connection, token.user_id, token.project_id),
    )


# Made once: putting such a statement together takes longer than running it.
_LIVE = _live_query()
