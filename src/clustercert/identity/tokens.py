"""Use case: log in, carry a token, give it up. Users and roles are `directory`'s business."""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from clustercert.errors import NotFound, Unauthenticated
from clustercert.identity.names import is_called, is_id, searchable
from clustercert.identity.passwords import Passwords
from clustercert.identity.roles import role_names, service_role_names
from clustercert.model import AuditEvent, Caller, Domain, Origin, Project, Token, User
from clustercert.policy import operates
from clustercert.store.database import Database
from clustercert.store.generation import Cache
from clustercert.store.nouns import Reference
from clustercert.store.roles import RoleRows
from clustercert.store.tokens import LiveToken, Login, TokenRows

TOKEN_BYTES = 32
# What base64url makes of them, without padding.
TOKEN_CHARACTERS = 43

# About two kilobytes each.
CACHED_TOKENS = 10_000

_NO_TOKEN = "Could not find token."


@dataclass(frozen=True, slots=True)
class ByPassword:
    """A login by password."""

    user: Reference
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ByToken:
    """A login by a token that the client has, for another scope."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProjectScope:
    """A project. A name without a domain is meant in the user's own."""

    project: Reference


@dataclass(frozen=True, slots=True)
class DomainScope:
    """The user's own domain, by id or name; any other is refused."""

    id: str | None = None
    name: str | None = None


Proof = ByPassword | ByToken
Scope = ProjectScope | DomainScope | None


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token that its user gets to see once."""

    text: str = field(repr=False)
    live: LiveToken


@dataclass(frozen=True, slots=True)
class _Known:
    """A token that was found good, and what its callers are made of."""

    live: LiveToken
    roles: Mapping[str, tuple[str, ...]]
    service_roles: tuple[str, ...]
    credential_id: str


class Tokens:
    """Issues tokens and answers whose they are. A token found a moment ago costs one hash and no I/O."""

    def __init__(
        self, database: Database, passwords: Passwords, now: Callable[[], datetime], lifetime: timedelta
    ) -> None:
        self._rows = TokenRows(database)
        self._roles = RoleRows(database)
        self._passwords = passwords
        self._now = now
        self._lifetime = lifetime
        self._cache: Cache[bytes, _Known] = Cache(database.generation, CACHED_TOKENS)

    async def issue(self, proof: Proof, scope: Scope) -> IssuedToken:
        """A new token. Raises Unauthenticated for anything wrong with proof or scope, or Unavailable."""
        text = secrets.token_urlsafe(TOKEN_BYTES)
        if isinstance(proof, ByPassword):
            live = await self._by_password(proof, scope, _hash(text))
        else:
            live = await self._by_token(proof, scope, _hash(text))
        if live is None:
            raise Unauthenticated("the password or token was revoked while it was checked")
        return IssuedToken(text, live)

    async def caller_of_token(self, token: str, origin: Origin) -> Caller:
        """The caller whose token this is. Raises Unauthenticated."""
        known = await self._known(token)
        return Caller(
            user=known.live.user,
            roles=known.roles,
            method="token",
            origin=origin,
            service_roles=known.service_roles,
            expires_at=known.live.token.expires_at,
            credential_id=known.credential_id,
        )

    async def inspect(self, caller: Caller, token: str) -> LiveToken:
        """What a token is worth. Raises NotFound unless the caller is its user or an operator."""
        try:
            known = await self._known(token)
        except Unauthenticated as error:
            raise NotFound(_NO_TOKEN) from error
        if not _may_know(caller, known.live):
            raise NotFound(_NO_TOKEN)
        return known.live

    async def revoke(self, caller: Caller, token: str) -> None:
        """End a token. What was made with it, such as a token of another scope, lives on. Raises NotFound.

        One that is worth nothing now is ended all the same: its project may be enabled again.
        """
        live = await self._rows.live(_hash(token)) if _has_our_form(token) else None
        if live is None or self._now() >= live.token.expires_at or not _may_know(caller, live):
            raise NotFound(_NO_TOKEN)
        event = AuditEvent(
            at=self._now(),
            kind="token.revoked",
            project_id=live.token.project_id,
            actor=caller.user.id,
            subject=live.token.hash.hex(),
            origin=caller.origin,
            detail={"user_id": live.user.id},
        )
        await self._rows.remove(live.token.hash, event)

    async def prune(self) -> int:
        """Forget some expired tokens; how many."""
        return await self._rows.prune(self._now())

    async def _by_password(self, proof: ByPassword, scope: Scope, token_hash: bytes) -> LiveToken | None:
        login = await self._login(proof.user)
        usable = login is not None and login.user.enabled and login.user.domain.enabled
        kept = login.password_hash if login is not None and usable else None
        # Checked in any case, so that the time it takes does not tell which users there are.
        matches = await self._passwords.matches(proof.password, kept)
        if login is None or kept is None or not matches:
            raise Unauthenticated(
                "the user is unknown, disabled or without a password, or the password is wrong",
                known=login.user.id if login is not None else "",
            )
        now = self._now()
        token = await self._token(login.user, scope, token_hash, ("password",), now, now + self._lifetime)
        fresh_hash = await self._passwords.fresher(proof.password, kept)
        return await self._rows.add_by_password(token, kept, fresh_hash=fresh_hash)

    async def _by_token(self, proof: ByToken, scope: Scope, token_hash: bytes) -> LiveToken | None:
        live = (await self._known(proof.token)).live
        parent = live.token
        methods = tuple(dict.fromkeys((*parent.methods, "token")))
        # The end stays, or whoever has a token would have it for ever.
        token = await self._token(live.user, scope, token_hash, methods, self._now(), parent.expires_at)
        return await self._rows.add_by_token(token, parent.hash)

    async def _token(
        self,
        user: User,
        scope: Scope,
        token_hash: bytes,
        methods: tuple[str, ...],
        issued_at: datetime,
        expires_at: datetime,
    ) -> Token:
        """The token in its scope. Raises Unauthenticated where the user may not have that scope."""
        project = await self._project(user, scope.project) if isinstance(scope, ProjectScope) else None
        domain = _own_domain(user, scope) if isinstance(scope, DomainScope) else None
        return Token(
            hash=token_hash,
            user_id=user.id,
            project_id=project.id if project else None,
            domain_id=domain.id if domain else None,
            methods=methods,
            issued_at=issued_at,
            expires_at=expires_at,
        )

    async def _login(self, user: Reference) -> Login | None:
        findable = _findable(user)
        return await self._rows.login(findable) if findable is not None else None

    async def _project(self, user: User, wanted: Reference) -> Project:
        if wanted.id is None and wanted.domain_id is None and wanted.domain_name is None:
            # Open Telekom Cloud documents a name alone.
            wanted = replace(wanted, domain_id=user.domain.id)
        findable = _findable(wanted)
        project = await self._roles.reachable_project(user.id, findable) if findable is not None else None
        if project is None or not project.enabled or not project.domain.enabled:
            raise Unauthenticated("the project is unknown or disabled, or the user has no role in it")
        return project

    async def _known(self, token: str) -> _Known:
        if not _has_our_form(token):
            raise Unauthenticated("the token is not of our form")
        known = await self._cache.get(_hash(token), self._load)
        if known is None:
            raise Unauthenticated("the token is unknown")
        if self._now() >= known.live.token.expires_at:
            raise Unauthenticated("the token has expired")
        return known

    async def _load(self, token_hash: bytes) -> _Known | None:
        live = await self._rows.live(token_hash)
        if live is None:
            return None
        if problem := _problem(live):
            raise Unauthenticated(problem)
        return _Known(
            live=live,
            roles=role_names(live.roles),
            service_roles=service_role_names(live.roles),
            credential_id=token_hash.hex(),
        )


def _may_know(caller: Caller, live: LiveToken) -> bool:
    return live.user.id == caller.user.id or operates(caller)


def _has_our_form(token: str) -> bool:
    return len(token) == TOKEN_CHARACTERS and token.isascii()


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _problem(live: LiveToken) -> str | None:
    """Why a token is worth nothing now, for the log; or None."""
    if not live.user.enabled or not live.user.domain.enabled:
        return "the token's user or their domain is disabled"
    if live.project is not None and not (live.project.enabled and live.project.domain.enabled):
        return "the token's project or its domain is disabled"
    return None


def _own_domain(user: User, scope: DomainScope) -> Domain:
    if scope.id not in (None, user.domain.id) or not is_called(user.domain.name, scope.name):
        raise Unauthenticated("the domain is not the user's own")
    return user.domain


def _findable(wanted: Reference) -> Reference | None:
    """The reference in the form that the store has, or None where nothing can be called so."""
    ids = [text for text in (wanted.id, wanted.domain_id) if text is not None]
    name = searchable(wanted.name) if wanted.name is not None else None
    domain_name = searchable(wanted.domain_name) if wanted.domain_name is not None else None
    lost = (name is None) != (wanted.name is None) or (domain_name is None) != (wanted.domain_name is None)
    if lost or not all(is_id(text) for text in ids):
        return None
    return replace(wanted, name=name, domain_name=domain_name)
