"""Queries for tokens and logins."""

import contextlib
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent, Domain, Project, Token, User
from clustercert.store import tables
from clustercert.store.engine.queries import BATCH, Queries, exists
from clustercert.store.engine.transaction import Transaction
from clustercert.store.entities import Reference, entity_columns, entity_of, in_domains
from clustercert.store.roles import Roles, roles_in

_domain, _project, _user, _token = tables.domain, tables.project, tables.user, tables.token
_network = tables.login_network

# Known networks of each user; the least recently used ones are deleted. They expire after the time without a login.
MAX_NETWORKS = 256
NETWORK_LIFETIME = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Login:
    """A user who logs in.

    Attributes:
        password_hash: an Argon2 string, or None if the user has no password.
        is_known_source: whether the user has logged in by password from the same network before.
    """

    user: User
    password_hash: str | None = field(repr=False)
    is_known_source: bool = False


@dataclass(frozen=True, slots=True)
class LiveToken:
    """A token with its user, scope and roles, from one snapshot. It may be expired, and user or scope disabled.

    Attributes:
        project, domain: the scope; at most one of them is set.
        roles: roles in the project; without a project, only service roles.
    """

    token: Token
    user: User
    project: Project | None
    domain: Domain | None
    roles: Roles


class TokenQueries(Queries):
    """Reads and changes tokens, and reads logins."""

    async def login(self, wanted: Reference, network: str) -> Login | None:
        """Return the user that a login names, or None unless exactly one user matches.

        `network`: the client's IPv4 address or IPv6 /64.
        """
        async with self._database.read() as connection:
            rows = list(await connection.execute(in_domains(User, wanted).add_columns(_user.c.password_hash)))
            user = entity_of(User, rows[0]) if len(rows) == 1 else None
            # The same query for unknown users, to avoid a timing oracle.
            of_login = {"login_user": user.id if user else "", "login_network": network}
            is_known_source = (await connection.execute(_KNOWN_NETWORK, of_login)).first() is not None
        return Login(user, rows[0].password_hash, is_known_source) if user else None

    async def add_by_password(
        self, token: Token, checked_hash: str, network: str, *, fresh_hash: str | None
    ) -> LiveToken | None:
        """Store a token. Returns None if the user was disabled, the password changed or the scope deleted meanwhile.

        Also remembers that the user has logged in from this network. `fresh_hash`, unless it is `None`, replaces the
        password hash that was checked.
        """
        with contextlib.suppress(IntegrityError):
            async with self._database.transaction() as connection:
                if not await lock_usable_user(
                    connection, token.user_id, _user.c.password_hash == checked_hash
                ):
                    return None
                if fresh_hash is not None:
                    query = update(_user).where(_user.c.id == token.user_id)
                    await connection.execute(query.values(password_hash=fresh_hash))
                await _remember_network(connection, token, network)
                await connection.execute(insert(_token).values(asdict(token)))
                return await _live_token(connection, token.hash)
        return None

    async def add_by_token(self, token: Token, parent: bytes) -> LiveToken | None:
        """Store a token. Returns None if the parent token, the user or the scope is no longer valid."""
        with contextlib.suppress(IntegrityError):
            async with self._database.transaction() as connection:
                usable = await lock_usable_user(connection, token.user_id)
                if usable and await lock_token(connection, parent):
                    await connection.execute(insert(_token).values(asdict(token)))
                    return await _live_token(connection, token.hash)
        return None

    async def live(self, token_hash: bytes) -> LiveToken | None:
        """Return the token with its user, scope and roles, or None."""
        async with self._database.read() as connection:
            return await _live_token(connection, token_hash)

    async def remove(self, token_hash: bytes, event: AuditEvent) -> None:
        """Delete a token. Raises NotFound if it is not stored."""
        await self._change(delete(_token).where(_token.c.hash == token_hash), event, "Could not find token.")

    async def prune(self, now: datetime) -> int:
        """Delete expired tokens and known networks, and return how many were deleted, at most a batch of tokens.

        Caches check the expiry of tokens themselves.
        """
        expired = select(_token.c.hash).where(_token.c.expires_at <= now).limit(BATCH)
        unused = delete(_network).where(_network.c.last_login_at <= now - NETWORK_LIFETIME)
        async with self._database.transaction() as connection:
            tokens = await connection.execute(delete(_token).where(_token.c.hash.in_(expired)))
            return tokens.rowcount + (await connection.execute(unused)).rowcount


async def lock_usable_user(connection: Transaction, user_id: str, *conditions: ColumnElement[bool]) -> bool:
    """Lock the user's row. Returns whether the user exists, is enabled and meets the conditions."""
    # Transactions that delete a user's tokens and temporary keys write this row first, so that none is added later.
    query = select(_user.c.id).where(_user.c.id == user_id, _user.c.enabled, *conditions)
    return await exists(connection, query.with_for_update())


async def lock_token(connection: Transaction, token_hash: bytes) -> bool:
    """Lock the token's row. Returns whether it exists."""
    query = select(_token.c.user_id).where(_token.c.hash == token_hash)
    return await exists(connection, query.with_for_update())


async def _remember_network(connection: Transaction, token: Token, network: str) -> None:
    """Record a login of the token's user from a network. The transaction must have locked the user's row."""
    of_user = _network.c.user_id == token.user_id
    known = update(_network).where(of_user, _network.c.network == network)
    if (await connection.execute(known.values(last_login_at=token.issued_at))).rowcount:
        return
    latest = select(_network.c.network).where(of_user).order_by(_network.c.last_login_at.desc())
    kept = latest.limit(MAX_NETWORKS - 1)
    await connection.execute(delete(_network).where(of_user, _network.c.network.not_in(kept)))
    row = {"user_id": token.user_id, "network": network, "last_login_at": token.issued_at}
    await connection.execute(insert(_network).values(row))


_KNOWN_NETWORK = select(_network.c.user_id).where(
    _network.c.user_id == bindparam("login_user"), _network.c.network == bindparam("login_network")
)


async def _live_token(connection: Transaction, token_hash: bytes) -> LiveToken | None:
    row = (await connection.execute(_LIVE, {"token_hash": token_hash})).first()
    if row is None:
        return None
    token = entity_of(Token, row, methods=tuple(row.token_methods))
    return LiveToken(
        token=token,
        user=entity_of(User, row),
        project=entity_of(Project, row) if token.project_id is not None else None,
        domain=entity_of(Domain, row, "scope") if token.domain_id is not None else None,
        roles=await roles_in(connection, token.user_id, token.project_id),
    )


_users, _projects, _scopes = (_domain.alias(name) for name in ("users", "projects", "scope"))
_LIVE = (
    select(
        *entity_columns(Token),
        *entity_columns(User, domain=_users),
        *entity_columns(Project, domain=_projects),
        *entity_columns(Domain, domain=_scopes, prefix="scope"),
    )
    .join(_user, _user.c.id == _token.c.user_id)
    .join(_users, _users.c.id == _user.c.domain_id)
    .outerjoin(_project, _project.c.id == _token.c.project_id)
    .outerjoin(_projects, _projects.c.id == _project.c.domain_id)
    .outerjoin(_scopes, _scopes.c.id == _token.c.domain_id)
    .where(_token.c.hash == bindparam("token_hash"))
)
