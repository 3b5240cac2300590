"""Use case: look up the rights of users authenticated by OIDC issuers and Keystone, and block these users."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import cast

import structlog

from clustercert.authn.federated import Authority, FederatedUser
from clustercert.model import Actor, Caller, KnownUser, Origin, Project, Revocation, rfc3339
from clustercert.model.errors import InvalidRequest, Unauthenticated, Unavailable
from clustercert.model.events.administration import RevocationChanged, UserBlocked
from clustercert.model.ids import is_user_id
from clustercert.store.certificates.revocations import NO_END
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Cache
from clustercert.store.identity.directory import DirectoryQueries
from clustercert.store.identity.known_users import FederatedAccess, FederationQueries, KnownUserQueries

logger = structlog.get_logger()

CACHED_LOGINS = 4_000
# A user's last login is stored at most once in this time.
LOGIN_RESOLUTION = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class LoginRoles:
    """The roles that a verified credential gives its user now."""

    roles: Mapping[str, tuple[str, ...]]
    service_roles: tuple[str, ...]

    def caller(self, user: FederatedUser, origin: Origin) -> Caller:
        return Caller(
            user=user.user,
            roles=self.roles,
            method=user.method,
            origin=origin,
            service_roles=self.service_roles,
            expires_at=user.expires_at,
            credential_id=user.credential_id,
            groups=user.groups,
            issuer=user.issuer.url,
            keeps_login_time=user.keeps_login_time,
        )


class Federation:
    """Finds the callers for verified credentials of OIDC issuers and Keystone. Cached lookups need no I/O.

    Callers' roles come from the issuer's settings or from Keystone. Existing projects and blocked users are read from
    the store. The store also records the callers' names, so that operators can refer to users by name.
    """

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._queries = FederationQueries(database)
        self._known_users = KnownUserQueries(database)
        self._directory = DirectoryQueries(database)
        self._now = now
        self._cache: Cache[tuple[str, str, str, int], LoginRoles] = Cache(database.generation, CACHED_LOGINS)

    async def caller_of_federated_user(self, user: FederatedUser, origin: Origin) -> Caller:
        """Return the caller. Raises Unauthenticated if the user is blocked, or has logged out since this login."""

        async def load(_: object) -> LoginRoles:
            access = await self._access(user)
            login = login_of(user, access)
            known = KnownUser(user.user.id, user.user.name, user.user.domain.name, user.issuer.url)
            if access.recorded != known:
                await self._known_users.record_user(known)
            now = self._now()
            if access.last_login_at is None or now - access.last_login_at >= LOGIN_RESOLUTION:
                await self._note_login(known.id, now)
            return login

        # The key contains the method, because Keystone users can choose an access key id that equals the id of another
        # credential, such as the hash of a token. The revision does not tell such credentials apart, because each kind
        # of credential has its own counter of revisions.
        key = user.user.id, user.method, user.credential_id, user.revision
        login = cast("LoginRoles", await self._cache.get(key, load))  # `load` never returns None
        return login.caller(user, origin)

    async def _note_login(self, user_id: str, at: datetime) -> None:
        """Store the last login. After a failed write, such as with a full disk, only the stored time is too old."""
        try:
            await self._known_users.note_login(user_id, at)
        except Unavailable:
            logger.warning("last login not stored", user_id=user_id)

    async def login(self, user: FederatedUser) -> LoginRoles:
        """Return a user's roles from the database. Raises Unauthenticated if the user may not log in."""
        return login_of(user, await self._access(user))

    async def _access(self, user: FederatedUser) -> FederatedAccess:
        """Read a user's access from the database."""
        issuer = user.issuer
        return await self._queries.access(user.user.id, issuer.name, issuer.projects, issuer.domain)

    async def missing_names(self, authority: Authority) -> tuple[str, ...]:
        """Return the names in an issuer's or Keystone's settings that the database lacks, such as `role membr`."""
        projects, has_domain, roles = await self._queries.existing_names(
            authority.named_projects, authority.domain, authority.role_names
        )
        domain = (f"domain {authority.domain}",) if authority.domain is not None and not has_domain else ()
        return (
            *(f"project {project}" for project in sorted(authority.named_projects - projects)),
            *domain,
            *(f"role {role}" for role in sorted(authority.role_names - roles)),
        )

    async def projects_of(self, caller: Caller) -> tuple[Project, ...]:
        """List the projects in which a federated caller has a role, sorted by domain and name."""
        return await self._directory.entities_with_ids(Project, caller.roles.keys())

    async def block(self, user_id: str, *, actor: Actor) -> None:
        """Refuse a user's logins, and revoke the user's certificates.

        Also revokes certificates that workers with stale caches still issue. Raises InvalidRequest for a malformed id,
        or Conflict.
        """
        event = UserBlocked(at=self._now(), kind="user.blocked", actor=actor, subject=_checked_id(user_id))
        revocation = Revocation(
            id=0,
            epoch=NO_END,
            fingerprint=None,
            user_id=user_id,
            cluster_id="",
            at=event.at,
            by=actor.id,
            reason="cessationOfOperation",
            note=event.kind,
        )
        revoked = RevocationChanged(
            at=event.at,
            kind="user.revoked",
            actor=actor,
            subject=user_id,
            user_id=user_id,
            cluster_id=None,
            reason=revocation.reason,
            note=revocation.note,
            proved=False,
        )
        await self._queries.block(revocation, event, revoked)

    async def unblock(self, user_id: str, *, actor: Actor) -> None:
        """Allow a user to log in again. Raises InvalidRequest, NotFound or Conflict."""
        event = UserBlocked(at=self._now(), kind="user.unblocked", actor=actor, subject=_checked_id(user_id))
        await self._queries.unblock(user_id, event)


def login_of(user: FederatedUser, access: FederatedAccess) -> LoginRoles:
    """Return the login of a user, with the roles that the user has now.

    Raises Unauthenticated if the user may not log in.
    """
    issuer = user.issuer
    if access.blocked:
        raise Unauthenticated("the user is blocked", known=user.user.id)
    ended_at, logged_in_at = access.logins_ended_at, user.logged_in_at
    if ended_at is not None and logged_in_at is not None and logged_in_at <= ended_at:
        raise Unauthenticated(
            f"the user ended all logins at {rfc3339(ended_at)}, and this login may be older",
            known=user.user.id,
        )
    if access.id_taken:
        raise Unauthenticated("a user of the built-in identity service has the same id", known=user.user.id)
    if access.name_taken:
        raise Unauthenticated(
            f"a domain has the name of the issuer {issuer.name}: rename the issuer or delete the domain"
        )
    roles = {
        project: tuple(sorted(frozenset().union(*(user.roles.get(key, ()) for key in (None, project, name)))))
        for project, name in sorted(access.projects.items())
    }
    return LoginRoles(
        MappingProxyType({project: names for project, names in roles.items() if names}),
        tuple(sorted(user.service_roles)),
    )


def _checked_id(user_id: str) -> str:
    if not is_user_id(user_id):
        raise InvalidRequest(
            "A user id has 32 or 64 lower-case hex digits. `clustercert certificate list -o json` shows user ids."
        )
    return user_id
