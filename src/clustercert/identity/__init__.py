"""Use case: the built-in identity service, and the rights of users whom OIDC issuers and Keystone authenticate."""

from collections.abc import Callable
from datetime import datetime, timedelta

from clustercert.identity.access_keys import AccessKeys
from clustercert.identity.directory import Directory
from clustercert.identity.federation import Federation
from clustercert.identity.passwords import Passwords
from clustercert.identity.roles import Roles
from clustercert.identity.tokens import Tokens
from clustercert.model import Actor, Caller, Origin, Project, utc_now
from clustercert.model.errors import InvalidRequest, NotFound
from clustercert.model.identity import BUILT_IN
from clustercert.pki.envelope import SecretSealer
from clustercert.store.engine.database import Database
from clustercert.store.entities import Reference


class Identity:
    """The parts of the built-in identity service.

    Attributes:
        region: the region in the service catalog. Projects are usually named after it.
        tokens, access_keys, federation: implement the lookups of the authenticators in `authn`.
    """

    def __init__(
        self,
        database: Database,
        sealer: SecretSealer,
        *,
        region: str,
        token_lifetime: timedelta = timedelta(hours=24),
        passwords: Passwords | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.region = region
        self.passwords = passwords or Passwords()
        self.directory = Directory(database, self.passwords, now)
        self.roles = Roles(database, now)
        self.tokens = Tokens(database, self.passwords, now, token_lifetime)
        self.access_keys = AccessKeys(database, sealer, now)
        self.federation = Federation(database, now)

    async def projects_of(self, caller: Caller) -> tuple[Project, ...]:
        """List the projects, including disabled ones, in which the caller's user has a role."""
        if caller.issuer != BUILT_IN:
            return await self.federation.projects_of(caller)
        return await self.roles.projects_of(caller.user)

    async def project_of(self, caller: Caller, project_id: str) -> Project:
        """Return a project. Raises NotFound if it does not exist or the caller's user has no role in it."""
        if caller.issuer == BUILT_IN:
            return await self.roles.project_of(caller.user, project_id)
        found = [each for each in await self.federation.projects_of(caller) if each.id == project_id]
        if not found:
            raise NotFound("Could not find project.")
        return found[0]

    async def change_password(self, user_id: str, old: str, new: str, origin: Origin) -> None:
        """Change a user's own password, and delete their tokens and temporary keys.

        The old password is checked as in a login. Raises Unauthenticated, also if the old password was changed
        meanwhile, Unavailable, or InvalidRequest for a bad new password.
        """
        user, checked_hash = await self.tokens.check_password(Reference(id=user_id), old, origin.network)
        if new == old:
            raise InvalidRequest("password: it is the same as original_password. Choose another one.")
        await self.directory.set_password(user, new, actor=Actor(user.id, origin), checked_hash=checked_hash)

    async def prune(self) -> int:
        """Delete all expired tokens and temporary access keys, and return the number deleted."""
        pruned = 0
        for part in (self.tokens, self.access_keys):
            while count := await part.prune():
                pruned += count
        return pruned

    def close(self) -> None:
        """Stop the threads that hash passwords."""
        self.passwords.close()
