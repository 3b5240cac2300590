"""Use case: an overview and a list of all clusters that a caller administers or may see."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from cachetools import LRUCache

from clustercert.model import Caller
from clustercert.model.choices import EnforcementState, FleetOrder
from clustercert.model.errors import Forbidden, InvalidRequest
from clustercert.model.rights import administered_projects, reads_everything
from clustercert.store.clusters.fleet import FleetFilter, FleetPage, FleetQueries
from clustercert.store.clusters.overview import (
    LiveCounts,
    OverviewQueries,
    Projects,
    RunningRotations,
    UnknownCounts,
)

T = TypeVar("T")

MAX_VERSIONS = 50
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
        live: the live certificates; `ending` has those that end within a day.
        requests: the open access requests, by state.
        unknown: the unknown identities first seen within the last day.
        revoked_uses: how many certificates an API server accepted after their revocation within the last day.
        revoked_accepted: how many revoked certificates have not expired, in clusters where no control stops them.
        enforcement: the number of clusters, by their state of enforcement. Lacks states without clusters.
        requests_ending, cas_ending: the active access requests and the client CAs that end within a day.
    """

    at: datetime
    all_projects: bool
    live: LiveCounts
    requests: Mapping[str, int]
    unknown: UnknownCounts
    revoked_uses: int
    revoked_accepted: int
    enforcement: Mapping[EnforcementState, int]
    rotations: RunningRotations
    requests_ending: int
    cas_ending: int

    @property
    def clusters(self) -> int:
        """The number of clusters."""
        return sum(self.enforcement.values())


@dataclass(frozen=True, slots=True)
class Fleet:
    """Counts of the clusters in some projects or in all of them.

    Attributes:
        enforcement: as in `Overview`.
        versions: the number of clusters by Kubernetes version, the most frequent `MAX_VERSIONS` first.
        ended_cas: the number of client CAs in use that have ended.
    """

    at: datetime
    enforcement: Mapping[EnforcementState, int]
    versions: Mapping[str, int]
    ended_cas: int


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
    lists: FleetQueries
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    _cached: LRUCache[object, tuple[float, Any]] = field(
        default_factory=lambda: LRUCache(_CACHED_OVERVIEWS), repr=False
    )
    _counting: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    async def overview(self, caller: Caller, machine_issuers: Collection[str]) -> Overview:
        """Return the overview of the caller's projects, which may be some seconds old. Raises Forbidden.

        Args:
            machine_issuers: the URLs of the OIDC issuers whose users are machines.
        """
        projects = visible_projects(caller)
        key = "overview", projects, frozenset(machine_issuers)
        return await self._reused(key, lambda: self._counted(projects, machine_issuers))

    async def fleet(self, caller: Caller) -> Fleet:
        """Count the clusters in the caller's projects. The counts may be some seconds old. Raises Forbidden."""
        projects = visible_projects(caller)
        return await self._reused(("fleet", projects), lambda: self._counted_fleet(projects))

    async def clusters(
        self, caller: Caller, selected: FleetFilter, *, order: FleetOrder, after: str | None, limit: int
    ) -> FleetPage:
        """Return a page of the clusters in the caller's projects. Raises Forbidden.

        Args:
            after: the id of the last cluster on the previous page. Raises InvalidRequest if there is none in the
                caller's projects.
        """
        projects = visible_projects(caller)
        found = await self.lists.page(projects, selected, self.now(), order=order, after=after, limit=limit)
        if found is None:
            raise InvalidRequest(
                "cursor: the last cluster of the previous page was removed. Begin with the first page."
            )
        return found

    async def _reused(self, key: object, count: Callable[[], Awaitable[T]]) -> T:
        async with self._counting:
            valid_until, cached = self._cached.get(key, (0.0, None))
            started = self.clock()
            if cached is not None and started < valid_until:
                return cast("T", cached)
            counted = await count()
            ended = self.clock()
            seconds = max(_CACHED_SECONDS, _CACHED_FACTOR * (ended - started))
            self._cached[key] = ended + seconds, counted
            return counted

    async def _counted(self, projects: Projects, machine_issuers: Collection[str]) -> Overview:
        queries, now = self.queries, self.now()
        return Overview(
            at=now,
            all_projects=projects is None,
            live=await queries.live(projects, now, now + _DAY, machine_issuers),
            requests=await queries.requests(projects, now),
            unknown=await queries.unknown(projects, now - _DAY),
            revoked_uses=await queries.revoked_uses(projects, now - _DAY),
            revoked_accepted=await queries.revoked_accepted(projects, now),
            enforcement=await queries.enforcement(projects, now),
            rotations=await queries.rotations(projects, now),
            requests_ending=await queries.requests_ending(projects, now, now + _DAY),
            cas_ending=await queries.cas_ending(projects, now + _DAY),
        )

    async def _counted_fleet(self, projects: Projects) -> Fleet:
        now = self.now()
        return Fleet(
            at=now,
            enforcement=await self.queries.enforcement(projects, now),
            versions=await self.lists.versions(projects, MAX_VERSIONS),
            ended_cas=await self.queries.cas_ending(projects, now),
        )
