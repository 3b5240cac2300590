"""Queries for tokens and access keys, and for starting and ending logins of a user."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, bindparam, delete, func, insert, not_, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import AccessKey, AuditEvent, Caller, Domain, KnownUser, Project, Token, User
from clustercert.model.errors import ConcurrentChange, NotFound, Unauthenticated
from clustercert.model.sessions import Session
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.engine.database import raise_generation
from clustercert.store.engine.queries import BATCH, Queries, change_one, exists
from clustercert.store.engine.transaction import Transaction
from clustercert.store.identity.console_sessions import UserIds, end_sessions, insert_session
from clustercert.store.identity.entities import Reference, entity_columns, entity_of, in_domains
from clustercert.store.identity.known_users import put_federated_user
from clustercert.store.identity.roles import UserRoles, roles_in_all_projects, roles_in_project

_domain, _project, _user, _token = tables.domain, tables.project, tables.user, tables.token
_network, _key, _federated = tables.login_network, tables.access_key, tables.federated_user
_session = tables.console_session

# The maximum number of known networks of a user, and how long a network stays known without a login. Beyond the
# maximum, the least recently used networks are deleted.
MAX_NETWORKS = 256
NETWORK_LIFETIME = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class LoginUser:
    """A user who logs in.

    Attributes:
        password_hash: an Argon2 string, or None if the user has no password.
        is_known_source: whether the user has logged in by password from the same network before.
    """

    user: User
    password_hash: str | None = field(repr=False)
    is_known_source: bool = False


@dataclass(frozen=True, slots=True)
class PasswordLogin:
    """A login whose password was checked.

    Attributes:
        network: the client's IPv4 address or IPv6 /64.
        checked_hash: the password hash that was checked.
        fresh_hash: replaces the password hash, if given.
    """

    user_id: str
    at: datetime
    network: str
    checked_hash: str = field(repr=False)
    fresh_hash: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LiveToken:
    """A token with its user, scope and roles, from one snapshot.

    The token may be expired, and its user or scope may be disabled.

    Attributes:
        project, domain: the scope; at most one of them is set.
        roles: roles in the project; without a project, only service roles.
    """

    token: Token
    user: User
    project: Project | None
    domain: Domain | None
    roles: UserRoles


class TokenQueries(Queries):
    """Reads and changes tokens, and reads logins."""

    async def login(self, reference: Reference, network: str) -> LoginUser | None:
        """Return the user to whom a login request refers, or None if no user or several users match.

        `network`: the client's IPv4 address or IPv6 /64.
        """
        async with self._database.read() as connection:
            rows = list(
                await connection.execute(in_domains(User, reference).add_columns(_user.c.password_hash))
            )
            user = entity_of(User, rows[0]) if len(rows) == 1 else None
            # Run the same query for unknown users, to avoid a timing oracle.
            of_login = {"login_user": user.id if user else "", "login_network": network}
            is_known_source = (await connection.execute(_KNOWN_NETWORK, of_login)).first() is not None
        return LoginUser(user, rows[0].password_hash, is_known_source) if user else None

    async def add_by_password(self, token: Token, login: PasswordLogin) -> LiveToken | None:
        """Store a token.

        Returns None if the user or their domain was disabled, the password was changed, or the scope was disabled or
        deleted during the login.
        """
        with contextlib.suppress(IntegrityError):
            async with self._database.transaction() as connection:
                if not await confirm_password_login(connection, login):
                    return None
                if not await _lock_usable_scope(connection, token):
                    return None
                await connection.execute(insert(_token).values(asdict(token)))
                return await _live_token(connection, token.hash)
        return None

    async def add_by_token(self, token: Token, parent: bytes) -> LiveToken | None:
        """Store a token. Returns None if the parent token, the user or the scope is no longer valid."""
        with contextlib.suppress(IntegrityError):
            async with self._database.transaction() as connection:
                usable = await lock_usable_user(connection, token.user_id)
                if (
                    usable
                    and await lock_token(connection, parent)
                    and await _lock_usable_scope(connection, token)
                ):
                    await connection.execute(insert(_token).values(asdict(token)))
                    return await _live_token(connection, token.hash)
        return None

    async def live(self, token_hash: bytes) -> LiveToken | None:
        """Return the token with its user, scope and roles, or None."""
        async with self._database.read() as connection:
            return await _live_token(connection, token_hash)

    async def remove(self, token_hash: bytes, event: AuditEvent) -> None:
        """Delete a token. Raises NotFound if the token is not stored."""
        await self._change(delete(_token).where(_token.c.hash == token_hash), event, "Could not find token.")

    async def prune(self, now: datetime) -> int:
        """Delete a batch of expired tokens, and all expired known networks. Returns the number of deleted rows.

        Does not invalidate caches, because caches check the expiry of tokens themselves.
        """
        expired = select(_token.c.hash).where(_token.c.expires_at <= now).limit(BATCH)
        unused = delete(_network).where(_network.c.last_login_at <= now - NETWORK_LIFETIME)
        async with self._database.transaction() as connection:
            tokens = await connection.execute(delete(_token).where(_token.c.hash.in_(expired)))
            return tokens.rowcount + (await connection.execute(unused)).rowcount


async def lock_usable_user(connection: Transaction, user_id: str, *conditions: ColumnElement[bool]) -> bool:
    """Lock the rows of the user and of their domain.

    Returns whether the user exists, meets the conditions, and is enabled like their domain.
    """
    # A transaction that deletes the tokens and temporary keys of a user, or disables a domain, writes the row first, so
    # that no token or key is added later.
    user = select(_user.c.domain_id).where(_user.c.id == user_id, _user.c.enabled, *conditions)
    domain_id = (await connection.execute(user.with_for_update())).scalar()
    # A shared lock, so that logins of other users of the domain need not wait.
    domain = select(_domain.c.id).where(_domain.c.id == domain_id, _domain.c.enabled)
    return await exists(connection, domain.with_for_update(read=True))


async def _lock_usable_scope(connection: Transaction, token: Token) -> bool:
    """Lock the rows of the token's project and of the project's domain. Returns whether both are enabled.

    True for a token without a project: the scope is the user's own domain at most.
    """
    if token.project_id is None:
        return True
    project = select(_project.c.id).join(_domain, _domain.c.id == _project.c.domain_id)
    enabled = project.where(_project.c.id == token.project_id, _project.c.enabled, _domain.c.enabled)
    return await exists(connection, enabled.with_for_update(read=True, of=[_project, _domain]))


async def confirm_password_login(connection: Transaction, login: PasswordLogin) -> bool:
    """Lock the user's row, and remember that the user has logged in from this network.

    Returns False if the user or their domain was disabled, or the password was changed, during the login.
    """
    if not await lock_usable_user(connection, login.user_id, _user.c.password_hash == login.checked_hash):
        return False
    if login.fresh_hash is not None:
        query = update(_user).where(_user.c.id == login.user_id)
        await connection.execute(query.values(password_hash=login.fresh_hash))
    await _remember_network(connection, login)
    return True


async def lock_token(connection: Transaction, token_hash: bytes) -> bool:
    """Lock the token's row. Returns whether the token exists."""
    query = select(_token.c.user_id).where(_token.c.hash == token_hash)
    return await exists(connection, query.with_for_update())


async def _remember_network(connection: Transaction, login: PasswordLogin) -> None:
    """Record the network of a login. The transaction must have locked the user's row."""
    of_user = _network.c.user_id == login.user_id
    known = update(_network).where(of_user, _network.c.network == login.network)
    if (await connection.execute(known.values(last_login_at=login.at))).rowcount:
        return
    latest = select(_network.c.network).where(of_user).order_by(_network.c.last_login_at.desc())
    kept = latest.limit(MAX_NETWORKS - 1)
    await connection.execute(delete(_network).where(of_user, _network.c.network.not_in(kept)))
    row = {"user_id": login.user_id, "network": login.network, "last_login_at": login.at}
    await connection.execute(insert(_network).values(row))


_KNOWN_NETWORK = select(_network.c.user_id).where(
    _network.c.user_id == bindparam("login_user"), _network.c.network == bindparam("login_network")
)


async def _live_token(connection: Transaction, token_hash: bytes) -> LiveToken | None:
    row = (await connection.execute(_LIVE_TOKEN, {"token_hash": token_hash})).first()
    if row is None:
        return None
    token = entity_of(Token, row, methods=tuple(row.token_methods))
    return LiveToken(
        token=token,
        user=entity_of(User, row),
        project=entity_of(Project, row) if token.project_id is not None else None,
        domain=entity_of(Domain, row, "scope") if token.domain_id is not None else None,
        roles=await roles_in_project(connection, token.user_id, token.project_id),
    )


_users, _projects, _scopes = (_domain.alias(name) for name in ("users", "projects", "scope"))
_LIVE_TOKEN = (
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


_GONE = "This access key no longer exists."
# An id that no user has.
_NOBODY = "0" * 32


@dataclass(frozen=True, slots=True)
class LiveKey:
    """An access key with its user and roles, from one snapshot. The key or the user may be disabled."""

    key: AccessKey
    user: User
    roles: UserRoles


class AccessKeyQueries(Queries):
    """Reads and changes access keys, permanent and temporary."""

    async def keys_of_user(self, user_id: str) -> tuple[AccessKey, ...]:
        """Return a user's keys, oldest first."""
        query = _KEYS.where(_key.c.user_id == user_id).order_by(_key.c.created_at, _key.c.id)
        return tuple(entity_of(AccessKey, row) for row in await self._rows(query))

    async def page_of_user(
        self, user_id: str, *, temporary: bool | None, after: str, limit: int
    ) -> tuple[AccessKey, ...]:
        """Return a page of a user's keys, sorted by id.

        Args:
            temporary: whether to return temporary or permanent keys; None for both.
            after: the id before the page; empty for the first page.
        """
        query = _KEYS.where(_key.c.user_id == user_id, _key.c.id > after)
        if temporary is not None:
            query = query.where(IS_TEMPORARY if temporary else not_(IS_TEMPORARY))
        rows = await self._rows(query.order_by(_key.c.id).limit(limit))
        return tuple(entity_of(AccessKey, row) for row in rows)

    async def key(self, key_id: str) -> AccessKey | None:
        row = await self._row(_KEYS.where(_key.c.id == key_id))
        return None if row is None else entity_of(AccessKey, row)

    async def live(self, key_id: str) -> LiveKey | None:
        """Return the key with its user and the user's roles in all projects.

        Runs the same queries for a key that does not exist, to avoid a timing oracle.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(_LIVE_KEY, {"key_id": key_id})).first()
            roles = await roles_in_all_projects(connection, row.user_id if row is not None else _NOBODY)
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
        """Add a temporary key.

        Raises Unauthenticated if the user or their domain was disabled, or the caller's credential was revoked, during
        the request.
        """
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
                await end_temporary_keys(connection, (key.user_id,))

    async def remove(self, key: AccessKey, event: AuditEvent) -> None:
        """Delete a key and the user's temporary keys, which the key may have created. Raises NotFound."""
        async with self._database.transaction(event, invalidate=True) as connection:
            await change_one(connection, delete(_key).where(_key.c.id == key.id), _GONE)
            await end_temporary_keys(connection, (key.user_id,))

    async def prune(self, now: datetime) -> int:
        """Delete a batch of expired temporary keys. Returns the number of deleted keys.

        Does not invalidate caches, because caches check the expiry of keys themselves.
        """
        expired = select(_key.c.id).where(_key.c.expires_at <= now).limit(BATCH)
        async with self._database.transaction() as connection:
            return (await connection.execute(delete(_key).where(_key.c.id.in_(expired)))).rowcount


async def end_temporary_keys(connection: Transaction, users: UserIds) -> None:
    await connection.execute(delete(_key).where(_key.c.user_id.in_(users), IS_TEMPORARY))


async def _is_credential_stored(connection: Transaction, caller: Caller) -> bool:
    """Lock the row of the caller's credential. Returns whether the credential exists and is not disabled."""
    if caller.method == "token":
        return await lock_token(connection, bytes.fromhex(caller.credential_id))
    query = select(_key.c.id).where(_key.c.id == caller.credential_id, _key.c.enabled)
    return await exists(connection, query.with_for_update())


_KEYS = select(*entity_columns(AccessKey))
IS_TEMPORARY = _key.c.security_token_hash.is_not(None)
_LIVE_KEY = (
    _KEYS.add_columns(*entity_columns(User))
    .join(_user, _user.c.id == _key.c.user_id)
    .join(_domain, _domain.c.id == _user.c.domain_id)
    .where(_key.c.id == bindparam("key_id"))
)


@dataclass(frozen=True, slots=True)
class UserLogins:
    """A user's sessions in the console, and their tokens and access keys in the built-in identity service.

    Attributes:
        sessions, tokens, temporary_keys: the numbers of sessions, tokens and temporary keys, including expired ones.
        keys: the permanent access keys, oldest first.
    """

    sessions: int = 0
    tokens: int = 0
    temporary_keys: int = 0
    keys: tuple[AccessKey, ...] = ()


class UserLoginQueries(Queries):
    """Reads, starts and ends the logins of a user."""

    async def logins_of_user(self, user_id: str) -> UserLogins:
        tokens = select(func.count()).select_from(_token).where(_token.c.user_id == user_id)
        sessions = select(func.count()).select_from(_session).where(_session.c.user_id == user_id)
        async with self._database.read() as connection:
            token_count = (await connection.execute(tokens)).scalar_one()
            session_count = (await connection.execute(sessions)).scalar_one()
            temporary, permanent = await _keys_of(connection, user_id)
        return UserLogins(session_count, token_count, temporary, permanent)

    async def add_session(self, session: Session, login: PasswordLogin, *events: AuditEvent) -> bool:
        """Store a session of a user of the built-in identity service.

        Returns False, and stores nothing, if the user or their domain was disabled, or the password was changed, during
        the login.
        """
        async with self._database.transaction() as connection:
            if not await confirm_password_login(connection, login):
                return False
            await insert_session(connection, session)
            await record_events(connection, events)
        return True

    async def end_built_in(
        self, user_id: str, *, with_keys: bool, events: Callable[[UserLogins], Iterable[AuditEvent]]
    ) -> UserLogins:
        """Delete a user's sessions, tokens and temporary keys, and also the permanent keys if `with_keys` is true.

        Returns what was deleted. Does nothing, and records no event, if there is nothing to delete. Raises
        Unauthenticated if the user or their domain was disabled or deleted during the request.
        """
        # Check the user before the first batch of tokens is deleted, because the event is recorded only at the end.
        async with self._database.transaction() as connection:
            await _lock_requesting_user(connection, user_id)
        deleted = await self._delete_tokens(user_id)
        async with self._database.transaction() as connection:
            # Lock the user's row first, so that no other request adds a session, token or key before the commit.
            await _lock_requesting_user(connection, user_id)
            temporary, permanent = await _keys_of(connection, user_id)
            sessions = await end_sessions(connection, (user_id,))
            tokens = await connection.execute(delete(_token).where(_token.c.user_id == user_id))
            if with_keys:
                await connection.execute(delete(_key).where(_key.c.user_id == user_id))
            else:
                await end_temporary_keys(connection, (user_id,))
            deleted_keys = permanent if with_keys else ()
            ended = UserLogins(sessions, deleted + tokens.rowcount, temporary, deleted_keys)
            if ended != UserLogins():
                await raise_generation(connection)
                await record_events(connection, tuple(events(ended)))
        return ended

    async def _delete_tokens(self, user_id: str) -> int:
        """Delete a user's tokens in batches, so that other writers wait only briefly.

        Returns the number of deleted tokens. Between two batches, other requests may add tokens.
        """
        batch = select(_token.c.hash).where(_token.c.user_id == user_id).limit(BATCH)
        deleted, count = 0, BATCH
        while count == BATCH:
            async with self._database.transaction() as connection:
                count = (await connection.execute(delete(_token).where(_token.c.hash.in_(batch)))).rowcount
                if count:
                    # Raise the generation in each batch, because the process may exit before the last batch.
                    await raise_generation(connection)
            deleted += count
        return deleted

    async def end_federated(
        self, user: KnownUser, at: datetime, event: Callable[[UserLogins], AuditEvent]
    ) -> UserLogins:
        """End the logins of a user of an OIDC issuer or of Keystone: logins from before the time `at` are refused.

        Deletes the user's sessions, and returns what was deleted. Raises ConcurrentChange if another request records
        the user at the same time.
        """
        try:
            async with self._database.transaction(invalidate=True) as connection:
                query = select(_federated.c.logins_ended_at).where(_federated.c.id == user.id)
                earlier = (await connection.execute(query.with_for_update())).scalar()
                # Keep the later time, because the clock of another replica may be ahead.
                ended_at = at if earlier is None else max(at, earlier)
                await put_federated_user(connection, user, logins_ended_at=ended_at)
                ended = UserLogins(await end_sessions(connection, (user.id,)))
                await record_events(connection, (event(ended),))
        except IntegrityError:
            raise ConcurrentChange from None
        return ended


async def _lock_requesting_user(connection: Transaction, user_id: str) -> None:
    """Lock the rows of the user and of their domain. Raises Unauthenticated if one of them is disabled or deleted."""
    if not await lock_usable_user(connection, user_id):
        raise Unauthenticated("the user was disabled during the request", known=user_id)


async def _keys_of(connection: Transaction, user_id: str) -> tuple[int, tuple[AccessKey, ...]]:
    """Return the number of a user's temporary keys, of which there can be many, and the permanent keys."""
    of_user = _key.c.user_id == user_id
    temporary = select(func.count()).select_from(_key).where(of_user, IS_TEMPORARY)
    permanent = _KEYS.where(of_user, not_(IS_TEMPORARY)).order_by(_key.c.created_at, _key.c.id)
    count = (await connection.execute(temporary)).scalar_one()
    return count, tuple(entity_of(AccessKey, row) for row in await connection.execute(permanent))
