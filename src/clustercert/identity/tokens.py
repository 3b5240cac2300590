"""Use cases: create, validate and revoke tokens, and log users out everywhere."""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from clustercert.identity.names import matches_name, searchable
from clustercert.identity.passwords import Contender, Passwords
from clustercert.identity.roles import BuiltInUser
from clustercert.limits.issuing import UserRates
from clustercert.model import AuditEvent, Caller, Domain, KnownUser, Origin, Project, Token, User
from clustercert.model.errors import NotFound, Unauthenticated
from clustercert.model.events.administration import AccessKeyChanged, LoginsEnded, TokenRevoked
from clustercert.model.identity import BUILT_IN
from clustercert.model.ids import is_id
from clustercert.model.rights import operates
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Cache
from clustercert.store.identity.entities import Reference
from clustercert.store.identity.logins import (
    LiveToken,
    PasswordLogin,
    TokenQueries,
    UserLoginQueries,
    UserLogins,
)
from clustercert.store.identity.roles import RoleQueries


class Logins:
    """Lists and ends all logins of a caller, on all machines."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._queries = UserLoginQueries(database)
        self._now = now

    async def logins_of_caller(self, caller: Caller) -> UserLogins:
        """Return the caller's sessions, and their tokens and access keys of the built-in identity service."""
        return await self._queries.logins_of_user(caller.user.id)

    async def end_all(self, caller: Caller, *, with_keys: bool) -> UserLogins:
        """End all logins of the caller, including the login used for this request. Returns what was deleted.

        Deletes the user's sessions. For a user of the built-in identity service, also deletes the tokens and temporary
        access keys, and permanent access keys if `with_keys` is true. For a user of an OIDC issuer or Keystone, records
        that tokens from earlier logins must be refused. Raises Unauthenticated or Conflict.
        """
        user, now = caller.user, self._now()

        def event(ended: UserLogins) -> LoginsEnded:
            return LoginsEnded(
                at=now,
                actor=caller.actor,
                subject=user.id,
                name=user.name,
                issuer=caller.issuer,
                sessions=ended.sessions,
                tokens=ended.tokens,
                temporary_keys=ended.temporary_keys,
            )

        if caller.issuer != BUILT_IN:
            known = KnownUser(user.id, user.name, user.domain.name, caller.issuer)
            return await self._queries.end_federated(known, now, event)

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


TOKEN_BYTES = 32
# 32 random bytes in base64url without padding.
TOKEN_CHARACTERS = 43

# The maximum number of cached tokens. A cached token takes about two kilobytes.
CACHED_TOKENS = 10_000

_NO_TOKEN = "Could not find token."


@dataclass(frozen=True, slots=True)
class ByPassword:
    """A login with a password."""

    user: Reference
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ByToken:
    """A login with an existing token, to get a token for another scope."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProjectScope:
    """A project as the scope of a token. A project name without a domain is looked up in the user's domain."""

    project: Reference


@dataclass(frozen=True, slots=True)
class DomainScope:
    """The user's own domain, by id or name, as the scope of a token. Other domains are rejected."""

    id: str | None = None
    name: str | None = None


Proof = ByPassword | ByToken
Scope = ProjectScope | DomainScope | None


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new token with its secret string, which is not stored."""

    text: str = field(repr=False)
    live: LiveToken


@dataclass(frozen=True, slots=True)
class _CachedToken:
    """A valid token, with its user and the credential id for the `Caller`."""

    live: LiveToken
    user: BuiltInUser
    credential_id: str


class Tokens:
    """Issues tokens, and finds the callers who own them. Looking up a cached token needs one hash and no I/O."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        now: Callable[[], datetime],
        lifetime: timedelta,
        rates: UserRates,
    ) -> None:
        self._queries = TokenQueries(database)
        self._generation = database.generation
        self._roles = RoleQueries(database)
        self._passwords = passwords
        self._now = now
        self._lifetime = lifetime
        self._rates = rates
        self._cache: Cache[bytes, _CachedToken] = Cache(database.generation, CACHED_TOKENS)

    async def issue(self, proof: Proof, scope: Scope, source: str = "") -> IssuedToken:
        """Issue a token.

        Raises Unauthenticated if the password, the existing token or the scope is not valid, TooManyRequests, or
        Unavailable.

        `source`: the client's address or network, for the order of password checks.
        """
        text = secrets.token_urlsafe(TOKEN_BYTES)
        if isinstance(proof, ByPassword):
            live = await self._by_password(proof, scope, _hash(text), source)
        else:
            live = await self._by_token(proof, scope, _hash(text))
        if live is None:
            raise Unauthenticated("the password or token was revoked while it was being checked")
        return IssuedToken(text, live)

    async def caller_of_token(self, token: str, origin: Origin) -> Caller:
        """Return the caller for a token. Raises Unauthenticated if the token is not valid."""
        cached = await self._usable(token)
        return cached.user.caller(
            "token", origin, expires_at=cached.live.token.expires_at, credential_id=cached.credential_id
        )

    async def inspect(self, caller: Caller, token: str) -> LiveToken:
        """Look up a token.

        Raises NotFound if the token is not valid, or if the caller is neither the token's user nor an operator.
        """
        try:
            cached = await self._usable(token)
        except Unauthenticated as error:
            raise NotFound(_NO_TOKEN) from error
        if not _may_see(caller, cached.live):
            raise NotFound(_NO_TOKEN)
        return cached.live

    async def revoke(self, caller: Caller, token: str) -> None:
        """Revoke a token. This process refuses the token at once, and other processes refuse it soon after.

        Tokens for other scopes that were created with the revoked token stay valid. A token for a disabled project can
        be revoked, because the project may be enabled again.

        Raises NotFound if the token is unknown or has expired, or if the caller is neither the token's user nor an
        operator.
        """
        live = await self._queries.live(_hash(token)) if _is_well_formed(token) else None
        if live is None or self._now() >= live.token.expires_at or not _may_see(caller, live):
            raise NotFound(_NO_TOKEN)
        project_id, subject = live.token.project_id, live.token.hash.hex()
        event = TokenRevoked(
            at=self._now(), project_id=project_id, actor=caller.actor, subject=subject, user_id=live.user.id
        )
        await self._queries.remove(live.token.hash, event)
        await self._generation.refresh()

    async def prune(self) -> int:
        """Delete a batch of expired tokens, and networks from which users have not logged in for a long time.

        Returns the number of deleted rows.
        """
        return await self._queries.prune(self._now())

    async def check_password(self, reference: Reference, password: str, source: str) -> tuple[User, str]:
        """Return the user and the stored hash if the password is right. Raises Unauthenticated or Unavailable.

        `source`: see `issue`.
        """
        user = _normalized(reference)
        login = await self._queries.login(user, source) if user is not None else None
        usable = login is not None and login.user.enabled and login.user.domain.enabled
        stored_hash = login.password_hash if login is not None and usable else None
        contender = Contender(source, repr(user), is_known=login is not None and login.is_known_source)
        # Check the password even if the user is unknown, to avoid a timing oracle for user names.
        matches = await self._passwords.matches(password, stored_hash, contender)
        if login is None or stored_hash is None or not matches:
            raise Unauthenticated(
                "the user is unknown, disabled or without a password, or the password is wrong",
                known=login.user.id if login is not None else "",
                unknown=_name(user or reference) if login is None else "",
            )
        return login.user, stored_hash

    async def password_login(self, proof: ByPassword, source: str) -> tuple[User, PasswordLogin]:
        """Check the password and the user's rate of logins. Returns the user and the login, which is not stored yet.

        Raises Unauthenticated, TooManyRequests, or Unavailable. `source`: see `issue`.
        """
        user, stored_hash = await self.check_password(proof.user, proof.password, source)
        self._rates.count("tokens", user)
        fresh_hash = await self._passwords.rehashed(proof.password, stored_hash)
        return user, PasswordLogin(user.id, self._now(), source, stored_hash, fresh_hash)

    async def _by_password(
        self, proof: ByPassword, scope: Scope, token_hash: bytes, source: str
    ) -> LiveToken | None:
        user, login = await self.password_login(proof, source)
        return await self._queries.add_by_password(await self._token(user, scope, token_hash), login)

    async def _by_token(self, proof: ByToken, scope: Scope, token_hash: bytes) -> LiveToken | None:
        live = (await self._usable(proof.token)).live
        self._rates.count("tokens", live.user)
        token = await self._token(live.user, scope, token_hash, parent=live.token)
        return await self._queries.add_by_token(token, live.token.hash)

    async def _token(
        self, user: User, scope: Scope, token_hash: bytes, *, parent: Token | None = None
    ) -> Token:
        """Create a token for a scope. Raises Unauthenticated if the user may not use this scope.

        `parent` is the existing token, in a login with a token. The new token expires at the same time as `parent`,
        because otherwise tokens could be renewed forever.
        """
        project = await self._project(user, scope.project) if isinstance(scope, ProjectScope) else None
        domain = _own_domain(user, scope) if isinstance(scope, DomainScope) else None
        now = self._now()
        return Token(
            hash=token_hash,
            user_id=user.id,
            project_id=project.id if project else None,
            domain_id=domain.id if domain else None,
            methods=tuple(dict.fromkeys((*parent.methods, "token"))) if parent else ("password",),
            issued_at=now,
            expires_at=parent.expires_at if parent else now + self._lifetime,
        )

    async def _project(self, user: User, requested: Reference) -> Project:
        if requested.id is None and requested.domain_id is None and requested.domain_name is None:
            # Open Telekom Cloud's documentation shows requests with a project name but no domain.
            requested = replace(requested, domain_id=user.domain.id)
        normalized = _normalized(requested)
        project = await self._roles.reachable_project(user.id, normalized) if normalized is not None else None
        if project is None or not project.enabled or not project.domain.enabled:
            raise Unauthenticated(
                "the project is unknown or disabled, or the user has no role in it", known=user.id
            )
        return project

    async def _usable(self, token: str) -> _CachedToken:
        if not _is_well_formed(token):
            raise Unauthenticated("the token is malformed")
        cached = await self._cache.get(_hash(token), self._load)
        if cached is None:
            raise Unauthenticated("the token is unknown")
        if self._now() >= cached.live.token.expires_at:
            raise Unauthenticated("the token has expired")
        return cached

    async def _load(self, token_hash: bytes) -> _CachedToken | None:
        live = await self._queries.live(token_hash)
        if live is None:
            return None
        if not live.user.enabled or not live.user.domain.enabled:
            raise Unauthenticated("the token's user or their domain is disabled")
        if live.project is not None and not (live.project.enabled and live.project.domain.enabled):
            raise Unauthenticated("the token's project or its domain is disabled")
        return _CachedToken(live, BuiltInUser.with_roles(live.user, live.roles), token_hash.hex())


def _may_see(caller: Caller, live: LiveToken) -> bool:
    return live.user.id == caller.user.id or operates(caller)


def _is_well_formed(token: str) -> bool:
    return len(token) == TOKEN_CHARACTERS and token.isascii()


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _own_domain(user: User, scope: DomainScope) -> Domain:
    if scope.id not in (None, user.domain.id) or not matches_name(user.domain.name, scope.name):
        raise Unauthenticated("the domain is not the user's own", known=user.id)
    return user.domain


def _name(reference: Reference) -> str:
    """Return the domain and name of a user as one text, or the id."""
    return reference.id or f"{reference.domain_id or reference.domain_name or ''}/{reference.name or ''}"


def _normalized(reference: Reference) -> Reference | None:
    """Return the reference with normalized names, or None if it can't match any user or project."""
    ids = [text for text in (reference.id, reference.domain_id) if text is not None]
    names = {
        field: searchable(text)
        for field, text in (("name", reference.name), ("domain_name", reference.domain_name))
        if text is not None
    }
    if None in names.values() or not all(is_id(text) for text in ids):
        return None
    return replace(reference, **names)
