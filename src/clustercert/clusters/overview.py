"""Use case: an overview of all clusters that a caller administers or may see."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cachetools import LRUCache

from clustercert.model import Caller
from clustercert.model.choices import EnforcementState
from clustercert.model.errors import Forbidden
from clustercert.policy.rules import administered_projects, reads_everything
from clustercert.store.overview import (
    LiveCounts,
    OverviewQueries,
    Projects,
    RunningRotations,
    UnknownCounts,
)

HOURS = 24
_DAY = timedelta(days=1)
# How long a worker reuses an overview: at least this long, and this many times as long as counting took. So workers
# spend little of the database's time on overviews, however many certificates are live.
_CACHED_SECONDS = 5.0
_CACHED_FACTOR = 20
_CACHED_OVERVIEWS = 256


@dataclass(frozen=True, slots=True)
class Overview:
    """Counts of what happens now in some projects or in all of them.

    Attributes:
        at: the time of the counts, at most some seconds ago.
        all_projects: whether the counts include all projects.
        live: the live certificates; `valid_at` has the counts at each full hour from `at`, `HOURS` of them.
        requests: the open access requests, by state.
        unknown: the unknown identities first seen within the last day.
        revoked_uses: how many certificates an API server accepted after their revocation within the last day.
        enforcement: the number of clusters, by their state of enforcement. Lacks states without clusters.
        requests_ending, cas_ending: the active access requests and the client CAs that end within a day.
    """

    at: datetime
    all_projects: bool
    live: LiveCounts
    requests: Mapping[str, int]
    unknown: UnknownCounts
    revoked_uses: int
    enforcement: Mapping[EnforcementState, int]
    rotations: RunningRotations
    requests_ending: int
    cas_ending: int

    @property
    def clusters(self) -> int:
        """The number of clusters."""
        return sum(self.enforcement.values())

    @property
    def certificates_ending(self) -> int:
        """How many live certificates end within a day."""
        return self.live.certificates - self.live.valid_at[-1]

    @property
    def hours(self) -> tuple[tuple[datetime, int], ...]:
        """Times in the next hours, from `at`, with the number of certificates that are still valid then."""
        counts = (self.live.certificates, *self.live.valid_at)
        return tuple((self.at + timedelta(hours=hour), count) for hour, count in enumerate(counts))


def visible_projects(caller: Caller) -> Projects:
    """Return the ids of the projects whose clusters the caller may see in lists of all clusters; `None` for all.

    Raises Forbidden unless the caller is an operator, an auditor or the admin of a project.
    """
    if reads_everything(caller):
        return None
    projects = administered_projects(caller)
    if not projects:
        raise Forbidden("Only operators, auditors and project admins can see this.")
    return tuple(sorted(projects))


@dataclass(frozen=True, slots=True)
class Overviews:
    """Counts, and reuses the counts for some seconds. Each worker counts one overview at a time."""

    queries: OverviewQueries
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    _cached: LRUCache[object, tuple[float, Overview]] = field(
        default_factory=lambda: LRUCache(_CACHED_OVERVIEWS), repr=False
    )
    _counting: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    async def overview(self, caller: Caller, machine_issuers: Collection[str]) -> Overview:
        """Return the overview of the caller's projects, which may be some seconds old. Raises Forbidden.

        Args:
            machine_issuers: the URLs of the OIDC issuers whose users are machines.
        """
        projects = visible_projects(caller)
        key = projects, frozenset(machine_issuers)
        async with self._counting:
            valid_until, cached = self._cached.get(key, (0.0, None))
            started = self.clock()
            if cached is not None and started < valid_until:
                return cached
            counted = await self._counted(projects, machine_issuers)
            ended = self.clock()
            seconds = max(_CACHED_SECONDS, _CACHED_FACTOR * (ended - started))
            self._cached[key] = ended + seconds, counted
            return counted

    async def _counted(self, projects: Projects, machine_issuers: Collection[str]) -> Overview:
        queries, now = self.queries, self.now()
        times = [now + timedelta(hours=hour) for hour in range(1, HOURS + 1)]
        return Overview(
            at=now,
            all_projects=projects is None,
            live=await queries.live(projects, now, times, machine_issuers),
            requests=await queries.requests(projects, now),
            unknown=await queries.unknown(projects, now - _DAY),
            revoked_uses=await queries.revoked_uses(projects, now - _DAY),
            enforcement=await queries.enforcement(projects, now),
            rotations=await queries.rotations(projects, now),
            requests_ending=await queries.requests_ending(projects, now, now + _DAY),
            cas_ending=await queries.cas_ending(projects, now + _DAY),
        )
