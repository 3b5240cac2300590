"""Finds users of other identity systems as their last request was recorded: with the groups and roles at that time."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.model import Caller
from clustercert.policy.recorded_decisions import NotReplayable, parse_decision
from clustercert.store.decision_events import DecisionEvents
from clustercert.store.engine.database import Database
from clustercert.store.seen_users import SeenUserQueries

# How many of the newest events are searched before the ledger is asked for the last certificate.
NEWEST_EVENTS = 20_000
# How many events are searched for that of the last certificate. They begin some minutes before it.
EVENTS_AROUND = 100_000


@dataclass(frozen=True, slots=True)
class RecordedCaller:
    """A caller as in the audit event of a request, and the request's time. A blocked user is not enabled."""

    caller: Caller
    at: datetime


class RecordedCallers:
    """Finds the last recorded request of a user for a project's clusters."""

    def __init__(self, database: Database) -> None:
        self._seen, self._events = SeenUserQueries(database), DecisionEvents(database)

    async def last(self, project_id: str, user_id: str) -> RecordedCaller | None:
        """Return the user as in their last request, refused or not, or as in that for their last certificate.

        Returns None if there is neither among the events that are kept.
        """
        found = await self._find(project_id, user_id)
        if found is None or not await self._seen.is_blocked(user_id):
            return found
        user = replace(found.caller.user, enabled=False)
        return replace(found, caller=replace(found.caller, user=user))

    async def _find(self, project_id: str, user_id: str) -> RecordedCaller | None:
        if found := _last_in(await self._events.newest_of(user_id, project_id, NEWEST_EVENTS)):
            return found
        issued_at = await self._seen.last_issued(project_id, user_id)
        if issued_at is None:
            return None
        return _last_in(await self._events.at(issued_at, user_id, project_id, EVENTS_AROUND))


def _last_in(newest_first: Iterable[bytes]) -> RecordedCaller | None:
    for body in newest_first:
        try:
            decision = parse_decision(json.loads(body))
        except NotReplayable:
            continue
        return RecordedCaller(decision.caller, decision.at)
    return None
