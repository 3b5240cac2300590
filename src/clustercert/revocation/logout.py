"""Use case: a user whose machine was lost ends all their logins, and revokes all their certificates."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from clustercert.model import AccessKey, Caller
from clustercert.model.errors import TooManyRequests
from clustercert.revocation.reasons import Reason
from clustercert.revocation.recorder import RevocationRecorder
from clustercert.store.certificate_maintenance import CertificateMaintenance
from clustercert.store.engine.generation import Generation
from clustercert.store.user_logins import UserLogins

# Somebody else may have the private keys. So nobody can undo the revocation.
LOST = Reason("keyCompromise", "user.logged_out")


class Logins(Protocol):
    """The logins of a caller. Implemented by `identity`."""

    async def of_caller(self, caller: Caller) -> UserLogins:
        """Return the caller's tokens and access keys of the built-in identity."""

    async def end_all(self, caller: Caller, *, with_keys: bool) -> UserLogins:
        """End all logins of the caller, and return what was deleted. Raises Unauthenticated or Conflict."""


@dataclass(frozen=True, slots=True)
class LoggedOut:
    """What a logout ends.

    Attributes:
        certificates: how many certificates were valid and unrevoked.
        logins: what is deleted of the built-in identity.
        kept: the permanent access keys that still work.
    """

    certificates: int
    logins: UserLogins
    kept: tuple[AccessKey, ...]


@dataclass(frozen=True, slots=True)
class Logout:
    """Ends all logins of a caller. Repeating it after an interruption is safe: the caller's own login ends last.

    Attributes:
        pause: waits for some seconds.
    """

    recorder: RevocationRecorder
    certificates: CertificateMaintenance
    logins: Logins
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    _running: set[str] = field(init=False, repr=False, default_factory=set)

    async def preview(self, caller: Caller, *, with_keys: bool) -> LoggedOut:
        """Return what `everywhere` would end. Ends nothing."""
        found = await self.logins.of_caller(caller)
        live = await self._count_live(caller)
        if with_keys:
            return LoggedOut(live, found, ())
        return LoggedOut(live, replace(found, keys=()), found.keys)

    async def everywhere(self, caller: Caller, *, with_keys: bool) -> LoggedOut:
        """Revoke all the caller's certificates, and end all their logins. See `Logins.end_all`.

        Takes more than a second. Raises TooManyRequests while this process does it for the same user, Unauthenticated,
        Conflict or Unavailable.
        """
        user_id = caller.user.id
        if user_id in self._running:
            # Requests that wait count for the limit of concurrent requests.
            raise TooManyRequests(
                "Another request ends your logins now. Try again in two seconds.", retry_after=2
            )
        self._running.add(user_id)
        try:
            live = await self._count_live(caller)
            await self._revoke(caller)
            ended = await self.logins.end_all(caller, with_keys=with_keys)
            # Until now, another worker may have issued certificates for a login in its cache.
            await self.pause(Generation.STALE_AFTER + Generation.INTERVAL)
            await self._revoke(caller)
        finally:
            self._running.remove(user_id)
        return LoggedOut(live, ended, (await self.logins.of_caller(caller)).keys)

    async def _count_live(self, caller: Caller) -> int:
        return await self.certificates.count_live(self.recorder.now(), user_id=caller.user.id)

    async def _revoke(self, caller: Caller) -> None:
        """Revoke the caller's certificates, unless none was issued since they last did so."""
        await self.recorder.revoke_scope(LOST, user_id=caller.user.id, actor=caller.actor)
