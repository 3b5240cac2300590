"""Use case: count and revoke the certificates of users who lose a role in a project."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from clustercert.certificates.recorder import Reason, RevocationRecorder
from clustercert.model import Actor
from clustercert.model.errors import Conflict
from clustercert.store.certificates.access_controls import AccessQueries, LiveCertificates, LostRole
from clustercert.store.engine.generation import Generation

# The maximum number of pairs of a user and a cluster in one count or revocation. Each pair is one revocation.
MAX_PAIRS = 1000


@dataclass(frozen=True, slots=True)
class LostCertificates:
    """The valid certificates of users who lose a role in some projects, for the clusters of these projects.

    Attributes:
        certificates, users, clusters: how many there are.
        until: when the last of the certificates expires; `None` if there are none.
        complete: whether all certificates are counted: users and clusters may form at most `MAX_PAIRS` pairs.
    """

    certificates: int
    users: int
    clusters: int
    until: datetime | None
    complete: bool

    @classmethod
    def count(cls, live: Sequence[LiveCertificates]) -> Self:
        """Count the certificates."""
        return cls(
            certificates=sum(each.certificates for each in live),
            users=len({each.user_id for each in live}),
            clusters=len({each.cluster_id for each in live}),
            until=max((each.until for each in live), default=None),
            complete=len(live) <= MAX_PAIRS,
        )


@dataclass(frozen=True, slots=True)
class LostRoles:
    """Counts and revokes the certificates of users who lose a role. Callers must already have authorized the actor.

    To revoke the certificates, call `revoke`, remove the role, and call `revoke_again`. So a request can be repeated
    after any interruption before the removal. An interruption after the removal spares only the certificates that
    were issued after `revoke`.

    Attributes:
        pause: waits for the given number of seconds.
    """

    queries: AccessQueries
    recorder: RevocationRecorder
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def of_deleted_group(self, group_id: str) -> LostRole:
        """Return the roles that members lose with a group. Raises Conflict for too many roles, or Unavailable.

        The result stays the same when the group is deleted.
        """
        lost = await self.queries.of_deleted_group(group_id, limit=MAX_PAIRS + 1)
        if max(len(lost.user_ids or ()), len(lost.project_ids or ())) > MAX_PAIRS:
            raise Conflict(
                f"The group has more than {MAX_PAIRS} members or projects. Keep the certificates, and revoke all"
                " certificates of each cluster instead."
            )
        return lost

    async def count(self, lost: LostRole) -> LostCertificates:
        """Count the certificates. Raises Unavailable."""
        return LostCertificates.count(await self._live(lost))

    async def revocable(self, lost: LostRole) -> Sequence[LiveCertificates]:
        """Return the certificates. Raises Conflict for too many certificates for one revocation, or Unavailable."""
        live = await self._live(lost)
        if len(live) > MAX_PAIRS:
            raise Conflict(
                f"The users' certificates are for more than {MAX_PAIRS} pairs of a user and a cluster. Keep the"
                " certificates, and revoke all certificates of each cluster instead."
            )
        return live

    async def revoke(self, live: Sequence[LiveCertificates], note: str, *, actor: Actor) -> None:
        """Revoke the certificates in one transaction, before the role is removed."""
        await self.recorder.revoke_live(live, Reason("affiliationChanged", note), actor=actor)

    async def revoke_again(self, lost: LostRole, note: str, *, actor: Actor) -> None:
        """Revoke the certificates that were issued meanwhile, after the role was removed. Takes more than a second."""
        # Until now, another worker may have issued certificates for a role in its cache. Requests that take longer
        # check the role again.
        await self.pause(Generation.PROPAGATION)
        await self.revoke(await self._live(lost), note, actor=actor)

    async def _live(self, lost: LostRole) -> Sequence[LiveCertificates]:
        return await self.queries.live_of_lost_role(lost, self.recorder.now(), limit=MAX_PAIRS + 1)
