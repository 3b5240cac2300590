"""Use case: an overview and a list of all clusters that a caller administers or may see."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
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

HOURS = 24
WEEKS = MONTHS = 12
# The limits of the groups of client CAs by age, in years of 365 days.
CA_AGES = (1, 2, 3, 5)
MAX_VERSIONS = 50
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
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

    @property
    def certificates_ending(self) -> int:
        """How many live certificates end within a day."""
        return self.live.certificates - self.live.valid_at[-1]

    @property
    def hours(self) -> tuple[tuple[datetime, int], ...]:
        """Times in the next hours, from `at`, with the number of certificates that are still valid then."""
        counts = (self.live.certificates, *self.live.valid_at)
        return tuple((self.at + timedelta(hours=hour), count) for hour, count in enumerate(counts))


@dataclass(frozen=True, slots=True)
class Period:
    """What ends in a time: live certificates, and client CAs in use.

    Attributes:
        ends_at: the end of the period, which does not belong to it; `None` for all later times.
    """

    starts_at: datetime
    ends_at: datetime | None
    certificates: int
    client_cas: int


@dataclass(frozen=True, slots=True)
class CaAge:
    """The number of active client CAs that began in a time. `None`: the time has no such limit."""

    starts_after: datetime | None
    starts_before: datetime | None
    client_cas: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """Counts of the clusters in some projects or in all of them.

    Attributes:
        enforcement: as in `Overview`.
        versions: the number of clusters by Kubernetes version, the most frequent `MAX_VERSIONS` first.
        ca_ages: the youngest CAs first.
        ended_cas: the number of client CAs in use that have ended.
        weeks: this week from now on, `WEEKS` - 1 further weeks that begin on Monday, and all later times.
        months: the same by calendar months, in UTC.
    """

    at: datetime
    enforcement: Mapping[EnforcementState, int]
    versions: Mapping[str, int]
    ca_ages: tuple[CaAge, ...]
    ended_cas: int
    weeks: tuple[Period, ...]
    months: tuple[Period, ...]


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
        times = [now + timedelta(hours=hour) for hour in range(1, HOURS + 1)]
        return Overview(
            at=now,
            all_projects=projects is None,
            live=await queries.live(projects, now, times, machine_issuers),
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
        weeks, months = _week_starts(now), _month_starts(now)
        ends = [now, *weeks, *months, _END_OF_TIME]
        live = await self.queries.live(projects, now, ends, ())
        certificates = [live.certificates - valid for valid in live.valid_at]
        cas = await self.lists.cas_by_end(projects, ends)
        counts = dict(zip(ends, zip(certificates, cas, strict=True), strict=True))
        starts = [now - years * timedelta(days=365) for years in CA_AGES]
        return Fleet(
            at=now,
            enforcement=await self.queries.enforcement(projects, now),
            versions=await self.lists.versions(projects, MAX_VERSIONS),
            ca_ages=_ages(starts, await self.lists.cas_by_start(projects, [*starts, now + _DAY])),
            ended_cas=cas[0],
            weeks=_periods([now, *weeks, _END_OF_TIME], counts),
            months=_periods([now, *months, _END_OF_TIME], counts),
        )


def _week_starts(now: datetime) -> list[datetime]:
    """Return the Mondays after now, `WEEKS` of them, at midnight UTC."""
    monday = _midnight(now) - timedelta(days=now.weekday())
    return [monday + timedelta(weeks=number) for number in range(1, WEEKS + 1)]


def _month_starts(now: datetime) -> list[datetime]:
    """Return the first days of the months after now, `MONTHS` of them, at midnight UTC."""
    months = [now.year * 12 + now.month - 1 + number for number in range(1, MONTHS + 1)]
    return [_midnight(now).replace(year=month // 12, month=month % 12 + 1, day=1) for month in months]


def _midnight(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def _periods(limits: Sequence[datetime], counts: Mapping[datetime, tuple[int, int]]) -> tuple[Period, ...]:
    """Return the periods between the limits.

    Args:
        counts: how many certificates and client CAs end before each limit.
    """
    periods = []
    for start, end in pairwise(limits):
        certificates, client_cas = (
            later - before for before, later in zip(counts[start], counts[end], strict=True)
        )
        periods.append(Period(start, end if end != _END_OF_TIME else None, certificates, client_cas))
    return tuple(periods)


def _ages(starts: Sequence[datetime], counts: Sequence[int]) -> tuple[CaAge, ...]:
    """Return the client CAs by age. `counts` has the CAs that began before each time in `starts`, and the total."""
    *before, total = counts
    limits = (None, *starts, None)
    numbers = (total, *before, 0)
    return tuple(
        CaAge(after, until, number - older)
        for (until, after), (number, older) in zip(pairwise(limits), pairwise(numbers), strict=True)
    )
