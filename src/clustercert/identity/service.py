"""The built-in identity service."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from clustercert.identity.access_keys import AccessKeys
from clustercert.identity.directory import Directory
from clustercert.identity.federation import Federation
from clustercert.identity.passwords import Passwords
from clustercert.identity.roles import Roles, role_names
from clustercert.identity.sessions import Sessions, session_id
from clustercert.identity.tokens import Logins, Tokens
from clustercert.limits.issuing import UserRates
from clustercert.model import Actor, Caller, Origin, Project, User, utc_now
from clustercert.model.errors import Conflict, InvalidRequest, NotFound
from clustercert.model.identity import BUILT_IN
from clustercert.model.ids import is_id
from clustercert.pki.envelope import SecretSealer
from clustercert.store.engine.database import Database
from clustercert.store.identity.entities import Reference


class Identity:
    """The components of the built-in identity service.

    Attributes:
        region: the region in the service catalog. Projects are usually named after the region.
        tokens, access_keys, federation, sessions: implement the lookup protocols of the authenticators in `authn`.
    """

    def __init__(
        self,
        database: Database,
        sealer: SecretSealer,
        *,
        region: str,
        token_lifetime: timedelta = timedelta(hours=24),
        passwords: Passwords | None = None,
        rates: UserRates | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.region = region
        self.passwords = passwords or Passwords()
        self.directory = Directory(database, self.passwords, now)
        self.roles = Roles(database, now)
        self._rates = rates = rates or UserRates()
        self.tokens = Tokens(database, self.passwords, now, token_lifetime, rates)
        self.access_keys = AccessKeys(database, sealer, now, rates)
        self.federation = Federation(database, now)
        self.logins = Logins(database, now)
        self.sessions = Sessions(database, sealer, self.tokens, self.federation, rates, now)

    async def projects_of(self, caller: Caller) -> tuple[Project, ...]:
        """List the projects in which the caller's user has a role, including disabled projects."""
        if caller.issuer != BUILT_IN:
            return await self.federation.projects_of(caller)
        return await self.roles.queries.projects_of(caller.user.id)

    async def with_all_roles(self, caller: Caller) -> Caller:
        """Return the caller with the user's roles in all projects, even if the token is for a single project."""
        # An operator with access to the store (`cli`) is not a user.
        if caller.issuer != BUILT_IN or caller.method == "cli":
            return caller
        roles = await self.roles.queries.in_all_projects(caller.user.id)
        return replace(caller, roles=role_names(roles))

    async def project_of(self, caller: Caller, project_id: str) -> Project:
        """Return a project.

        Raises NotFound if the project does not exist or the caller's user has no role in the project.
        """
        if caller.issuer == BUILT_IN:
            return await self.roles.project_of(caller.user, project_id)
        found = [each for each in await self.federation.projects_of(caller) if each.id == project_id]
        if not found:
            raise NotFound("Could not find project.")
        return found[0]

    async def block(self, user_id: str, *, actor: Actor) -> None:
        """End a user's logins, refuse new logins, and revoke the user's certificates.

        Also revokes certificates that workers with stale caches still issue. Disables a user of the built-in identity
        service. Raises InvalidRequest for a malformed id, or Conflict if the user is blocked already.
        """
        user = await self._built_in(user_id)
        if user is None:
            await self.federation.block(user_id, actor=actor)
        elif user.enabled:
            await self.directory.enable_user(user, enabled=False, actor=actor)
        else:
            raise Conflict("This user is blocked already.")

    async def unblock(self, user_id: str, *, actor: Actor) -> None:
        """Allow a user to log in again. Old certificates stay revoked.

        Raises InvalidRequest for a malformed id, NotFound if the user is not blocked, or Conflict.
        """
        user = await self._built_in(user_id)
        if user is None:
            await self.federation.unblock(user_id, actor=actor)
        elif not user.enabled:
            await self.directory.enable_user(user, enabled=True, actor=actor)
        else:
            raise NotFound("This user is not blocked.")

    async def _built_in(self, user_id: str) -> User | None:
        found = await self.directory.queries.entities_with_ids(User, (user_id,)) if is_id(user_id) else ()
        return found[0] if found else None

    async def change_password(
        self, user_id: str, old: str, new: str, origin: Origin, *, cookie: str | None = None
    ) -> User:
        """Change a user's own password, and delete the user's sessions, tokens and temporary keys. Returns the user.

        The old password is checked as in a login. Raises Unauthenticated if the old password is wrong or was changed
        meanwhile, InvalidRequest for a bad new password, TooManyRequests, or Unavailable.

        `cookie`: of the session in which the user changes the password. This session does not end.
        """
        user, checked_hash = await self.tokens.check_password(Reference(id=user_id), old, origin.network)
        if new == old:
            raise InvalidRequest(
                "password: it is the same as original_password. Choose a different password."
            )
        self._rates.count("passwords", user)
        await self.directory.set_password(
            user,
            new,
            actor=Actor(user.id, origin),
            checked_hash=checked_hash,
            kept_session=session_id(cookie) if cookie is not None else None,
        )
        return user

    async def prune(self) -> int:
        """Delete all expired tokens, temporary access keys and sessions, and return the number of deleted rows."""
        pruned = 0
        for part in (self.tokens, self.access_keys, self.sessions):
            while count := await part.prune():
                pruned += count
        return pruned

    def close(self) -> None:
        """Stop the threads that hash passwords."""
        self.passwords.close()
