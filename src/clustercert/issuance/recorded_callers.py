"""Finds users of OIDC issuers and Keystone, with their groups and roles, in the audit events of their requests."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from clustercert.model import Caller
from clustercert.policy.replay import NotReplayable, parse_decision
from clustercert.store.audit.decision_events import DecisionEvents
from clustercert.store.engine.database import Database
from clustercert.store.identity.known_users import SeenUserQueries

# How many of the newest events are searched for the last requests of users. If these events contain no request of a
# user, older events are searched for the user's last certificate.
NEWEST_EVENTS = 20_000
# The maximum number of events that are read to find the event of a certificate. The search begins some minutes before
# the certificate was issued.
EVENTS_AROUND = 100_000


@dataclass(frozen=True, slots=True)
class RecordedCaller:
    """A caller from the audit event of a request, and the request's time."""

    caller: Caller
    at: datetime


class RecordedCallers:
    """Finds each user's last recorded request, granted or refused, for a certificate of a project's clusters."""

    def __init__(self, database: Database) -> None:
        self._seen, self._events = SeenUserQueries(database), DecisionEvents(database)

    async def last(self, project_id: str, user_id: str) -> RecordedCaller | None:
        """Return the user with the groups and roles of the last request, or None if no request is found.

        A blocked user is marked as disabled.
        """
        issued_at = await self._seen.last_issued(project_id, user_id)
        found = (await self.last_requests(project_id, {user_id: issued_at})).get(user_id)
        if found is None or not await self._seen.is_blocked(user_id):
            return found
        user = replace(found.caller.user, enabled=False)
        return replace(found, caller=replace(found.caller, user=user))

    async def last_requests(
        self, project_id: str, issued: Mapping[str, datetime | None]
    ) -> Mapping[str, RecordedCaller]:
        """Return the last requests of several users, by user id. Leaves out users for whom no request is found.

        Args:
            issued: when the users got their last certificates for the project, by user id.
        """
        newest = await self._events.newest_decisions(issued.keys(), project_id, NEWEST_EVENTS)
        # Parsing can take a tenth of a second, so use a thread to keep the event loop free.
        found = await asyncio.to_thread(_last_by_user, newest)
        for user_id, issued_at in issued.items():
            if user_id not in found and issued_at is not None:
                body = await self._events.decision_at(issued_at, user_id, project_id, EVENTS_AROUND)
                found |= _last_by_user(() if body is None else (body,))
        return found


def _last_by_user(newest_first: Iterable[bytes]) -> dict[str, RecordedCaller]:
    found: dict[str, RecordedCaller] = {}
    for body in newest_first:
        try:
            decision = parse_decision(json.loads(body))
        except NotReplayable:
            continue
        found.setdefault(decision.caller.user.id, RecordedCaller(decision.caller, decision.at))
    return found
