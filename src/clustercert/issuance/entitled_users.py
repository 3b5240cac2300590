"""Finds the users who could get a certificate with a given Kubernetes group."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from clustercert.issuance.recorded_callers import RecordedCallers
from clustercert.model import Caller, Origin
from clustercert.policy.entitlements import Entitlement, Entitlements
from clustercert.store.engine.database import Database
from clustercert.store.identity.known_users import SeenUserQueries
from clustercert.store.identity.roles import MemberQueries

# The maximum number of users on a page.
MAX_USERS = 50
# A page ends after this many comparisons of a request with a rule, which take about a second.
MAX_COMPARED = 200_000


@dataclass(frozen=True, slots=True)
class EntitledUser:
    """A user who could get a certificate with the Kubernetes group.

    Attributes:
        seen_at: for a user of an OIDC issuer or Keystone, the time of the recorded request that contained the user's
            groups and roles.
    """

    caller: Caller
    entitlements: tuple[Entitlement, ...]
    seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class EntitledUserPage:
    """A page of users, sorted by id. The page may be empty even if there is a next page.

    Attributes:
        left_out: the ids of users who got a certificate, but of whom no recorded request was found. The groups and
        roles of these users are not known, so these users may be entitled too.
        following: the id after which the next page begins; None on the last page.
    """

    users: tuple[EntitledUser, ...]
    left_out: tuple[str, ...]
    following: str | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A user who has not been checked yet and may be entitled to the group.

    Attributes:
        caller: None if the user's groups and roles are not known.
        got_certificate: whether the user got a certificate recently, as a user of an OIDC issuer or Keystone.
        seen_at: as in `EntitledUser`.
    """

    user_id: str
    caller: Caller | None
    got_certificate: bool = False
    seen_at: datetime | None = None


class EntitledUsers:
    """Searches users of the built-in identity service, and users of other systems who got certificates before."""

    def __init__(self, database: Database, recorded: RecordedCallers) -> None:
        self._members, self._seen = MemberQueries(database), SeenUserQueries(database)
        self._recorded = recorded
        # Run one search at a time: searches need CPU time and read many events, so concurrent searches would only slow
        # each other down.
        self._searching = asyncio.Semaphore()

    async def page(
        self, entitlements: Entitlements, project_id: str, since: datetime, *, after: str, limit: int
    ) -> EntitledUserPage:
        """Return a page of the users with ids greater than `after` who could get the group.

        Examines at most `limit` users, never more than `MAX_USERS`, and fewer if examining the users takes long.
        Searches in a thread, so that the search does not block the event loop. Raises InvalidRequest if the policy
        distinguishes too many kinds of requests to try all of them.

        Args:
            since: leaves out users of OIDC issuers and Keystone who got no certificate for the project since this time.
        """
        limit = min(limit, MAX_USERS)
        async with self._searching:
            candidates = await self._candidates(project_id, since, after=after, limit=limit + 1)
            more = len(candidates) > limit
            return await asyncio.to_thread(_search, entitlements, candidates[: -1 if more else None], more)

    async def _candidates(
        self, project_id: str, since: datetime, *, after: str, limit: int
    ) -> Sequence[_Candidate]:
        """Return the next users of all identity systems, sorted by id."""
        members = await self._members.page(project_id, after=after, limit=limit)
        issued = await self._seen.page(project_id, after=after, limit=limit)
        ids = sorted([*(member.user.id for member in members), *issued])[:limit]
        recent = {
            user_id: at for user_id, at in issued.items() if user_id in ids and at is not None and at >= since
        }
        recorded = await self._recorded.last_requests(project_id, recent) if recent else {}
        callers = {member.user.id: member.as_caller(project_id, Origin.local()) for member in members}
        return [
            _Candidate(user_id, found.caller, seen_at=found.at)
            if (found := recorded.get(user_id)) is not None
            else _Candidate(user_id, callers.get(user_id), got_certificate=user_id in recent)
            for user_id in ids
        ]


def _search(entitlements: Entitlements, candidates: Sequence[_Candidate], more: bool) -> EntitledUserPage:
    """Find the entitled users among the candidates. Ends early if the search takes long.

    `more`: whether further users follow after the last candidate.
    """
    users: list[EntitledUser] = []
    left_out: list[str] = []
    for number, each in enumerate(candidates, 1):
        if each.caller is None:
            left_out += [each.user_id] if each.got_certificate else []
        elif found := entitlements.entitlements_of(each.caller):
            users.append(EntitledUser(each.caller, found, each.seen_at))
        is_last = number == len(candidates) and not more
        if entitlements.compared > MAX_COMPARED and not is_last:
            return EntitledUserPage(tuple(users), tuple(left_out), each.user_id)
    return EntitledUserPage(tuple(users), tuple(left_out), candidates[-1].user_id if more else None)
