"""Use case: start, find and end sessions of the console."""

import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, Protocol

from cachetools import LRUCache

from clustercert.authn.federated import FederatedLookup, FederatedUser, KeystonePassword
from clustercert.identity.roles import BuiltInUser
from clustercert.identity.tokens import ByPassword, Tokens
from clustercert.limits.issuing import UserRates
from clustercert.model import Actor, Caller, JsonObject, Origin, User
from clustercert.model.errors import NotFound, Unauthenticated, Unavailable
from clustercert.model.events.administration import SessionChanged
from clustercert.model.identity import BUILT_IN
from clustercert.model.sessions import IDLE_LIFETIME, Session
from clustercert.pki.envelope import SecretSealer
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Cache
from clustercert.store.identity.console_sessions import ConsoleSessionQueries
from clustercert.store.identity.logins import UserLoginQueries

COOKIE_BYTES = 32
# 32 random bytes in base64url without padding.
COOKIE_CHARACTERS = 43
# The maximum number of cached sessions. A cached session of a user with 500 groups takes about 130 KiB.
CACHED_SESSIONS = 2_000
# The maximum number of open sessions of a user. A further login ends the oldest session.
MAX_SESSIONS = 100
# The use of a session is recorded at most once in this time.
RECORD_EVERY = timedelta(minutes=1)
# The method of sessions that began with the claims of an ID token.
OIDC = "oidc"
# A session is named by at least this many digits of its id.
MIN_ID_DIGITS = 8

_NO_SESSION = "You have no such session. It may have ended already."


class ClaimsMapping(Protocol):
    """Maps the claims of OIDC issuers with the present settings. Implemented by `authn.oidc.authenticator`."""

    def user_of_claims(self, issuer_url: str, claims: JsonObject) -> FederatedUser:
        """Return the user. Raises Unauthenticated if the issuer was removed, or does not accept these claims."""


class KeystoneAccounts(Protocol):
    """Users of Keystone. Implemented by `authn.keystone.logins`."""

    @property
    def name(self) -> str:
        """The name of Keystone in the settings."""

    @property
    def has_service_roles(self) -> bool:
        """Whether a login in the scope `system` can give roles in the whole service."""

    async def log_in(self, login: KeystonePassword) -> str:
        """Return a new token. Raises Unauthenticated, InvalidRequest or CredentialUnverified."""

    async def caller_of_token(self, token: str, origin: Origin) -> Caller:
        """Return the token's owner. Raises Unauthenticated or CredentialUnverified."""


@dataclass(frozen=True, slots=True)
class NewSession:
    """A new session, its user, and the value of its cookie, which is not stored."""

    cookie: str = field(repr=False)
    session: Session
    user: User


@dataclass(frozen=True, slots=True)
class _KeystoneLogin:
    """The token of a user of Keystone."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _CachedSession:
    session: Session
    login: BuiltInUser | FederatedUser | _KeystoneLogin


class Sessions:
    """Starts, finds and ends sessions of the console. Looking up a cached session needs one hash and no I/O.

    The cookie is the secret of a session; only its hash is stored. A deleted session is refused by all processes within
    a second.

    Attributes:
        keystone: the users of Keystone; None without Keystone.
        has_built_in: whether users of the built-in identity service can have sessions.
    """

    def __init__(
        self,
        database: Database,
        sealer: SecretSealer,
        tokens: Tokens,
        federation: FederatedLookup,
        rates: UserRates,
        now: Callable[[], datetime],
    ) -> None:
        self._queries = ConsoleSessionQueries(database)
        self._logins = UserLoginQueries(database)
        self._generation = database.generation
        self._sealer = sealer
        self._tokens = tokens
        self._federation = federation
        self._rates = rates
        self._now = now
        self._issuers: ClaimsMapping | None = None
        self.keystone: KeystoneAccounts | None = None
        self.has_built_in = True
        self._cache = self._new_cache()
        # The times when sessions were last seen, if they are later than in the cached sessions.
        self._seen: LRUCache[str, datetime] = LRUCache(CACHED_SESSIONS)

    def use_issuers(self, issuers: ClaimsMapping | None) -> None:
        """Map claims with these issuers' settings from now on, also for existing sessions."""
        self._issuers = issuers
        self._cache = self._new_cache()

    async def log_in(self, login: ByPassword, origin: Origin, before: str | None) -> NewSession:
        """Log in a user of the built-in identity service.

        Raises Unauthenticated, TooManyRequests, or Unavailable.

        Args:
            before: the cookie of the browser's earlier session, which ends; None without a cookie.
        """
        if not self.has_built_in:
            raise Unauthenticated("this service has no built-in users")
        user, confirmed = await self._tokens.password_login(login, origin.network)
        new = self._new_session(user, BUILT_IN, "token", origin)
        if not await self._logins.add_session(new.session, confirmed, self._started(new, origin)):
            raise Unauthenticated(
                "the password was changed, or the user disabled, during the login", known=user.id
            )
        await self._end_earlier(before, new.session, origin)
        return new

    async def begin_by_claims(
        self,
        issuer_url: str,
        claims: JsonObject,
        *,
        authenticated_at: datetime | None,
        origin: Origin,
        before: str | None,
    ) -> NewSession:
        """Log in the user whom the claims of a verified ID token describe.

        Raises Unauthenticated if the user may not log in, TooManyRequests, or Unavailable.

        Args:
            authenticated_at: when the user proved to the issuer who they are; None if this is not known.
            before: as in `log_in`.
        """
        user = self._mapped(issuer_url, claims)
        new = self._new_session(user.user, issuer_url, user.method, origin)
        await self._federation.caller_of_federated_user(_in_session(user, new.session), origin)
        self._rates.count("sessions", user.user)
        session = replace(
            new.session,
            authenticated_at=authenticated_at,
            sid=_printable(claims.get("sid")),
            sub=_printable(claims.get("sub")),
        )
        return await self._begin(replace(new, session=session), json.dumps(claims), origin, before)

    async def log_in_at_keystone(
        self, login: KeystonePassword, origin: Origin, before: str | None
    ) -> NewSession:
        """Log in a user of Keystone. `before`: as in `log_in`.

        Raises Unauthenticated if Keystone refuses the login or the user may not log in here, InvalidRequest if the user
        must name a project, TooManyRequests, CredentialUnverified if Keystone gives no usable answer, or Unavailable.
        """
        keystone = self._keystone()
        token = await keystone.log_in(login)
        caller = await keystone.caller_of_token(token, origin)
        self._rates.count("sessions", caller.user)
        new = self._new_session(caller.user, caller.issuer, caller.method, origin)
        return await self._begin(new, token, origin, before)

    async def find(self, cookie: str, origin: Origin, *, extend: bool = True) -> tuple[Session, Caller]:
        """Return the session with this cookie, and its user. Raises Unauthenticated without a session, or Unavailable.

        `extend`: whether this use keeps the session from ending after the idle time.
        """
        found = await self._usable(cookie)
        session = await self._checked(found.session)
        caller = await self._caller(found, origin)
        if extend and self._now() - session.seen_at >= RECORD_EVERY:
            session = replace(session, seen_at=self._now())
            # Pages work even if the database can be read but not written.
            with contextlib.suppress(Unavailable):
                await self._queries.record_use(session.id, session.seen_at)
            self._seen[session.id] = session.seen_at
        return session, caller

    async def caller_of_session(self, cookie: str, origin: Origin) -> Caller:
        """See `SessionLookup`."""
        _, caller = await self.find(cookie, origin, extend=False)
        return caller

    async def end(self, cookie: str, origin: Origin) -> None:
        """End the session with this cookie, if there is one. This process refuses the session at once."""
        stored = await self._queries.find(session_id(cookie)) if _is_well_formed(cookie) else None
        if stored is not None:
            await self._end(stored.session, Actor(stored.session.user_id, origin))

    async def of_caller(self, caller: Caller) -> tuple[Session, ...]:
        """Return the caller's sessions, newest first."""
        return await self._open(caller.user.id)

    async def end_one(self, caller: Caller, session_id: str) -> None:
        """End one of the caller's sessions.

        Raises NotFound if the caller has no such session, or several.

        Args:
            session_id: the id, or at least its first eight digits.
        """
        found = [each for each in await self.of_caller(caller) if each.id.startswith(session_id)]
        if len(session_id) < MIN_ID_DIGITS or len(found) != 1 or not await self._end(found[0], caller.actor):
            raise NotFound(_NO_SESSION)

    async def end_by_issuer(
        self, issuer_url: str, *, sid: str | None, sub: str | None, at: datetime, origin: Origin
    ) -> int:
        """End the sessions that began with a login at an issuer, in the issuer's session `sid` or by its user `sub`.

        Returns the number of ended sessions. With both `sid` and `sub`, ends the sessions to which both apply. Raises
        ValueError if both are missing. Without `sid`, keeps the sessions whose login is known to be later than the
        logout at the time `at`, because anyone who has seen a logout token can send this token again.
        """
        if sid is None and sub is None:
            raise ValueError("a logout names neither a session nor a user")
        ended = 0
        for session in await self._queries.of_issuer(issuer_url, sid=sid, sub=sub, at=at):
            ended += await self._end(session, Actor(session.user_id, origin))
        return ended

    async def prune(self) -> int:
        """Delete a batch of expired sessions. Returns the number of deleted sessions."""
        return await self._queries.prune(self._now())

    async def _open(self, user_id: str) -> tuple[Session, ...]:
        now = self._now()
        return tuple(each for each in await self._queries.of_user(user_id) if each.is_open(now))

    def _new_cache(self) -> Cache[str, _CachedSession]:
        return Cache(self._generation, CACHED_SESSIONS)

    def _new_session(self, user: User, issuer: str, method: str, origin: Origin) -> NewSession:
        cookie, now = secrets.token_urlsafe(COOKIE_BYTES), self._now()
        session = Session(
            id=session_id(cookie),
            user_id=user.id,
            issuer=issuer,
            method=method,
            address=origin.address,
            created_at=now,
            seen_at=now,
            authenticated_at=now,
        )
        return NewSession(cookie, session, user)

    async def _begin(
        self, new: NewSession, credential: str, origin: Origin, before: str | None
    ) -> NewSession:
        sealed = await self._sealer.seal(credential.encode(), _bound_to(new.session.id))
        await self._queries.add(new.session, sealed, self._started(new, origin))
        await self._end_earlier(before, new.session, origin)
        return new

    async def _end_earlier(self, before: str | None, new: Session, origin: Origin) -> None:
        """End the browser's earlier session, and the user's oldest sessions if the user has too many."""
        if before is not None:
            await self.end(before, origin)
        for session in (await self._open(new.user_id))[MAX_SESSIONS:]:
            await self._end(session, Actor(session.user_id, origin))

    async def _end(self, session: Session, actor: Actor) -> bool:
        """End a session. Returns False if the session has ended already."""
        ended = await self._queries.remove(session.id, self._event("session.ended", session, actor))
        await self._generation.refresh()
        return ended

    def _started(self, new: NewSession, origin: Origin) -> SessionChanged:
        return self._event("session.started", new.session, Actor(new.session.user_id, origin))

    def _event(
        self, kind: Literal["session.started", "session.ended"], session: Session, actor: Actor
    ) -> SessionChanged:
        return SessionChanged(
            at=self._now(),
            kind=kind,
            actor=actor,
            subject=session.id,
            user_id=session.user_id,
            issuer=session.issuer,
        )

    async def _usable(self, cookie: str) -> _CachedSession:
        if not _is_well_formed(cookie):
            raise Unauthenticated("the cookie of the session is malformed")
        found = await self._cache.get(session_id(cookie), self._load)
        if found is None:
            raise Unauthenticated("the session is unknown or has ended")
        return found

    async def _checked(self, session: Session) -> Session:
        """Return the session with the time of its last use. Raises Unauthenticated if the session is too old."""
        known = self._seen.get(session.id, session.seen_at)
        if self._now() - max(known, session.seen_at) >= IDLE_LIFETIME:
            # Another process may know of a later use.
            known = self._seen[session.id] = await self._queries.seen_at(session.id) or known
        session = replace(session, seen_at=max(known, session.seen_at))
        if not session.is_open(self._now()):
            raise Unauthenticated("the session is too old, or was unused for too long", known=session.user_id)
        return session

    async def _load(self, session_id: str) -> _CachedSession | None:
        stored = await self._queries.find(session_id)
        if stored is None:
            return None
        session, account = stored.session, stored.account
        if session.issuer == BUILT_IN:
            if account is None or not account.user.enabled or not account.user.domain.enabled:
                raise Unauthenticated(
                    "the user of the session or their domain is disabled", known=session.user_id
                )
            if not self.has_built_in:
                raise Unauthenticated("this service has no built-in users any more", known=session.user_id)
            return _CachedSession(session, BuiltInUser.with_roles(account.user, account.roles))
        credential = (await self._sealer.unseal(stored.sealed_credential, _bound_to(session_id))).decode()
        if session.method == OIDC:
            user = self._mapped(session.issuer, json.loads(credential))
            return _CachedSession(session, _in_session(user, session))
        return _CachedSession(session, _KeystoneLogin(credential))

    def _mapped(self, issuer_url: str, claims: JsonObject) -> FederatedUser:
        if self._issuers is None:
            raise Unauthenticated("the settings have no OIDC issuers")
        return self._issuers.user_of_claims(issuer_url, claims)

    def _keystone(self) -> KeystoneAccounts:
        if self.keystone is None:
            raise Unauthenticated("the settings have no Keystone")
        return self.keystone

    async def _caller(self, found: _CachedSession, origin: Origin) -> Caller:
        session, login = found.session, found.login
        if isinstance(login, BuiltInUser):
            return login.caller(
                session.method, origin, expires_at=session.expires_at, credential_id=session.id
            )
        if isinstance(login, FederatedUser):
            caller = await self._federation.caller_of_federated_user(login, origin)
        else:
            caller = await self._keystone().caller_of_token(login.token, origin)
        if (caller.user.id, caller.issuer) != (session.user_id, session.issuer):
            raise Unauthenticated("the settings now map the login to a different user", known=session.user_id)
        return replace(caller, credential_id=session.id)


def _printable(value: object) -> str | None:
    """Return the value if it is text that every database stores, without NUL and surrogates; else None."""
    return value if isinstance(value, str) and value.isprintable() else None


def _in_session(user: FederatedUser, session: Session) -> FederatedUser:
    """Return a user whose credential is the session."""
    return replace(user, credential_id=session.id, expires_at=session.expires_at)


def _is_well_formed(cookie: str) -> bool:
    return len(cookie) == COOKIE_CHARACTERS and cookie.isascii()


def session_id(cookie: str) -> str:
    """Return the id of the session with this cookie."""
    return hashlib.sha256(cookie.encode()).hexdigest()


def _bound_to(session_id: str) -> str:
    return f"console_session:{session_id}"
