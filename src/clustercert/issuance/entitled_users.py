"""Finds the users who could get a Kubernetes group."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from clustercert.model import Caller, Origin
from clustercert.policy.entitlements import Entitlement, Entitlements
from clustercert.policy.replay import ISSUED, REFUSED, NotReplayable, parse_decision
from clustercert.store.decision_events import DecisionEvents
from clustercert.store.engine.database import Database
from clustercert.store.known_users import SeenUserQueries
from clustercert.store.roles import Member, MemberQueries

PAGE = 500
# Start the search this long before the time of issue, because the time of an event can differ slightly from the time of
# issue.
_LATER = timedelta(minutes=5)
# The default authentication method in explanations of requests.
DEFAULT_METHOD = "token"


@dataclass(frozen=True, slots=True)
class EntitledUser:
    """A user who could get the group.

    Attributes:
        seen_at: for a user of an OIDC issuer or Keystone, the time of the recorded request that contained the user's
            groups and roles.
    """

    caller: Caller
    entitlements: tuple[Entitlement, ...]
    seen_at: datetime | None = None


class EntitledUsers:
    """Searches the users of the built-in identity service, and other users who got certificates before."""

    def __init__(self, database: Database) -> None:
        self._members, self._seen = MemberQueries(database), SeenUserQueries(database)
        self._events = DecisionEvents(database)

    async def find(
        self, entitlements: Entitlements, project_id: str, since: datetime
    ) -> AsyncIterator[EntitledUser]:
        """Yield the users who could get the group.

        Users of other issuers are searched in the events from `since` on.
        """
        origin, after = Origin.local(), ""
        while page := await self._members.page(project_id, after=after, limit=PAGE):
            for member in page:
                caller = as_caller(member, project_id, origin)
                if found := entitlements.entitlements_of(caller):
                    yield EntitledUser(caller, found)
            after = page[-1].user.id
        for caller, seen_at in (await self._callers(project_id, since)).values():
            if found := entitlements.entitlements_of(caller):
                yield EntitledUser(caller, found, seen_at)

    async def _callers(self, project_id: str, since: datetime) -> Mapping[str, tuple[Caller, datetime]]:
        """Return users of other issuers, with groups and roles from their latest event, by user id."""
        users = await self._seen.users_of_other_issuers(project_id, since)
        found: dict[str, tuple[Caller, datetime]] = {}
        if not users:
            return found
        async for page in self._events.pages(min(users.values()) - _LATER, None, project_id):
            for body in page:
                event = json.loads(body)
                if event["kind"] not in (ISSUED, REFUSED) or event["actor"] not in users:
                    continue
                try:
                    decision = parse_decision(event)
                except NotReplayable:
                    continue
                found[decision.caller.user.id] = decision.caller, decision.at
        return found


def as_caller(member: Member, project_id: str, origin: Origin) -> Caller:
    """Return a user as the caller of a request, with the roles in one project."""
    return Caller(
        user=member.user,
        roles={project_id: member.roles},
        method=DEFAULT_METHOD,
        origin=origin,
        service_roles=member.service_roles,
        groups=member.groups,
    )
