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

    async def erase(self, place: int, why: str, *, actor: Actor) -> None:
        """Delete the event at a leaf index. Raises NotFound if it is missing or a deletion event."""
        marker = self._marker(str(place), why, actor)
        if not await self.queries.delete(marker, only=place):
            raise NotFound(
                f"There is no event {place} that can be erased. It may have been deleted already. Deletion events "
                "can't be erased."
            )

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
