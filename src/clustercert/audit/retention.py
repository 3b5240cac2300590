"""Deletes old events, or single events for privacy. The log keeps their commitments and records the deletion.

The log still proves that a deleted event existed. Its content can't be guessed, because its salt is deleted too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from clustercert.audit.ranges import ranges_of
from clustercert.model import Actor, rfc3339
from clustercert.model.errors import NotFound
from clustercert.model.events.administration import EventsDeleted
from clustercert.store.evidence import EvidenceQueries


@dataclass(frozen=True, slots=True)
class Retention:
    """Deletes events. Each deletion is recorded in the same transaction by a deletion event, which is never deleted."""

    queries: EvidenceQueries
    now: Callable[[], datetime]

    async def prune(self, before: datetime, *, actor: Actor) -> int:
        """Delete a batch of sealed events older than `before`. Returns the number deleted, 0 when none are left.

        Raises Unavailable.
        """
        marker = self._marker(f"before {rfc3339(before)}", "retention", actor, before)
        return len(await self.queries.delete(marker, before=before))

    async def erase(self, event_id: int, why: str, *, actor: Actor) -> int:
        """Delete one event. Returns its leaf index. Raises NotFound if it is missing, unsealed or a deletion event."""
        marker = self._marker(str(event_id), why, actor)
        places = await self.queries.delete(marker, only=event_id)
        if not places:
            raise NotFound(
                f"There is no event {event_id} that can be erased. Unsealed events and deletion events can't be erased."
            )
        return places[0]

    def _marker(
        self, subject: str, why: str, actor: Actor, before: datetime | None = None
    ) -> Callable[[Sequence[int]], EventsDeleted]:
        return lambda places: EventsDeleted(
            at=self.now(),
            actor=actor,
            subject=subject,
            why=why,
            count=len(places),
            places=tuple(ranges_of(places)),
            before=before,
        )
