"""Use case: count and revoke the certificates of users who lose a role in a project."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from clustercert.certificates.recorder import Reason, RevocationRecorder
from clustercert.model import Actor
from clustercert.model.errors import Conflict
from clustercert.store.certificates import AccessQueries, LiveCertificates, LostRole
from clustercert.store.clusters import ClusterLookup
from clustercert.store.engine.generation import Generation

# The maximum number of pairs of a user and a cluster in one count or revocation. Each pair is one revocation.
MAX_PAIRS = 1000


@dataclass(frozen=True, slots=True)
class LostCertificates:
    """The valid certificates of the users who lose a role, for clusters of the projects in which they lose it.

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


@dataclass(frozen=True, slots=True)
class LostRoles:
    """Counts and revokes the certificates of users who lose a role. Callers must already have authorized the actor.

    Attributes:
        pause: waits for the given number of seconds.
    """

    queries: AccessQueries
    recorder: RevocationRecorder
    clusters: ClusterLookup
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def count(self, lost: LostRole) -> LostCertificates:
        """Count the certificates. They are the same before and after the role is removed."""
        found = await self._live(lost)
        return LostCertificates(
            certificates=sum(each.certificates for each in found),
            users=len({each.user_id for each in found}),
            clusters=len({each.cluster_id for each in found}),
            until=max((each.until for each in found), default=None),
            complete=len(found) <= MAX_PAIRS,
        )

    async def require_revocable(self, lost: LostRole) -> None:
        """Raise Conflict if the certificates are too many for one revocation."""
        if len(await self._live(lost)) > MAX_PAIRS:
            raise Conflict(
                f"The users have certificates in more than {MAX_PAIRS} pairs of a user and a cluster. Keep the"
                " certificates, and revoke all certificates of each cluster instead."
            )

    async def revoke(self, lost: LostRole, note: str, *, actor: Actor) -> None:
        """Revoke the certificates, after the role was removed. Takes more than a second."""
        await self._revoke(await self._live(lost), note, actor)
        # Until now, another worker may have issued certificates for a role in its cache.
        await self.pause(Generation.STALE_AFTER + Generation.INTERVAL)
        await self._revoke(await self._live(lost), note, actor)

    async def _live(self, lost: LostRole) -> Sequence[LiveCertificates]:
        return await self.queries.live_of_lost_role(lost, self.recorder.now(), limit=MAX_PAIRS + 1)

    async def _revoke(self, found: Sequence[LiveCertificates], note: str, actor: Actor) -> None:
        for each in found:
            cluster = await self.clusters.cluster(each.project_id, each.cluster_id)
            if cluster is not None:
                reason = Reason("affiliationChanged", note)
                await self.recorder.revoke_scope(reason, user_id=each.user_id, cluster=cluster, actor=actor)
